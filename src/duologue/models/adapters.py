"""Adapters make a model duplex: they define how to ask it for the state of what it hears, and how to read its reply.

A trained adapter is a folder with `adapter.json` and `adapter.safetensors`. The rows of a cascade are an adapter of
their own, in the folder `cascade` of an `alora` adapter. Without training, an adapter is a prompt (`prompted`). NumPy
only; each backend applies the rows in its own way.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from duologue.backends.lora import Lora
from duologue.backends.rows import AdapterRows
from duologue.core.policy import Thresholds
from duologue.core.prompt import Probe
from duologue.errors import AdapterMismatch, UsageError, WorseAdapter, refuse, require
from duologue.hearing import projection
from duologue.hearing.projection import SoundProjection
from duologue.models.catalogue import expanded
from duologue.models.prompting import prompted_probe
from duologue.text.template import Template, Tokenizer
from duologue.types import InputState

FORMAT = 1
KINDS = ("alora", "rows", "prompted")
PROMPTED = {"prompted": 0, "prompted-5": 5}
"""Adapters without training, and the number of examples in their prompt."""

TRAINED = ("alora", "rows")
"""Kinds of adapters that ship with the package, best first."""

CASCADE = "cascade"
"""The folder in an adapter's own that has the rows of its cascade."""

_ROWS = ("probes", "states", "timing")
"""Names of the tensors of `AdapterRows`; timing may be missing."""

_NAMES = ", ".join(("auto", *TRAINED, *PROMPTED))

ANY_WEIGHTS = "any"
"""Key of the thresholds for weight types that were not calibrated."""

_FINGERPRINT_TEXT = (
    "The quick question, at 10:45: isn't it 3,141.59 km away?\n\tNaïve café – 東京, Москва, Ελλάδα; "
    "def f(x): return x**2  # “quoted”   spaces\nHELLO hello Hello 🙂"
)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an adapter requires of a model: its sizes, and a tokenizer that splits text in the same way.

    Weight types do not matter: an adapter trained on the bf16 model fits its quantised file.
    """

    vocab_size: int  # of the base, without added rows
    hidden_size: int
    num_layers: int
    tokenizer: str  # hash over the ids of a fixed text, the same for every tokenizer library

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, vocab_size: int, hidden_size: int, num_layers: int) -> "Fingerprint":
        """The fingerprint of a loaded model. `vocab_size` excludes the rows of an adapter."""
        ids = tokenizer.encode(_FINGERPRINT_TEXT)
        digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
        return cls(vocab_size, hidden_size, num_layers, digest[:16])


@dataclass(frozen=True, eq=False)
class Adapter:
    """How a model is asked for the state, and how probable its replies must be.

    Added ids follow the base vocabulary: the probe tokens, the states in order, the timing pair (see `AdapterRows`).
    """

    kind: str  # "rows": trained vectors; "alora": also a LoRA at the probe tokens; "prompted": a prompt
    states: tuple[InputState, ...]
    rows: AdapterRows | None = None  # None for "prompted"
    lora: Lora | None = None  # of "alora" only
    cascade: "Adapter | None" = None
    """Rows that are read first where the LoRA takes a pass of its own; of "alora" only."""
    cascade_limit: float | None = None
    """How probable a state must be by these rows for the LoRA not to be asked; None without a cascade."""
    sound: SoundProjection | None = None
    """Soft tokens for what a voice tells beyond its words; None: it decides by the words alone."""
    thresholds: Mapping[str, tuple[Thresholds, Thresholds]] = field(default_factory=dict)
    """For each weight type ("bf16", "q4_0", …, or "any"), two sets: for an idle and for a speaking assistant."""
    fingerprint: Fingerprint | None = None  # None: fits every model
    name: str = ""  # for display
    shots: int = 0  # examples in the prompt of a prompted adapter
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, and the results of its evaluation."""

    def __post_init__(self) -> None:
        of_kind, num_states = f"an adapter of kind {self.kind}", len(self.states)
        num_rows = num_states if self.rows is None else self.rows.states.shape[0]
        cascade, limit = self.cascade, self.cascade_limit
        refuse(
            [
                (self.kind not in KINDS, f"no adapter kind {self.kind!r}; there are {', '.join(KINDS)}"),
                (
                    (self.rows is None) != (self.kind == "prompted"),
                    f"{of_kind} {'needs' if self.rows is None else 'has no'} rows",
                ),
                (
                    (self.lora is None) == (self.kind == "alora"),
                    f"{of_kind} {'needs' if self.lora is None else 'has no'} LoRA",
                ),
                (num_rows != num_states, f"{num_rows} state rows for {num_states} states"),
                ((cascade is None) != (limit is None), "a cascade needs both its rows and a limit"),
                (limit is not None and not 0.0 <= limit <= 1.0, f"the limit of a cascade is from 0 to 1, got {limit}"),
                (cascade is not None and self.lora is None, f"{of_kind} has no LoRA that a cascade could spare"),
                (
                    cascade is not None and not self._fits(cascade),
                    "the rows of the cascade belong to another adapter: their kind is not rows, or the model, the "
                    "states, the number of probe tokens or the timing pair differ",
                ),
                (
                    self.sound is not None and (self.rows is None or self.sound.width != self.rows.probes.shape[1]),
                    f"{of_kind} cannot take soft tokens of another width than its probe tokens",
                ),
            ]
        )

    def _fits(self, cascade: "Adapter") -> bool:
        if self.rows is None or cascade.rows is None or cascade.kind != "rows":
            return False
        ours, theirs = (self.fingerprint, self.states), (cascade.fingerprint, cascade.states)
        return ours == theirs and self.rows.shapes == cascade.rows.shapes

    @property
    def num_added(self) -> int:
        """The number of ids it adds to the vocabulary."""
        return 0 if self.rows is None else self.rows.num_added

    @property
    def has_timing(self) -> bool:
        """Whether it predicts, besides the states, if the speaker goes on."""
        return self.rows is not None and self.rows.timing is not None

    def check(self, fingerprint: Fingerprint) -> None:
        """Raise `AdapterMismatch` if the adapter was trained for another model."""
        if self.fingerprint is None or self.fingerprint == fingerprint:
            return
        ours, theirs = asdict(self.fingerprint), asdict(fingerprint)
        different = ", ".join(f"{key} {theirs[key]} (adapter: {ours[key]})" for key in ours if ours[key] != theirs[key])
        raise AdapterMismatch(
            f"the adapter {self.name or '(unnamed)'} was trained for another model; this one has {different}. "
            "Train one with `duologue train alora --model …`, or prompt it with --adapter prompted"
        )

    @property
    def compared(self) -> tuple[float, float] | None:
        """Mean recall of the states, of this adapter and of the prompted model, on the same held-out samples.

        None if training did not compare them: some models cannot be prompted, and older adapters were not compared.
        """
        found = self.facts.get("compared")
        if found is None:
            return None
        return float(found["adapter"]["mean_recall"]), float(found["prompted"]["mean_recall"])

    def refuse_worse(self) -> None:
        """Raise `WorseAdapter` if training found that the prompted model decides better."""
        ours, prompted = self.compared or (0.0, 0.0)
        if ours < prompted:
            raise WorseAdapter(
                f"the adapter {self.name or '(unnamed)'} decides worse than the prompted model: its mean recall of the "
                f"states is {100 * ours:.1f} % against {100 * prompted:.1f} %, on the same held-out "
                "samples. Train one with more samples, prompt the model with --adapter prompted, or accept this one "
                "with --allow-worse (allow_worse=True)"
            )

    def probe_for(self, vocab_size: int, template: Template) -> Probe:
        """The tokens that a session appends and watches, on a model with `vocab_size` base ids.

        Raises:
            UsageError: the adapter is prompted, and no letters or digits are single tokens in this model.
        """
        if self.rows is None:
            return prompted_probe(template, self.states, shots=self.shots)
        first_state = vocab_size + self.rows.num_probes
        end = first_state + len(self.states)
        timing = (end, end + 1) if self.has_timing else ()
        num_soft = 0 if self.sound is None else self.sound.num_tokens
        probes, watch = tuple(range(vocab_size, first_state)), tuple(range(first_state, end))
        return Probe(probes, watch, self.states, timing, num_soft)

    def thresholds_for(self, weights: str) -> tuple[Thresholds, Thresholds]:
        """The thresholds for an idle and for a speaking assistant, for a weight type such as "bf16" or "Q4_0"."""
        found = self.thresholds.get(weights.lower()) or self.thresholds.get(ANY_WEIGHTS)
        return found or (Thresholds(), Thresholds())

    def save(self, folder: Path) -> None:
        """Write the adapter to `folder`, which is created if necessary."""
        folder.mkdir(parents=True, exist_ok=True)
        num_probes = 0 if self.rows is None else self.rows.num_probes
        content: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "name": self.name,
            "model": None if self.fingerprint is None else asdict(self.fingerprint),
            "probe": list(range(num_probes)),  # relative to the base vocabulary
            "states": {state.value: num_probes + i for i, state in enumerate(self.states)},
            **({"timing": [self.num_added - 2, self.num_added - 1]} if self.has_timing else {}),
            "thresholds": {
                weights: {"idle": _values(idle), "speaking": _values(speaking)}
                for weights, (idle, speaking) in self.thresholds.items()
            },
            "lora": None if self.lora is None else {"rank": self.lora.rank, "scale": self.lora.scale},
            **({} if self.cascade is None else {"cascade": {"limit": self.cascade_limit}}),
            **({} if self.sound is None else {"sound": {"tokens": self.sound.num_tokens}}),
            "shots": self.shots,
            "training": dict(self.facts),
        }
        if self.cascade is not None:
            self.cascade.save(folder / CASCADE)
        if self.rows is not None:
            changes = {} if self.lora is None else self.lora.tensors()
            changes |= {} if self.sound is None else self.sound.tensors()
            tensors = {**dict(zip(_ROWS, (self.rows.probes, *self.rows.output_groups), strict=False)), **changes}
            _put(folder / "adapter.safetensors", save(tensors))
        _put(folder / "adapter.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path | str, *, cascade: bool = True) -> "Adapter":
        """Read a folder written by `save`, without the rows of its cascade if `cascade` is False.

        Raises:
            AdapterMismatch: the folder holds no adapter, is damaged or incomplete, or was written by a newer version.
        """
        folder = Path(folder)
        path = folder / "adapter.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise AdapterMismatch(f"{folder} is not an adapter folder: {error.strerror} ({path.name})") from None
        except (ValueError, RecursionError) as error:
            raise AdapterMismatch(f"{path} is damaged: {error}") from None
        version = content.get("format") if isinstance(content, dict) else None
        problem = f"{path} has format {version!r}; this version of duologue reads format {FORMAT}"
        refuse([(version != FORMAT, problem)], AdapterMismatch)
        try:
            return cls._from_content({**content, **({} if cascade else {"cascade": None})}, folder)
        except AdapterMismatch:
            raise
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError, UsageError) as error:
            raise AdapterMismatch(f"{path} is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_content(cls, content: Mapping[str, Any], folder: Path) -> "Adapter":
        ordered = sorted(content["states"].items(), key=lambda item: int(item[1]))
        rows, lora, sound = (None, None, None) if content["kind"] == "prompted" else _read_tensors(folder, content)
        cascade = content.get("cascade")
        adapter = cls(
            kind=content["kind"],
            states=tuple(InputState(name) for name, _ in ordered),
            rows=rows,
            lora=lora,
            cascade=None if cascade is None else _read_cascade(folder),
            cascade_limit=None if cascade is None else float(cascade["limit"]),
            sound=sound,
            thresholds={
                weights: (Thresholds.from_mapping(sets["idle"]), Thresholds.from_mapping(sets["speaking"]))
                for weights, sets in content["thresholds"].items()
            },
            fingerprint=None if content["model"] is None else Fingerprint(**content["model"]),
            name=str(content.get("name", "")),
            shots=int(content.get("shots", 0)),
            facts=content.get("training", {}),
        )
        _ = adapter.compared  # raises if it is damaged
        return adapter


def prompted(
    template: Template | None = None, states: Sequence[InputState] = tuple(InputState), shots: int = 0
) -> Adapter:
    """An adapter without training: the model is prompted for the state, with `shots` examples (0 or 5).

    It works with any chat model, but decides less reliably than a trained adapter, especially on small models. With a
    `template`, the prompt is built at once, so that errors occur here rather than later.
    """
    adapter = Adapter("prompted", tuple(states), shots=shots, name=f"prompted, {shots} examples")
    if template is not None:
        prompted_probe(template, adapter.states, shots=shots)
    return adapter


def shipped() -> list[Adapter]:
    """The adapters that ship with this package."""
    with resources.as_file(resources.files("duologue.models") / "assets" / "adapters") as folder:
        return [Adapter.load(path.parent) for path in sorted(folder.glob("*/*/adapter.json"))]


def shipped_for(fingerprint: Fingerprint, kind: str) -> Adapter | None:
    """The shipped adapter of a kind for a model, if there is one."""
    return next((found for found in shipped() if found.fingerprint == fingerprint and found.kind == kind), None)


def requested_adapter(adapter: str | Path | Adapter, *, allow_worse: bool = False) -> Adapter | str:
    """The requested adapter, before any weights are read; its name if the choice depends on the model.

    Raises:
        UsageError: there is no such name or folder.
        AdapterMismatch: the folder cannot be read.
        WorseAdapter: the prompted model decides better, and `allow_worse` is not set.
    """
    found = _requested(adapter)
    if isinstance(found, Adapter) and not allow_worse:
        found.refuse_worse()
    return found


def _requested(adapter: str | Path | Adapter) -> Adapter | str:
    if isinstance(adapter, Adapter):
        return adapter
    name = str(adapter)
    if name in ("auto", *TRAINED):
        return name
    if name in PROMPTED:
        return prompted(shots=PROMPTED[name])
    folder = expanded(name)
    require(bool(name) and folder.exists(), f"no adapter {name!r}: give {_NAMES}, or an adapter folder")
    return Adapter.load(folder)


def adapter_for(requested: Adapter | str | None, fingerprint: Fingerprint) -> Adapter | None:
    """The adapter for a model: `requested` if it fits, or the shipped one of that name. None for None.

    For "auto" it is the best one that ships for this model, if any.

    Raises:
        AdapterMismatch: the adapter was trained for another model, or none ships for this one.
    """
    if isinstance(requested, Adapter):
        requested.check(fingerprint)
    if requested is None or isinstance(requested, Adapter):
        return requested
    kinds = TRAINED if requested == "auto" else (requested,)
    found = next((found for kind in kinds if (found := shipped_for(fingerprint, kind))), None)
    if found is None and requested != "auto":
        raise AdapterMismatch(
            f"no adapter of kind {requested} ships for this model; train one with `duologue train {requested}`, "
            "or prompt it with --adapter prompted"
        )
    return found


def _read_cascade(folder: Path) -> Adapter:
    try:
        return Adapter.load(folder / CASCADE)
    except AdapterMismatch as error:
        raise AdapterMismatch(
            f"the adapter in {folder} has a cascade, and its rows cannot be read: {error}. Copy the whole folder "
            f"again, or train these rows anew with `duologue train rows --into {folder}`"
        ) from None


def _put(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")  # if the disk is full, an existing adapter stays intact
    partial.write_bytes(content)
    partial.replace(path)


def _values(thresholds: Thresholds) -> dict[str, float]:
    return {state.value: round(thresholds.of(state), 4) for state in InputState}


def _read_tensors(folder: Path, content: Mapping[str, Any]) -> tuple[AdapterRows, Lora | None, SoundProjection | None]:
    """The rows, and LoRA and projection of sound if `content`, that of `adapter.json`, mentions them."""
    lora, sound = content.get("lora"), content.get("sound")
    expected = [name for name in _ROWS if name != "timing" or content.get("timing") is not None]
    path = folder / "adapter.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterMismatch(f"{path} cannot be read: {error}; copy the whole adapter folder again") from None
    others = [*(() if lora is None else ("lora.",)), *(() if sound is None else (projection.PREFIX,))]
    named = {name for name in tensors if not name.startswith(tuple(others))}
    if named != set(expected):
        raise AdapterMismatch(f"{path} contains {sorted(named)}; expected {expected}")
    rows = AdapterRows(*(np.ascontiguousarray(tensors[name], dtype=np.float32) for name in expected))
    shapes = list(rows.shapes)
    is_one_width = all(len(shape) == 2 and shape[1] == shapes[0][1] for shape in shapes)
    refuse(
        [
            (
                not is_one_width or (rows.timing is not None and len(rows.timing) != 2),
                f"{path} has shapes {shapes}; expected [P, D] and [S, D], and [2, D] for timing",
            ),
            (
                not all(np.isfinite(tensor).all() for tensor in tensors.values()),
                f"{path} contains values that are not finite; copy the whole adapter folder again",
            ),
        ],
        AdapterMismatch,
    )
    return (
        rows,
        None if lora is None else Lora.from_tensors(tensors, float(lora["scale"])),
        None if sound is None else SoundProjection.from_tensors(tensors),
    )
