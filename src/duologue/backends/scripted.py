"""A backend without a model, for tests and dry runs: two functions draw tokens and judge words.

It stores ids and nothing else, so the functions see each sequence exactly as a model would.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from math import inf

from duologue.backends.ids import IdBackend
from duologue.core.backend import BackendInfo, Extend, Step, TokenScore
from duologue.types import Token


class ScriptedBackend(IdBackend):
    """Draws `speak(ids)` and returns the probabilities `judge(ids)`, those of one watched group after the other.

    `ids` is the whole sequence with its probe. A scored token is certain if `speak` draws it, and otherwise impossible.
    """

    def __init__(
        self,
        speak: Callable[[list[Token]], Token],
        judge: Callable[[list[Token]], Sequence[float]],
        *,
        vocab_size: int,
        num_added: int = 0,
        context_length: int = 1 << 16,
        capacity: int = 1 << 20,
        max_seqs: int = 256,
        embedding_width: int = 0,
    ) -> None:
        self._speak = speak
        self._judge = judge
        super().__init__(
            BackendInfo(
                name="scripted",
                model="a script",
                weights="none",
                vocab_size=vocab_size,
                num_added=num_added,
                context_length=context_length,
                capacity=capacity,
                max_seqs=max_seqs,
                kv_bytes_per_token=0,
                can_truncate=True,
                embedding_width=embedding_width,
            )
        )

    def step(self, extend: Extend, tokens: list[Token]) -> Step:
        if extend.score:
            return Step(extend.ticket, scores=self._scores(extend.score, tokens))
        drawn: tuple[Token, ...] = ()
        log_p: tuple[tuple[Token, float], ...] = ()
        if extend.draw is not None:
            drawn = (self._speak(tokens),)
            wanted = extend.draw.num_alternatives
            log_p = () if wanted is None else ((drawn[0], 0.0),) * (1 + min(wanted, 1))  # it is certain
        p = iter(self._judge(tokens) if extend.watch else ())
        probabilities = tuple(tuple(islice(p, len(group))) for group in extend.watch)
        return Step(extend.ticket, drawn, probabilities, log_p=log_p)

    def _scores(self, wanted: Sequence[Token], tokens: list[Token]) -> tuple[TokenScore, ...]:
        said = [self._speak(tokens[:end]) for end in range(len(tokens) + 1 - len(wanted), len(tokens) + 1)]
        pairs = zip(wanted, said, strict=True)
        return tuple(TokenScore(0.0 if token == drawn else -inf, drawn, inf) for token, drawn in pairs)
