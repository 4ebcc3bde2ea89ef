"""A real backend whose verdicts are chosen from outside, so that every transition can be exercised."""

import dataclasses

from duologue.backends import forced
from duologue.core.backend import Backend, Step
from duologue.core.prompt import Probe
from duologue.types import InputState


class Forced(forced.Forced):
    """Runs every pass for real, probe and all, and then only replaces `Step.p`: `verdict` gets probability `p`."""

    def __init__(self, backend: Backend, probe: Probe) -> None:
        super().__init__(backend, self._decided)
        self._states = probe.states
        self.verdict = InputState.PROCESS
        self.p = 0.9  # below `Policy.p_sure`: an answer to words that may grow is prepared, not released

    def _decided(self, step: Step) -> Step:
        rest = (1.0 - self.p) / (len(self._states) - 1)
        p = tuple(self.p if state is self.verdict else rest for state in self._states)
        return dataclasses.replace(step, p=p) if step.p else step
