"""What every benchmark has in common: its flags, what it says of itself, a table for people and a line for programs."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
_began: tuple[float, float | None] = 0.0, None  # when `about` was called, and how busy others had been by then
_PACKAGES = (
    "duologue",
    "torch",
    "transformers",
    "llama-cpp-python",
    "gguf",
    "numpy",
    "faster-whisper",
    "ctranslate2",
    "piper-tts",
    "pipecat-ai",
)


def arguments(doc: str) -> argparse.ArgumentParser:
    """Flags of every benchmark; `doc` is the script's docstring, which `--help` shows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random")
    parser.add_argument("--out", type=Path, help="write the result file here")
    return parser


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a model."""
    parser.add_argument("--model", default="smollm2", help="as for `duologue chat`")
    parser.add_argument("--backend", default="llamacpp", choices=["torch", "llamacpp", "reference"])
    parser.add_argument("--weights", help="torch: bf16, f32; llama.cpp: BF16, F16, Q8_0, Q4_0")
    parser.add_argument("--adapter", default="auto", help="auto, prompted or a folder")
    parser.add_argument("--threads", type=int, help="of the CPU; by default one a core")


def gguf_file(args: argparse.Namespace) -> Path:
    """The file of the model that `args` name.

    Raises:
        SystemExit: it is not one that llama.cpp runs.
    """
    from duologue.models.catalogue import find

    path = find(args.model).path
    if path is None or args.backend != "llamacpp":
        raise SystemExit("this measures GGUF files, with llama.cpp")
    return path


def load_model(args: argparse.Namespace, **changes: Any) -> Any:
    """The model that the flags name, `changes` to them first."""
    import duologue

    wanted = {"backend": args.backend, "weights": args.weights, "context_length": 2048, **changes}
    return duologue.load(args.model, adapter=args.adapter, threads=args.threads, **wanted)


def describe_model(model: Any) -> dict[str, Any]:
    """Which model was measured."""
    info = model.backend.info
    adapter = {"kind": model.adapter.kind, "name": model.adapter.name, "probe_tokens": len(model.probe.tokens)}
    return {"name": model.name, "backend": info.name, "weights": info.weights, "adapter": adapter}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Count, p50, p95 and the largest of `values`."""
    keys = {"p50": percentile(values, 0.5), "p95": percentile(values, 0.95), "max": max(values)}
    return {"n": len(values), **{key: round(value, digits) for key, value in keys.items()}}


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Command, commit, hardware, versions, seed and date. To be called when it begins."""
    global _began
    _began = time.monotonic(), _busy_s()
    return {
        "benchmark": Path(sys.argv[0]).stem,
        "command": "python " + shlex.join([str(Path(*Path(sys.argv[0]).resolve().parts[-2:])), *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "source_changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "src")),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": args.seed,
    }


def finish(
    args: argparse.Namespace, result: dict[str, Any], header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Print the table and the line, and write the file if one is wanted."""
    result["hardware"]["others_used_cores"] = _others()
    print(table(header, rows))
    print(json.dumps(result, ensure_ascii=False))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(laid_out(result), encoding="utf-8")


def laid_out(result: dict[str, Any]) -> str:
    """`result` as JSON that people can read and compare: a line for each fact, and for each item of a list of facts."""
    lines = []
    for key, value in result.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n    " + ",\n    ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; everything but the first column is aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    rule = [("-" * width if i == 0 else "-" * (width - 1) + ":") for i, width in enumerate(widths)]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in [list(header), *cells]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def progress(text: str) -> None:
    """Say how far it is, where it does not mix with the result."""
    print(text, file=sys.stderr, flush=True)


def _busy_s() -> float | None:
    """Seconds of all cores that went into other processes than this one and what it has waited for; None if unknown."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, line.split()[1:])
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own


def _others() -> float | None:
    """How many cores other processes kept busy since `about`, on average; None if unknown."""
    start, busy = _began
    now, seconds = _busy_s(), max(1e-3, time.monotonic() - start)
    return None if busy is None or now is None else round(max(0.0, now - busy) / seconds, 2)


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
