"""What this project does on a GPU: contract, exactness and speed of PyTorch, and of vLLM where it is installed.

Claim: the backend fulfils the contract on the device, the method changes no token of an answer beyond ties, and
decisions and sessions are as fast as the figures say.

How: each stage runs in a process of its own and has a limit in seconds; what runs over it, or fails, is reported, and
the others still run. All of them take eight minutes at most. With `--device cpu` the same stages run without a GPU,
more slowly. The exit status is 1 if a stage fails; stages that cannot run here are skipped and named.

    scripts/check-gpu
    python benchmarks/gpu.py --device cpu --only contract
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import torch

from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend
from duologue.testing.contract import CHECKS, Subject
from duologue.testing.tiny_models import tiny_model, tiny_rows

MAX_SECONDS = 480.0
_HERE = Path(__file__).resolve().parent
_KINDS = ("llama", "qwen2", "gemma2")  # plain, with biases, with windows and soft caps


@dataclass(frozen=True, slots=True)
class Stage:
    """A process, and how long it may take."""

    command: tuple[str, ...]  # after the interpreter; {device} is the device
    seconds: float
    needs: str | None = None  # a package

    @property
    def is_possible(self) -> bool:
        """Whether what it needs is installed."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


_TORCH, _VLLM = ("--backend", "torch", "--device", "{device}"), ("--backend", "vllm")
_EXACTNESS = (str(_HERE / "exactness.py"), "--weights", "f32", "--conversations")
_SCALE = ("-m", "duologue", "bench", "scale", "--find", "--seconds", "5", "--json", "--context", "512", "--sessions")
STAGES = {
    "contract": Stage((str(_HERE / "gpu.py"), "--contract", "--device", "{device}"), 60),
    "exactness": Stage((*_EXACTNESS, "20", *_TORCH), 90),
    "cost": Stage(("-m", "duologue", "bench", "cost", "--json", *_TORCH), 60),
    "scale": Stage((*_SCALE, "64", *_TORCH), 90),
    "vllm exactness": Stage((*_EXACTNESS, "10", *_VLLM, "--against", "torch"), 90, needs="vllm"),
    "vllm scale": Stage((*_SCALE, "64", *_VLLM), 90, needs="vllm"),
}


def check_contract(device: str) -> int:
    """Run the contract with small random models. Returns how many checks passed; the first that does not raises."""
    passed = 0
    for kind in _KINDS:

        def opener(*, capacity: int, max_seqs: int, context_length: int, kind: str = kind) -> Backend:
            model = tiny_model(kind).to(device)
            return TorchBackend(
                model, rows=tiny_rows(), capacity=capacity, max_seqs=max_seqs, context_length=context_length
            )

        for check in CHECKS:
            check(Subject(opener))
            passed += 1
    return passed


def run(stage: Stage, device: str, seconds: float) -> dict[str, Any]:
    """What became of a stage within `seconds`: its status, its time, and the JSON of its last line or of its error."""
    command = [sys.executable, *(part.replace("{device}", device) for part in stage.command)]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"status": f"not finished after {seconds:.0f} s"}
    found: dict[str, Any] = {
        "status": "passed" if done.returncode == 0 else "failed",
        "seconds": round(time.monotonic() - began, 1),
    }
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        found["error"] = (done.stderr.strip() or done.stdout.strip())[-800:]
    elif lines:
        found["figures"] = json.loads(lines[-1])
    return found


def device_facts(device: str) -> dict[str, Any]:
    """Which device it is."""
    if not device.startswith("cuda"):
        return {"device": device}
    properties = torch.cuda.get_device_properties(device)
    memory = round(properties.total_memory / 2**30, 1)
    return {"device": properties.name, "memory_gib": memory, "cuda": torch.version.cuda}


def run_all(device: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run the stages in turn, within `MAX_SECONDS` in all."""
    until, found = time.monotonic() + MAX_SECONDS, {}
    for name in names:
        stage = STAGES[name]
        left = min(stage.seconds, until - time.monotonic())
        if not stage.is_possible:
            found[name] = {"status": f"skipped: {stage.needs} is not installed"}
        elif left <= 0:
            found[name] = {"status": "skipped: no time left"}
        else:
            found[name] = run(stage, device, left)
        measuring.progress(f"{name}: {found[name]['status']}")
    return found


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help="these stages")
    parser.add_argument("--contract", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device here; --device cpu runs the same stages without one")
    if args.contract:
        print(json.dumps({"checks": check_contract(args.device)}))
        return 0
    measurement = measuring.begin(args)
    found = run_all(args.device, args.only or list(STAGES))
    rows = [(name, row["status"], row.get("seconds", "")) for name, row in found.items()]
    figures = {**device_facts(args.device), "stages": found}
    measuring.finish(args, measurement, figures, ("stage", "status", "seconds"), rows)
    return int(any(not row["status"].startswith(("passed", "skipped: vllm")) for row in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
