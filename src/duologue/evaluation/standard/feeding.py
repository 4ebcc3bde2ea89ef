"""Scores continuations and generates text on a backend. What consecutive texts have in common is fed once.

The *trunk* is a sequence with the common beginning of a batch. It stays cached, so the next batch feeds only what
differs: with the five examples of a subject in the trunk, a question of MMLU costs its own tokens. Knows ids, not text.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

from duologue.core.backend import Backend, BackendInfo, Draw, Extend, Step, TokenScore
from duologue.models.model import Model
from duologue.types import Role, Seq, Token

_TOKENS_PER_PASS = 1024
_MAX_REFED = 256  # a batch ends where the next text would make it feed so many tokens again
_SPARE_SEQS = 2  # the trunk, and the fork that is listened on

Tokens = tuple[Token, ...]
_Text = TypeVar("_Text", "Continuation", "Prompt")


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text to score: how probable `tokens` are after `context`. Neither is empty."""

    context: Tokens
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, greedily, by at most `max_tokens`."""

    context: Tokens
    max_tokens: int

    def own(self, num_shared: int) -> int:
        """The KV entries that the prompt and its answer need beyond the first `num_shared` tokens."""
        return len(self.context) - num_shared + self.max_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said after a prompt, with the margin of each token (see `Step.margin`)."""

    tokens: Tokens
    margins: tuple[float, ...]


@dataclass(slots=True, eq=False)
class _Writing:
    """An answer that is being written."""

    prompt: Prompt
    seq: Seq
    fed: Tokens  # in the next pass
    tokens: list[Token] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def push(self, step: Step) -> None:
        assert step.margin is not None
        self.fed = step.tokens
        self.tokens += step.tokens
        self.margins.append(step.margin)


@dataclass(frozen=True, slots=True)
class Listening:
    """What is fed to a fork of a sequence in every pass and then rolled back, as if somebody spoke over an answer."""

    words: Tokens
    probe: Tokens
    groups: tuple[Tokens, ...]  # of states; empty if ordinary tokens stand in for the probe
    has_own_pass: bool  # the backend feeds the probe in a pass of its own

    @classmethod
    def of(cls, model: Model) -> "Listening":
        """Words and the probe of `model`'s adapter."""
        template = model.template
        words = (*template.joint(Role.ASSISTANT, Role.USER), *template.user("wait a moment please", first=False))
        return cls(words, model.probe.tokens, model.probe.groups, model.backend.info.probe_passes > 0)

    def without_probe(self) -> "Listening":
        """For the base model: as many tokens in the same passes, but ordinary ones instead of the probe."""
        return Listening(self.words, self.words[: len(self.probe)], (), self.has_own_pass)

    @property
    def watch(self) -> tuple[Tokens, ...]:
        """What is read at the probe; a base id, too, so that every backend computes the same logits with and without
        an adapter."""
        return (*self.groups, self.words[:1])


@dataclass(slots=True, eq=False)
class Feeder:
    """Feeds one backend. `close` frees the trunk."""

    backend: Backend
    listening: Listening | None = None
    num_decisions: int = 0  # probes fed so far
    _trunk: Seq | None = None
    _held: Tokens = ()  # what the trunk has cached

    def score(self, batch: Sequence[Continuation]) -> list[tuple[TokenScore, ...]]:
        """The scores of each continuation's tokens. `batch` is one of `batches`."""
        stem = self._grow([item.context[:-1] for item in batch])
        with ExitStack() as freed:
            bases = self._contexts(batch, stem, freed)
            extends = []
            for item in batch:
                base = bases[item.context]
                fed = (*item.context[self.backend.length(base) :], *item.tokens[:-1])
                extends.append(Extend(self._fork(base, freed), fed, score=item.tokens))
            return [step.scores for step in self._forward(extends)]

    def generate(
        self, prompts: Sequence[Prompt], is_over: Callable[[int, Token], bool], stop_tokens: frozenset[Token]
    ) -> Generator[tuple[int, Answer], None, None]:
        """The answers to `prompts`, one of `batches`, each with its index, in the order in which they end.

        As many are written at the same time as the cache has room for; where one ends, the next prompt begins. An
        answer ends before a stop token, after `max_tokens`, or after a token for which `is_over(index, token)` says
        so. `is_over` is told every token.
        """
        stem = self._grow([item.context[:-1] for item in prompts])
        waiting = deque(enumerate(prompts))
        writing: dict[int, _Writing] = {}
        try:
            while waiting or writing:
                self._begin(waiting, writing, len(stem))
                steps = self._forward([Extend(one.seq, one.fed, draw=Draw()) for one in writing.values()])
                for i, step in zip([*writing], steps, strict=True):
                    one, (token,) = writing[i], step.tokens
                    if token not in stop_tokens:
                        one.push(step)
                        if not is_over(i, token) and len(one.tokens) < one.prompt.max_tokens:
                            continue
                    self.backend.free(writing.pop(i).seq)
                    yield i, Answer(tuple(one.tokens), tuple(one.margins))
        finally:
            for one in writing.values():
                self.backend.free(one.seq)

    def _begin(self, waiting: deque[tuple[int, Prompt]], writing: dict[int, "_Writing"], num_shared: int) -> None:
        """Move prompts to `writing` while there is room for their answers: at least one, if nothing is written."""
        assert self._trunk is not None
        info, num_fed = self.backend.info, 0
        room = _room(info) - num_shared - sum(one.prompt.own(num_shared) for one in writing.values())
        while waiting:
            i, prompt = waiting[0]
            room -= prompt.own(num_shared)
            num_fed += len(prompt.context) - num_shared
            fits = room >= 0 and len(writing) < info.max_seqs - _SPARE_SEQS and num_fed <= _TOKENS_PER_PASS
            if writing and not fits:
                return
            waiting.popleft()
            seq = self.backend.fork(self._trunk, self.backend.length(self._trunk))
            writing[i] = _Writing(prompt, seq, prompt.context[num_shared:])

    def close(self) -> None:
        """Free the trunk."""
        if self._trunk is not None:
            self.backend.free(self._trunk)
        self._trunk, self._held = None, ()

    def _grow(self, contexts: Sequence[Tokens]) -> Tokens:
        """Make the trunk hold the longest common beginning of `contexts`, and return it."""
        stem = common(contexts)
        if self._trunk is None:
            self._trunk = self.backend.fork(None)
        kept = len(common([self._held, stem]))
        self.backend.truncate(self._trunk, kept)
        self._held = stem[:kept]
        for start in range(kept, len(stem), _TOKENS_PER_PASS):
            part = stem[start : start + _TOKENS_PER_PASS]
            self._forward([Extend(self._trunk, part)])
            self._held += part
        return stem

    def _contexts(self, batch: Sequence[Continuation], stem: Tokens, freed: ExitStack) -> dict[Tokens, Seq]:
        """For each context, a sequence to fork: with all but its last token, if several texts share it."""
        assert self._trunk is not None
        bases, extends = {}, []
        for context, items in groupby(batch, key=lambda item: item.context):
            bases[context] = self._trunk
            rest = context[len(stem) : -1]
            if rest and len([*items]) > 1:
                bases[context] = self._fork(self._trunk, freed)
                extends.append(Extend(bases[context], rest))
        if extends:
            self._forward(extends)
        return bases

    def _forward(self, batch: list[Extend]) -> list[Step]:
        """One pass, and what is listened to over the first sequence that has begun.

        Words over nothing would be a new sequence. Backends may feed that in a pass of its own if nothing is read
        behind it, so only of the base.
        """
        listening = self.listening
        begun = next((extend.seq for extend in batch if self.backend.length(extend.seq)), None)
        if listening is None or begun is None:
            return self.backend.forward(batch)
        with ExitStack() as freed:
            fork = self._fork(begun, freed)
            if listening.has_own_pass and not listening.groups:
                steps = self.backend.forward([*batch, Extend(fork, listening.words)])[:-1]
                self.backend.forward([Extend(fork, listening.probe, watch=listening.watch)])
            else:
                heard = Extend(fork, (*listening.words, *listening.probe), watch=listening.watch)
                steps = self.backend.forward([*batch, heard])[:-1]
        self.num_decisions += bool(listening.groups)
        return steps

    def _fork(self, parent: Seq, freed: ExitStack) -> Seq:
        seq = self.backend.fork(parent, self.backend.length(parent))
        freed.callback(self.backend.free, seq)
        return seq


def common(texts: Sequence[Tokens]) -> Tokens:
    """The longest common beginning."""
    first, last = min(texts), max(texts)  # a beginning that these two share, all share
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


@dataclass(slots=True)
class _Batch(Generic[_Text]):
    """A batch that grows while texts fit into it. Prompts take turns in the cache, so any number of them fits."""

    backend: Backend
    items: list[_Text] = field(default_factory=list)
    stem: Tokens = ()  # common beginning of the contexts, without their last tokens
    num_contexts: int = 0
    size: int = 0  # tokens of continuations to be fed after the stem

    def takes(self, item: _Text) -> bool:
        """Add `item`, unless the batch would become too large, or would feed too much again."""
        if not self.items:
            self.stem = item.context[:-1]
            self._add(item, is_new=True)
            return True
        is_new = item.context != self.items[-1].context
        stem = common([self.stem, item.context[:-1]])
        refed = (len(self.stem) - len(stem)) * self.num_contexts
        if self.num_contexts > 1 and refed > _MAX_REFED:
            return False
        if isinstance(item, Continuation):
            size = self.size + refed + len(item.tokens) + is_new * (len(item.context) - 1 - len(stem))
            num_seqs = len(self.items) + 1 + self.num_contexts + is_new + _SPARE_SEQS
            info = self.backend.info
            if num_seqs > info.max_seqs or size > min(_room(info) - len(stem), _TOKENS_PER_PASS):
                return False
        self.stem, self.size = stem, self.size + refed
        self._add(item, is_new=is_new)
        return True

    def _add(self, item: _Text, *, is_new: bool) -> None:
        self.items.append(item)
        self.num_contexts += is_new
        if isinstance(item, Continuation):
            self.size += len(item.tokens) + is_new * (len(item.context) - 1 - len(self.stem))


def _room(info: BackendInfo) -> int:
    """KV entries for texts; a quarter of all is for words that are listened to, and gaps."""
    return info.capacity - info.capacity // 4


def batches(texts: Iterable[_Text], backend: Backend) -> Iterator[list[_Text]]:
    """`texts` in their order, divided into batches for `Feeder`. Sort them, so that neighbours begin alike."""
    batch = _Batch[_Text](backend)
    for item in texts:
        if not batch.takes(item):
            yield batch.items
            batch = _Batch[_Text](backend)
            batch.takes(item)
    if batch.items:
        yield batch.items
