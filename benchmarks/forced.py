"""A real backend whose verdicts are chosen from outside, so that every transition can be exercised."""

import dataclasses
from collections.abc import Sequence

from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.core.probe import Probe
from duologue.types import InputState, Seq


class Forced(Backend):
    """Runs every pass for real, probe and all, and then only replaces `Step.p`: `verdict` gets probability `p`."""

    def __init__(self, backend: Backend, probe: Probe) -> None:
        self._backend = backend
        self._states = probe.states
        self.verdict = InputState.PROCESS
        self.p = 0.9  # below `Policy.p_sure`: an answer to words that may grow is prepared, not released

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._backend.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        rest = (1.0 - self.p) / (len(self._states) - 1)
        forced = tuple(self.p if state is self.verdict else rest for state in self._states)
        return [dataclasses.replace(step, p=forced) if step.p else step for step in self._backend.forward(batch)]

    def truncate(self, seq: Seq, length: int) -> None:
        self._backend.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._backend.free(seq)

    def length(self, seq: Seq) -> int:
        return self._backend.length(seq)

    def usage(self) -> Usage:
        return self._backend.usage()
