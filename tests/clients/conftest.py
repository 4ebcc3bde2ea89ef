"""Clients that need an environment of their own, which `scripts/test-clients` makes; elsewhere they are left out."""

import importlib
import importlib.util
import warnings

NEEDS = {
    "test_livekit.py": ("livekit", "livekit.plugins.openai"),
    "test_pipecat.py": ("pipecat", "pipecat.services.openai.realtime.llm"),
}
collect_ignore = []
for name, (package, module) in NEEDS.items():
    if importlib.util.find_spec(package) is None:
        collect_ignore.append(name)
        continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what their libraries use that will go is no fault of ours
        importlib.import_module(module)
