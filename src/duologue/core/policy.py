"""When a probability becomes an action. Numbers only; what the actions are is in `transitions`."""

from collections.abc import Mapping
from dataclasses import dataclass

from duologue.errors import UsageError
from duologue.types import InputState


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How probable each state must be, as calibrated for one adapter and weight type.

    The state with the largest p / threshold is chosen, so equal thresholds choose the most probable one and there is
    always exactly one choice.
    """

    process: float = 0.5
    incomplete: float = 0.5
    ignore: float = 0.5
    stop: float = 0.5

    def __post_init__(self) -> None:
        for state in InputState:
            if not 0.0 < self.of(state) <= 1.0:
                raise UsageError(f"threshold of {state} is {self.of(state)}; it must be in (0, 1]")

    def of(self, state: InputState) -> float:
        """The threshold of `state`."""
        return float(getattr(self, state.value))

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> "Thresholds":
        """From names of states to numbers, as `adapter.json` has it. Raises `UsageError` for an unknown name."""
        unknown = set(values) - {state.value for state in InputState}
        if unknown:
            raise UsageError(f"unknown states {sorted(unknown)} in thresholds; known: {[s.value for s in InputState]}")
        return cls(**{name: float(value) for name, value in values.items()})
