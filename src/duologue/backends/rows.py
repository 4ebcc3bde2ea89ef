"""Rows that an adapter adds around a frozen model: input embeddings of probe tokens, output rows of state tokens."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Rows:
    """Added ids and their vectors. Ids follow the base vocabulary: first the probe tokens, then the states.

    With V = `vocab_size`, P = number of probe tokens and S = number of states, id V + i is probe token i for i < P and
    state i - P after that. Feeding a probe token puts its row in place of an embedding; watching a state takes the
    dot product of its row with the final (normed) hidden state as its logit.
    """

    probes: npt.NDArray[np.float32]  # [P, D]
    states: npt.NDArray[np.float32]  # [S, D]

    @property
    def num_added(self) -> int:
        """How many ids are added: P + S."""
        return int(self.probes.shape[0] + self.states.shape[0])
