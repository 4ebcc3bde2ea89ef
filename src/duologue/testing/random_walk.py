"""Random operations on a backend and on its twin, which must give the same results. For tests."""

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from random import Random

from duologue.core.backend import Backend, Draw, Extend, Sampling
from duologue.errors import CacheFull
from duologue.testing.contract import WATCH, Subject, ids, probe_of, require_equal
from duologue.types import Seq, Token


def check_random_operations(subject: Subject, twin: Backend, *, seed: int, num_operations: int = 60) -> None:
    """A random conversation with forks, rollbacks and frees has the same results on the backend and on its twin.

    `twin` must have the same weights and rows, no open sequences, and at least the same capacity. Its sequences are
    freed at the end.
    """
    with subject.open() as backend:
        walk = _Walk(subject, backend, twin, Random(seed))
        for _ in range(num_operations):
            walk.one()
        for _, other in walk.pairs:
            twin.free(other)


@dataclass(slots=True, eq=False)
class _Walk:
    """The same random operations on two backends."""

    subject: Subject
    backend: Backend
    twin: Backend
    random: Random
    pairs: list[tuple[Seq, Seq]] = field(default_factory=list)
    num_done: int = 0

    @property
    def unless_full(self) -> AbstractContextManager[None]:
        """Lets an operation fail where one of several caches can be full though others are not."""
        return suppress(CacheFull) if self.backend.info.num_caches > 1 else nullcontext()

    def one(self) -> None:
        """Execute one legal operation."""
        self.num_done += 1
        name = self.random.choices(["fork", "forward", "truncate", "free"], [3, 8, 2, 1])[0]
        if not self.pairs or name == "fork":
            self.fork()
        elif name == "forward":
            self.forward()
        elif name == "truncate":
            seq, other = self.random.choice(self.pairs)
            length = self.random.randint(0, self.backend.length(seq))
            self.backend.truncate(seq, length)
            self.twin.truncate(other, length)
        else:
            self.free()
        held = [(usage.num_seqs, usage.kv_entries) for usage in (self.backend.usage(), self.twin.usage())]
        require_equal(held[0], held[1], f"sequences and entries after operation {self.num_done} ({name})")

    def fork(self) -> None:
        if len(self.pairs) == self.backend.info.max_seqs:
            self.free()
        if not self.pairs or self.random.random() < 0.2:
            self.pairs.append((self.backend.fork(None), self.twin.fork(None)))
            return
        parent = self.random.choice(self.pairs)
        length = self.random.randint(0, self.backend.length(parent[0]))
        with self.unless_full:
            self.pairs.append((self.backend.fork(parent[0], length), self.twin.fork(parent[1], length)))

    def free(self) -> None:
        pair = self.pairs.pop(self.random.randrange(len(self.pairs)))
        self.backend.free(pair[0])
        self.twin.free(pair[1])

    def forward(self) -> None:
        batch: list[Extend] = []
        free = self.backend.info.capacity - self.backend.usage().kv_entries
        for pair in self.random.sample(self.pairs, self.random.randint(1, len(self.pairs))):
            room = min(free, self.backend.info.context_length - self.backend.length(pair[0]))
            if room < 1:
                continue
            tokens = ids(self.random.randrange(1 << 30), self.random.randint(1, min(6, room)))
            free -= len(tokens)
            draw = self.random.choice([None, Draw(), Draw(Sampling(0.9, 50, 0.95), self.random.random())])
            watch = () if draw is not None else self.random.choice([(), self.watch()])
            if watch and len(tokens) > 1 and self.random.random() < 0.5:
                tokens = tokens[:-1] + (probe_of(self.backend) or tokens[-1:])
            score: tuple[Token, ...] = ()
            if draw is None and not watch and self.random.random() < 0.5:
                score = ids(self.random.randrange(1 << 30), self.random.randint(1, len(tokens)))
            batch.append(Extend(pair[0], tokens, draw, watch, ticket=self.random.randrange(1000), score=score))
        if not batch:
            return
        with self.unless_full:
            twins = dict(self.pairs)
            steps = (
                self.backend.forward(batch),
                self.twin.forward([replace(extend, seq=twins[extend.seq]) for extend in batch]),
            )
            for extend, got, expected in zip(batch, *steps, strict=True):
                # Rounding may change a token sampled at the edge of its share of probability: compare greedy ones only.
                is_sampled = extend.draw is not None and extend.draw.sampling.temperature > 0
                if got.tokens == expected.tokens or not is_sampled:
                    self.subject.same(got, expected, f"operation {self.num_done}, sequence {extend.seq}")

    def watch(self) -> tuple[tuple[Token, ...], ...]:
        info = self.backend.info
        states = tuple(range(info.vocab_size + min(1, info.num_added), info.vocab_size + info.num_added))
        mixed = (states[:1] + WATCH[0], *WATCH[1:])
        return self.random.choice([WATCH, (states,), mixed]) if states else WATCH
