"""`duologue doctor`: what is installed, what is fast on this machine, and what is missing, with the commands."""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from duologue import __version__
from duologue.backends.file_cache import cache_folder
from duologue.backends.machine import num_cores
from duologue.cli.command import Command, Option
from duologue.cli.terminal.text import counted
from duologue.models.catalogue import CATALOGUE, DEFAULT
from duologue.server.config import ServerConfig

_EPILOG = """\
The exit status is 0 if the default model can run, and 1 otherwise.

examples:
  duologue doctor
  duologue doctor --json
"""

COMMAND = Command(
    "say what is installed, what is fast here, and what is missing",
    "Say what is installed, what is fast on this machine, and what is missing, with the commands that install it.",
    options=(Option("--json", action="store_true", help="print one JSON object"),),
    epilog=_EPILOG,
)

_EXTRAS = (
    ("chat", "the full-screen chat", ("prompt_toolkit",), "demo"),
    ("server", "duologue serve", ("starlette", "uvicorn", "websockets", "prometheus_client"), "server"),
    ("voice", "duologue talk", ("faster_whisper", "soxr", "sounddevice"), "voice"),
    ("piper", "a better voice (GPL)", ("piper", "onnx"), "piper"),
    ("training", "duologue train", ("torch", "transformers", "accelerate", "peft", "matplotlib"), "train"),
    ("hub", "duologue data fetch", ("datasets",), "hub"),
    ("ray", "work on a Ray cluster", ("ray", "pyarrow", "pandas"), "ray"),
    ("completion", "duologue completion", ("shtab",), "completion"),
)
"""What an extra of the package is for: name, purpose, modules, extra."""
_ENGINES = (
    ("torch", "any model", ("torch", "transformers", "gguf"), "torch"),
    ("llama.cpp", "GGUF models, fast on CPUs", ("llama_cpp", "gguf"), "llamacpp"),
)
"""The same of the extras of backends."""
_LEAST_FREE_GB = 2  # the default model and its converted copies take about half a gigabyte
_GB = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: str  # "ok", "missing", "slow" or "broken"
    text: str
    command: str | None = None  # that installs or mends it


def run(args: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine())
    can_run = {finding.name for finding in findings if finding.state in ("ok", "slow")}
    is_fine = {DEFAULT, "cache"} <= can_run and bool(can_run & {"torch", "llama.cpp"})
    if args.json:
        print(json.dumps({"runs": is_fine, "findings": [asdict(finding) for finding in findings]}))
        return 0 if is_fine else 1
    for finding in findings:
        print(f"{finding.state:8} {finding.name:12} {finding.text}")
        if finding.command is not None:
            print(f"{'':21} {finding.command}")
    return 0 if is_fine else 1


def examine() -> Iterator[Finding]:
    """Look at everything. Nothing that is broken ends this."""
    yield Finding("duologue", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding("machine", "ok", _machine())
    for (name, purpose, modules, extra), look in zip(_ENGINES, (_torch, _llamacpp), strict=True):
        yield _examined(name, modules, extra, purpose, look)
    for entry in CATALOGUE:
        state = "missing" if entry.path is None else "ok"
        where = entry.title if entry.path is None else f"{entry.title}: {entry.path}"
        yield Finding(entry.name, state, where, entry.install if entry.path is None else None)
    for name, purpose, modules, extra in _EXTRAS:
        yield _examined(name, modules, extra, purpose, partial(Finding, "", "ok", purpose))
    yield _cache()
    yield _port()


def _examined(name: str, modules: tuple[str, ...], extra: str, purpose: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds, if the modules are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        text = f"{purpose}: without {', '.join(missing)}"
        return Finding(name, "missing", text, f'{_pip()} install "duologue[{extra}]"')
    try:
        found = look()
    except Exception as error:  # an installation can be broken in any way
        text = f"{purpose}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Finding(name, "broken", text, f'{_pip()} install --force-reinstall "duologue[{extra}]"')
    return Finding(name, found.state, found.text, found.command)


def install_command(module: str | None) -> str | None:
    """The command that installs a module of an extra; None if it is of none, or is there."""
    if module is None or importlib.util.find_spec(root := module.partition(".")[0]) is not None:
        return None
    extra = next((extra for _, _, modules, extra in (*_ENGINES, *_EXTRAS) if root in modules), None)
    return None if extra is None else f'{_pip()} install "duologue[{extra}]"'


def _machine() -> str:
    text = f"{platform.machine()}, {counted(num_cores(), 'core')}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        text += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / _GB:.0f} GB of memory"
    return text


def _torch() -> Finding:
    import torch

    from duologue.backends.torch.loading import faster_dtype

    text = f"torch {torch.__version__}, {counted(torch.get_num_threads(), 'thread')}"
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        return Finding("", "ok", f"{text}, {torch.accelerator.device_count()} × {device}: use --device {device}")
    if faster_dtype() == "float32":
        return Finding(
            "", "slow", f"{text}; this CPU has no instructions for bfloat16: use --weights f32, or llama.cpp"
        )
    return Finding("", "ok", f"{text}, bfloat16 on the CPU")


def _llamacpp() -> Finding:
    from duologue.backends.llamacpp.library import default_weights, instructions

    llama_cpp = importlib.import_module("llama_cpp")
    found = instructions()
    text = f"llama-cpp-python {llama_cpp.__version__}, weights {default_weights()} by default, {', '.join(found)}"
    if platform.machine().lower() in ("x86_64", "amd64") and "AVX2" not in found:
        command = f"CMAKE_ARGS=-DGGML_NATIVE=on {_pip()} install --force-reinstall --no-binary :all: llama-cpp-python"
        return Finding("", "slow", f"{text}: built without the instructions of this CPU", command)
    return Finding("", "ok", text)


def _cache() -> Finding:
    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    size, free = sum(path.stat().st_size for path in files), shutil.disk_usage(existing).free
    text = f"{folder}: {size / _GB:.1f} GB of converted models, {free / _GB:.1f} GB free"
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Finding("cache", "broken", f"{text}; not writable", "export DUOLOGUE_CACHE=/another/folder")
    if free < _LEAST_FREE_GB * _GB:
        return Finding("cache", "broken", f"{text}; too little", "export DUOLOGUE_CACHE=/another/folder")
    return Finding("cache", "ok", text)


def _port() -> Finding:
    port = ServerConfig().port
    with socket.socket() as tried:
        is_taken = tried.connect_ex(("127.0.0.1", port)) == 0
    if is_taken:
        return Finding("port", "broken", f"{port} is in use", "duologue serve --port 0")
    return Finding("port", "ok", f"{port} is free for duologue serve")


def _pip() -> str:
    """`pip`, if that installs into this environment."""
    found = shutil.which("pip")
    is_here = found is not None and Path(found).resolve().parent == Path(sys.executable).resolve().parent
    is_ours = found is not None and Path(found).parent == Path(sys.executable).parent
    return "pip" if is_here or is_ours else f"{sys.executable} -m pip"
