"""`duologue models`: what is installed, what is missing, and the commands that install it."""

import argparse
import importlib.util
import json

from duologue.cli.command import Command, Option
from duologue.models.catalogue import CATALOGUE

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

Any causal language model with a chat template works, but decides well only with a trained adapter. Without one it is
prompted (--adapter prompted): it answers requests, but often also noise and what was said to somebody else, and a
backchannel such as "mhm" interrupts it. `duologue train` trains an adapter.

examples:
  duologue models --json
  duologue chat -m smollm2
  duologue chat -m ~/models/some-model.gguf --adapter prompted
"""


COMMAND = Command(
    "list what is installed and what is missing",
    "List the backends, the models that need no download from a hub, and the shipped adapters.",
    options=(Option("--json", action="store_true", help="print one JSON object"),),
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Print the lists."""
    from duologue.models.adapters import shipped

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
        }
        for entry in CATALOGUE
    ]
    adapters = [
        {"name": adapter.name, "kind": adapter.kind, "states": [str(state) for state in adapter.states]}
        for adapter in shipped()
    ]
    if args.json:
        print(json.dumps({"backends": backends, "models": models, "adapters": adapters}))
        return 0
    print("Backends")
    for row in backends:
        state = "installed" if row["installed"] else f"missing: {row['install']}"
        print(f"  {row['name']:12} {row['for']:38} {state}")
    print("\nModels by short name (any .gguf file, model folder or hub name works too)")
    for model in models:
        state = model["path"] or f"missing: {model['install']}"
        print(f"  {model['name']:12} {model['title']} ({model['license']}): {state}")
    print("\nShipped adapters")
    for adapter in adapters:
        print(f"  {adapter['name']:24} {adapter['kind']}: {', '.join(adapter['states'])}")
    if not adapters:
        print("  none")
    return 0
