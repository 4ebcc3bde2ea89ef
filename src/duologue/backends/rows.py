"""The rows an adapter adds around a frozen model: embeddings of probe tokens, and output rows of what is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Extend
from duologue.errors import AdapterMismatch, UsageError
from duologue.types import InputState, VirtualId

TIMING_MARKERS = ("<|goes_on|>", "<|ends|>")
"""Text for the ids of the timing pair, in their order."""


@dataclass(frozen=True, eq=False)
class AdapterRows:
    """Vectors for the ids that an adapter adds after the base vocabulary: probe tokens, states, the timing pair.

    With V base ids, P probe tokens and S states, id V + i is probe token i for i < P and state i - P for i < P + S. The
    last two ids are those of the timing pair, if there is one. Feeding a probe token uses its row in place of an
    embedding. Watching another added id uses the dot product of its row and the final, normed hidden state as its
    logit.
    """

    probes: npt.NDArray[np.float32]  # [P, D]
    states: npt.NDArray[np.float32]  # [S, D]
    timing: npt.NDArray[np.float32] | None = None  # [2, D]: the speaker goes on, the turn ends

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the matrices: [P, D], [S, D] and perhaps [2, D]."""
        return tuple(matrix.shape for matrix in (self.probes, *self.output_groups))

    @property
    def num_probes(self) -> int:
        """P."""
        return int(self.probes.shape[0])

    @property
    def output_groups(self) -> tuple[npt.NDArray[np.float32], ...]:
        """The output rows in the order of their ids, by the groups in which they are normalised."""
        return (self.states,) if self.timing is None else (self.states, self.timing)

    @property
    def outputs(self) -> npt.NDArray[np.float32]:
        """All output rows in the order of their ids: [S, D] or [S + 2, D]."""
        return np.concatenate(self.output_groups)

    @property
    def num_added(self) -> int:
        """The number of added ids: P + S, and 2 for a timing pair."""
        return self.num_probes + sum(int(group.shape[0]) for group in self.output_groups)

    def shifted(self, shift: npt.NDArray[np.float32]) -> "AdapterRows":
        """The same with `shift` [D] added to all output rows, which changes no probability within a group."""
        return AdapterRows(self.probes, *(group + shift for group in self.output_groups))

    def check_width(self, width: int, label: str) -> None:
        """Raise `AdapterMismatch` unless the rows fit a model, named `label`, with hidden states of `width`."""
        for name, matrix in zip(("probe", "state", "timing"), (self.probes, *self.output_groups), strict=False):
            if matrix.ndim != 2 or matrix.shape[1] != width:
                raise AdapterMismatch(
                    f"the adapter's {name} rows have shape {matrix.shape}, but {label} has embeddings of width "
                    f"{width}: the adapter was trained for another model"
                )

    def token_names(self, states: Sequence[InputState] = tuple(InputState)) -> list[str]:
        """Text for the added ids: `<|prediction|>` (numbered if there are several), a marker for each state, timing.

        State rows beyond `states` are numbered.
        """
        num_states = int(self.states.shape[0])
        probes = [f"<|prediction_{i}|>" for i in range(self.num_probes)] if self.num_probes != 1 else ["<|prediction|>"]
        markers = [state.marker for state in states][:num_states]
        numbered = [f"<|state_{i}|>" for i in range(len(markers), num_states)]
        return [*probes, *markers, *numbered, *(() if self.timing is None else TIMING_MARKERS)]


def check_added_ids(vocab_size: int, num_probes: int, batch: Sequence[Extend]) -> None:
    """Raise `UsageError` if an output row is fed or a probe token is watched: neither has the row for it."""
    first_state = vocab_size + num_probes
    for extend in batch:
        fed = max((token for token in extend.tokens if not isinstance(token, VirtualId)), default=0)
        if fed >= first_state:
            raise UsageError(f"id {fed} is a state of the adapter; states are watched, never fed")
        for token in extend.watched:
            if vocab_size <= token < first_state:
                raise UsageError(f"id {token} is a probe token of the adapter; probes are fed, never watched")
