"""The rows an adapter adds around a frozen model: input embeddings of probe tokens, output rows of states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from duologue.core.backend import Extend
from duologue.errors import AdapterMismatch, UsageError
from duologue.types import InputState


@dataclass(frozen=True, eq=False)
class AdapterRows:
    """Vectors for the ids that an adapter adds after the base vocabulary: probe tokens first, then states.

    With V base ids, P probe tokens and S states, id V + i is probe token i for i < P and state i - P otherwise. Feeding
    a probe token uses its row in place of an embedding. Watching a state uses the dot product of its row and the
    final, normed hidden state as its logit.
    """

    probes: npt.NDArray[np.float32]  # [P, D]
    states: npt.NDArray[np.float32]  # [S, D]

    @property
    def num_probes(self) -> int:
        """P."""
        return int(self.probes.shape[0])

    @property
    def num_added(self) -> int:
        """P + S, the number of added ids."""
        return self.num_probes + int(self.states.shape[0])

    def check_width(self, width: int, label: str) -> None:
        """Raise `AdapterMismatch` unless the rows fit a model, named `label`, with hidden states of `width`."""
        for name, matrix in (("probe", self.probes), ("state", self.states)):
            if matrix.ndim != 2 or matrix.shape[1] != width:
                raise AdapterMismatch(
                    f"the adapter's {name} rows have shape {matrix.shape}, but {label} has embeddings of width "
                    f"{width}: the adapter was trained for another model"
                )

    def token_names(self, states: Sequence[InputState] = tuple(InputState)) -> list[str]:
        """Text for the added ids: `<|prediction|>` (numbered if there are several), then a marker for each state.

        State rows beyond `states` are numbered.
        """
        num_states = self.num_added - self.num_probes
        probes = [f"<|prediction_{i}|>" for i in range(self.num_probes)] if self.num_probes != 1 else ["<|prediction|>"]
        markers = [state.marker for state in states][:num_states]
        return probes + markers + [f"<|state_{i}|>" for i in range(len(markers), num_states)]


def check_added_ids(vocab_size: int, num_probes: int, batch: Sequence[Extend]) -> None:
    """Raise `UsageError` if a state is fed or a probe token is watched: neither has the row for it."""
    first_state = vocab_size + num_probes
    for extend in batch:
        if max(extend.tokens) >= first_state:
            raise UsageError(f"id {max(extend.tokens)} is a state of the adapter; states are watched, never fed")
        for token in extend.watch:
            if vocab_size <= token < first_state:
                raise UsageError(f"id {token} is a probe token of the adapter; probes are fed, never watched")
