"""Draws the tokens of sampled answers in vLLM by the chances of their session, as the other backends do.

Imported by vLLM, in the process that draws. Shapes: N requests of a pass, V ids.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from duologue.backends.sampling import choose
from duologue.backends.vllm.requests import CHANCE
from duologue.core.backend import Draw, Sampling, uniform


@dataclass(frozen=True, slots=True)
class _Chance:
    """How the tokens of one request are drawn."""

    sampling: Sampling
    uniform: float | None  # of the only token; None: `place` says it
    place: tuple[int, int, int] | None  # seed, turn and index of the first token
    drawn: list[int]  # tokens of the request so far; vLLM appends to it

    @classmethod
    def of(cls, params: Any, drawn: list[int]) -> "_Chance | None":
        """That of a request with the sampling parameters `params`; None: it is greedy."""
        given = (params.extra_args or {}).get(CHANCE)
        if given is None:
            return None
        place = given["place"] and tuple(given["place"])
        return cls(Sampling(*given["sampling"]), given["uniform"], place, drawn)

    @property
    def draw(self) -> Draw:
        """The next draw."""
        if self.place is None:
            assert self.uniform is not None, "one of them is known"
            return Draw(self.sampling, self.uniform)
        seed, turn, index = self.place
        return Draw(self.sampling, uniform(seed, turn, index + len(self.drawn)))


@final
class ChanceProcessor(LogitsProcessor):  # type: ignore[misc]
    """Leaves each sampled request a single token: the one that its chance selects (`duologue.backends.sampling`)."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._chances: dict[int, _Chance] = {}  # by the request's row

    def is_argmax_invariant(self) -> bool:
        """Greedy requests are left alone, but others are drawn here and are greedy for vLLM."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of requests as they come, go and move."""
        if batch_update is None:
            return
        chances = self._chances
        for row in batch_update.removed:
            chances.pop(row, None)
        for row, params, _, drawn in batch_update.added:
            chance = _Chance.of(params, drawn)
            chances.pop(row, None)
            if chance is not None:
                chances[row] = chance
        for one, other, direction in batch_update.moved:
            moved, replaced = chances.pop(one, None), chances.pop(other, None)
            if moved is not None:
                chances[other] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                chances[one] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [N, V] in float32. Returns them with -inf at all tokens of sampled requests but one each."""
        for row, chance in self._chances.items():
            if row < logits.shape[0]:
                token, _ = choose(logits[row].float().cpu().numpy(), chance.draw)
                logits[row] = -torch.inf
                logits[row, token] = 0.0
        return logits
