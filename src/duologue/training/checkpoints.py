"""What a killed run is taken up again from: its state in one file, and a log that ends where the state does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from duologue.errors import UsageError


def write(path: Path, state: Any) -> None:
    """Put `state` in place of what was there; a kill while writing leaves the old one whole.

    Raises:
        UsageError: the file cannot be written.
    """
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises either when the disk is full
        raise UsageError(f"{path} cannot be written: {error}; make room and give the same command again") from error


def read(path: Path, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What was written by a run that is `made_with` the same; on the CPU.

    Raises:
        UsageError: it is of another run.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    theirs = state.get("made_with", {})
    if different := [name for name, value in made_with.items() if theirs.get(name) != value]:
        raise UsageError(
            f"{path} is of a run with another {', '.join(different)}; "
            "give the same to go on with it, or another --out to begin anew"
        )
    return state


def forget_log_behind(log: Path, step: int) -> None:
    """Drop what the log of a run says about steps behind `step`, which are taken again, and a line cut in writing."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    log.write_text("".join(kept), encoding="utf-8")
