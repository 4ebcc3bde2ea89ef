"""`duologue models`: what is installed, what is missing, and the commands that install it."""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from duologue.cli.command import Command, Option
from duologue.models.catalogue import CATALOGUE, DEFAULT

if TYPE_CHECKING:
    from duologue.models.adapters import Adapter

_BACKENDS = (
    ("torch", ("torch", "transformers", "gguf"), 'pip install "duologue[torch]"', "any Hugging Face model or GGUF"),
    (
        "llamacpp",
        ("llama_cpp", "gguf"),
        'pip install "duologue[llamacpp]"',
        "GGUF models, several times faster on a CPU",
    ),
)

_EPILOG = """\
A model is given as a short name, the path of a .gguf file or of a Hugging Face folder, or owner/name on the hub.

Any causal language model with a chat template works. What to do with the words of the user is decided by the model
itself, if it has a trained adapter. Otherwise another model listens and decides in its place: the default model, or the
one that --listener names. `duologue train` trains an adapter. --adapter prompted asks the model itself in words, which
is unreliable: a backchannel such as "mhm" then often interrupts it.

examples:
  duologue models --json
  duologue chat -m smollm2
  duologue chat -m ~/models/some-model.gguf
"""


COMMAND = Command(
    "list what is installed and what is missing",
    "List the backends, the models that need no download from a hub, and the shipped adapters.",
    options=(Option("--json", action="store_true", help="print one JSON object"),),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Print the lists."""
    from duologue.models.adapters import TRAINED, shipped

    kinds = {entry.title: _best(entry.title, shipped(), TRAINED) for entry in CATALOGUE}
    default = next(entry for entry in CATALOGUE if entry.name == DEFAULT)
    listener = f"{DEFAULT} ({kinds[default.title]})"
    backends = [
        {"name": name, "installed": all(map(importlib.util.find_spec, modules)), "install": install, "for": what}
        for name, modules, install, what in _BACKENDS
    ]
    models = [
        {
            "name": entry.name,
            "title": entry.title,
            "license": entry.license,
            "path": str(entry.path) if entry.path else None,
            "install": entry.install,
            "decided_by": kinds[entry.title] or listener,
        }
        for entry in CATALOGUE
    ]
    adapters = [
        {"name": adapter.name, "kind": adapter.kind, "states": [str(state) for state in adapter.states]}
        for adapter in shipped()
    ]
    if args.json:
        print(json.dumps({"backends": backends, "models": models, "adapters": adapters, "others_decided_by": listener}))
        return 0
    print("Backends")
    for row in backends:
        state = "installed" if row["installed"] else f"missing: {row['install']}"
        print(f"  {row['name']:12} {row['for']:44} {state}")
    print("\nModels by short name (-m also takes a .gguf file, a model folder, or owner/name on the hub)")
    for model in models:
        state = model["path"] or f"missing: {model['install']}"
        print(f"  {model['name']:12} {model['title']} ({model['license']}): {state}")
    print("\nWhat decides")
    for entry in CATALOGUE:
        own = kinds[entry.title]
        print(f"  {entry.name:12} {f'its own adapter: {own}' if own else f'no adapter of its own: {listener} listens'}")
    for title in sorted({adapter.name for adapter in shipped()} - kinds.keys()):
        print(f"  {title}, by name or file: its own adapter: {_best(title, shipped(), TRAINED)}")
    print(f"  {'any other':12} {listener} listens, unless --adapter or --listener names something else")
    print("\nShipped adapters")
    for adapter in adapters:
        print(f"  {adapter['name']:24} {adapter['kind']}: {', '.join(adapter['states'])}")
    if not adapters:
        print("  none")
    return 0


def _best(title: str, adapters: "list[Adapter]", kinds: Sequence[str]) -> str | None:
    """The best kind of adapter that ships for the model with that title, if any."""
    found = {adapter.kind for adapter in adapters if adapter.name == title}
    return next((kind for kind in kinds if kind in found), None)
