"""A policy with forced decisions, so that measurements do not depend on the model's judgement of the words."""

from dataclasses import dataclass, field

from duologue.core.events import Decision
from duologue.core.policy import Policy
from duologue.types import InputState


@dataclass(slots=True)
class NextDecision:
    """The next decision: `state`, with probability `p`."""

    state: InputState = InputState.PROCESS
    p: float = 1.0


@dataclass(frozen=True)
class ForcedPolicy(Policy):
    """The probe runs as with any other policy; only its probabilities are replaced. Waits are the constant ones."""

    forced: NextDecision = field(default_factory=NextDecision)

    def decide(
        self, states: tuple[InputState, ...], p: tuple[float, ...], *, speaking: bool, p_ends: float | None = None
    ) -> Decision:
        decision = super().decide(states, p, speaking=speaking)
        return Decision(self.forced.state, self.forced.p, decision.probabilities)
