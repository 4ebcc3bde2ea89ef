"""From the name of an adapter to the adapter for a model."""

from pathlib import Path

from duologue.errors import AdapterMismatch, UsageError
from duologue.models.adapters import Adapter, Fingerprint, prompted, shipped_for
from duologue.models.catalogue import expanded

PROMPTED = {"prompted": 0, "prompted-5": 5}
"""Adapters without training, and the number of examples in their prompt."""

TRAINED = ("alora", "rows")
"""Kinds of adapters that ship with the package, best first."""

_NAMES = ", ".join(("auto", *TRAINED, *PROMPTED))


def requested_adapter(adapter: str | Path | Adapter) -> Adapter | str:
    """The requested adapter, before any weights are read; its name if the choice depends on the model.

    Raises:
        UsageError: there is no such name or folder.
        AdapterMismatch: the folder cannot be read.
    """
    if isinstance(adapter, Adapter):
        return adapter
    name = str(adapter)
    if name in ("auto", *TRAINED):
        return name
    if name in PROMPTED:
        return prompted(shots=PROMPTED[name])
    folder = expanded(name)
    if not name or not folder.exists():
        raise UsageError(f"no adapter {name!r}: give {_NAMES}, or an adapter folder")
    return Adapter.load(folder)


def adapter_for(requested: Adapter | str, fingerprint: Fingerprint) -> Adapter:
    """The adapter for a model: `requested` if it fits, or the shipped one of that name.

    Raises:
        AdapterMismatch: the adapter was trained for another model, or none ships for this one.
    """
    if isinstance(requested, Adapter):
        requested.check(fingerprint)
        return requested
    kinds = TRAINED if requested == "auto" else (requested,)
    found = next((found for kind in kinds if (found := shipped_for(fingerprint, kind))), None)
    if found is None and requested != "auto":
        raise AdapterMismatch(
            f"no adapter of kind {requested} ships for this model; train one with `duologue train {requested}`, "
            "or prompt it with --adapter prompted"
        )
    return found or prompted()
