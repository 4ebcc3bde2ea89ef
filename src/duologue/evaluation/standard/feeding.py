"""Scores continuations and generates text on a backend. What consecutive texts have in common is fed once.

The *trunk* is a sequence with the common beginning of a batch. It stays cached, so the next batch feeds only what
differs: with the five examples of a subject in the trunk, a question of MMLU costs its own tokens. Knows ids, not text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

from duologue.core.backend import Backend, Draw, Extend, Step, TokenScore
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said after a prompt, with the margin of each token (see `Step.margin`)."""

    tokens: Tokens
    margins: tuple[float, ...]


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
        self, batch: Sequence[Prompt], is_over: Callable[[int, Token], bool], stop_tokens: frozenset[Token]
    ) -> list[Answer]:
        """The answers to `batch`, one of `batches`.

        An answer ends before a stop token, after `max_tokens`, or after a token for which `is_over(index in the batch,
        token)` says so. `is_over` is told every token.
        """
        self._grow([item.context[:-1] for item in batch])
        said: list[tuple[list[Token], list[float]]] = [([], []) for _ in batch]
        with ExitStack() as freed:
            assert self._trunk is not None
            seqs = [self._fork(self._trunk, freed) for _ in batch]
            fed = {i: item.context[len(self._held) :] for i, item in enumerate(batch)}
            while fed:
                steps = self._forward([Extend(seqs[i], tokens, draw=Draw()) for i, tokens in fed.items()])
                drawn, fed = dict(zip(fed, steps, strict=True)), {}
                for i, step in drawn.items():
                    tokens, margins = said[i]
                    if step.tokens[0] in stop_tokens:
                        continue
                    assert step.margin is not None
                    tokens.append(step.tokens[0])
                    margins.append(step.margin)
                    if not is_over(i, tokens[-1]) and len(tokens) < batch[i].max_tokens:
                        fed[i] = step.tokens
        return [Answer(tuple(tokens), tuple(margins)) for tokens, margins in said]

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
        """One pass, and what is listened to beside the first sequence."""
        if self.listening is None:
            return self.backend.forward(batch)
        listening = self.listening
        with ExitStack() as freed:
            fork = self._fork(batch[0].seq, freed)
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
    """A batch that grows while texts fit into it."""

    backend: Backend
    items: list[_Text] = field(default_factory=list)
    stem: Tokens = ()  # common beginning of the contexts, without their last tokens
    num_contexts: int = 0
    size: int = 0  # tokens after the stem, to be fed or generated

    def takes(self, item: _Text) -> bool:
        """Add `item`, unless the batch would become too large, or would feed too much again."""
        if not self.items:
            self.stem = item.context[:-1]
            self._add(item, is_new=True)
            return True
        is_new = item.context != self.items[-1].context
        stem = common([self.stem, item.context[:-1]])
        refed = (len(self.stem) - len(stem)) * self.num_contexts
        own = _own(item) + is_new * (len(item.context) - 1 - len(stem))
        size, info = self.size + refed + own, self.backend.info
        num_seqs = len(self.items) + 1 + self.num_contexts + is_new + _SPARE_SEQS
        room = info.capacity - info.capacity // 4 - len(stem)  # a quarter for words that are listened to, and gaps
        if num_seqs > info.max_seqs or size > (room if _is_prompt(item) else min(room, _TOKENS_PER_PASS)):
            return False
        if self.num_contexts > 1 and refed > _MAX_REFED:
            return False
        self.stem, self.size = stem, self.size + refed
        self._add(item, is_new=is_new)
        return True

    def _add(self, item: _Text, *, is_new: bool) -> None:
        self.items.append(item)
        self.num_contexts += is_new
        self.size += _own(item) + is_new * (len(item.context) - 1 - len(self.stem))


def _is_prompt(item: Continuation | Prompt) -> bool:
    return isinstance(item, Prompt)


def _own(item: Continuation | Prompt) -> int:
    """The KV entries that a text needs beyond all but the last token of its context."""
    return len(item.tokens) if isinstance(item, Continuation) else 1 + item.max_tokens


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
