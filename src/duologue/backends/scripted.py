"""A backend without a model: two functions say what is drawn and how words are judged. For tests and dry runs.

It keeps ids and nothing else, so the functions see every sequence exactly as a model would.
"""

from collections.abc import Callable, Sequence

from duologue.backends.ids import IdLists
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.types import Seq, Token


class ScriptedBackend(Backend):
    """Draws `speak(ids)` and judges by `judge(ids)`, where `ids` is all that the sequence holds, the probe included."""

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
    ) -> None:
        self._speak = speak
        self._judge = judge
        self._info = BackendInfo(
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
        )
        self._ids = IdLists(self._info)

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._ids.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self._ids.check(batch)
        steps = [self._step(extend) for extend in batch]
        self._ids.extend(batch)
        return steps

    def truncate(self, seq: Seq, length: int) -> None:
        self._ids.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._ids.free(seq)

    def length(self, seq: Seq) -> int:
        return len(self._ids.tokens(seq))

    def usage(self) -> Usage:
        return Usage(self._ids.num_seqs, self._ids.num_entries, 0)

    def _step(self, extend: Extend) -> Step:
        ids = [*self._ids.tokens(extend.seq), *extend.tokens]
        tokens = () if extend.draw is None else (self._speak(ids),)
        p = tuple(self._judge(ids)) if extend.watch else ()
        return Step(extend.ticket, tokens, p)
