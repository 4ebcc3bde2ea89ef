"""The contract of `core.backend.Backend` as functions that every backend must pass. For tests.

`CHECKS` lists those that only need a way to open the backend. Each raises `AssertionError` with a description of what
is broken. They compare a backend with itself (rolled back with never fed, packed with alone), so they apply to any
model. `random_walk` compares a backend with a twin, normally `ReferenceBackend` with the same weights.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from math import exp, log
from random import Random
from typing import Protocol

from duologue.core.backend import Backend, Draw, Extend, Sampling, Step, TokenScore, Usage, num_passes
from duologue.errors import CacheFull, ContextOverflow, DuologueError, UnknownSeq, UsageError
from duologue.types import Seq, Token


class Opener(Protocol):
    """Opens the backend under test, always with the same weights. It may round limits up, as `info` then shows."""

    def __call__(self, *, capacity: int, max_seqs: int, context_length: int) -> Backend: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test."""

    opener: Opener
    tolerance: float = 1e-4  # how far probabilities may differ between passes of different width
    tie: float = 1e-3  # below this margin of the best two logits, rounding may decide which token is drawn
    num_passes: Callable[[Backend], int] | None = None  # forward passes of the model so far, if they can be counted
    _pending: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False, compare=False)

    @contextmanager
    def open(self, *, capacity: int = 256, max_seqs: int = 8, context_length: int = 64) -> Iterator[Backend]:
        """An open backend, closed afterwards. Then what `require_fresh` has asked for is compared."""
        backend = self.opener(capacity=capacity, max_seqs=max_seqs, context_length=context_length)
        try:
            yield backend
        finally:
            backend.close()
        while self._pending:
            self._pending.pop(0)()

    @contextmanager
    def begun(self) -> Iterator[tuple[Backend, Seq]]:
        """An open backend, and a sequence of it in which `PREFIX` is cached."""
        with self.open() as backend:
            seq = backend.fork(None)
            backend.forward([Extend(seq, PREFIX)])
            yield backend, seq

    def same(self, got: Step, expected: Step, what: str) -> None:
        """Require that two steps are equal up to rounding."""
        _require(got.ticket == expected.ticket, f"{what}: ticket {got.ticket} instead of {expected.ticket}")
        sizes, wanted = ([len(group) for group in step.p] for step in (got, expected))
        require_equal(sizes, wanted, f"{what}: sizes of the watched groups")
        pairs = [*zip(chain.from_iterable(got.p), chain.from_iterable(expected.p), strict=True)]
        pairs += [
            (exp(one.logprob), exp(other.logprob)) for one, other in zip(got.scores, expected.scores, strict=True)
        ]
        worst = max((abs(a - b) for a, b in pairs), default=0.0)
        _require(worst <= self.tolerance, f"{what}: probabilities differ by {worst:.2g}: {got} and {expected}")
        self._same_token((got.tokens, got.margin), (expected.tokens, expected.margin), what)
        for one, other in zip(got.scores, expected.scores, strict=True):
            self._same_token(((one.greedy,), one.margin), ((other.greedy,), other.margin), what)

    def _same_token(
        self,
        got: tuple[tuple[Token, ...], float | None],
        expected: tuple[tuple[Token, ...], float | None],
        what: str,
    ) -> None:
        """Require the same tokens, unless the margins say that rounding decides."""
        margins = (got[1], expected[1])
        is_tie = all(margin is not None and margin < self.tie for margin in margins)
        _require(got[0] == expected[0] or is_tie, f"{what}: token {got[0]} instead of {expected[0]}, margins {margins}")

    def require_fresh(
        self, backend: Backend, seq: Seq, held: Sequence[Token], tokens: tuple[Token, ...], what: str
    ) -> None:
        """Feed `tokens` to `seq`, and require the result of a new backend that is fed `held` and `tokens` at once.

        They are compared when `backend` is closed, so that no two backends are open at the same time.
        """
        extend = Extend(seq, tokens, watch=WATCH)
        step = backend.forward([extend])[0]
        self._pending.append(lambda: self.same(step, self.alone((*held, *tokens), extend), what))

    def alone(self, tokens: Sequence[Token], like: Extend) -> Step:
        """The step of `like` when all `tokens` are fed at once to a new backend that does nothing else."""
        with self.open() as backend:
            seq = backend.fork(None)
            return backend.forward([replace(like, seq=seq, tokens=tuple(tokens))])[0]


def ids(seed: int, number: int) -> tuple[Token, ...]:
    """Base ids below 256, which every model has; the same for the same seed."""
    random = Random(seed)
    return tuple(random.randrange(3, 256) for _ in range(number))


PREFIX = ids(1, 14)
WORDS = ids(2, 9)
OTHER = ids(3, 7)
WATCH = (ids(4, 3), (261, 17, 99), (5,))
"""Three groups of ids."""


def check_rollback_is_as_if_never_fed(subject: Subject) -> None:
    """Truncating to any length and feeding other tokens equals a fresh run."""
    for length in (0, 1, len(PREFIX) - 1, len(PREFIX)):
        with subject.begun() as (backend, seq):
            backend.forward([Extend(seq, OTHER)])
            backend.forward([Extend(seq, WORDS[:1], draw=Draw())])
            backend.truncate(seq, length)
            require_equal(backend.length(seq), length, "length after truncate")
            require_equal(backend.usage().kv_entries, length, "entries after truncate")
            subject.require_fresh(backend, seq, PREFIX[:length], WORDS, f"rolled back to {length}")


def check_probe_leaves_nothing(subject: Subject) -> None:
    """A probe that is fed, read and rolled back after every word does not change later results."""
    with subject.open() as backend:
        seq = backend.fork(None)
        for index, token in enumerate(PREFIX):
            watch = (states_of(backend),) if index % 2 and states_of(backend) else WATCH
            backend.forward([Extend(seq, (token, *OTHER, *probe_of(backend)), watch=watch)])
            backend.truncate(seq, index + 1)
        subject.require_fresh(backend, seq, PREFIX, WORDS, "after fourteen probes")


def check_drop_leaves_the_other_channel_alone(subject: Subject) -> None:
    """An answer is the same whether or not an input channel was forked from it, fed beside it and freed."""
    said = [_answer(subject, talked_over) for talked_over in (False, True)]
    for index, (alone, over) in enumerate(zip(*said, strict=True)):
        subject.same(over, alone, f"token {index} of an answer that was talked over")


def _answer(subject: Subject, talked_over: bool) -> list[Step]:
    steps: list[Step] = []
    with subject.open() as backend:
        output = backend.fork(None)
        backend.forward([Extend(output, PREFIX, draw=Draw())])
        words: Seq | None = None
        for index, forced in enumerate(WORDS):
            if talked_over and index in (2, 6):
                words = backend.fork(output, backend.length(output) - 1)
            batch = [Extend(output, (forced,), draw=Draw(), ticket=index)]
            if words is not None:
                batch.insert(index % 2, Extend(words, OTHER[: 1 + index % 3], watch=WATCH))
            steps += [step for step in backend.forward(batch) if step.tokens]
            if words is not None and index in (4, 7):
                backend.free(words)
                words = None
    return steps


def check_promotion_equals_fresh_prefill(subject: Subject) -> None:
    """An input channel forked inside an answer, fed in pieces beside it, then continued, equals a fresh prefill."""
    heard = len(PREFIX) - 4
    with subject.begun() as (backend, output):
        channel = backend.fork(output, heard)
        backend.forward([Extend(channel, WORDS[:4], watch=WATCH), Extend(output, OTHER[:1], draw=Draw())])
        backend.truncate(channel, heard + 3)
        backend.forward([Extend(output, OTHER[1:2], draw=Draw()), Extend(channel, WORDS[3:], watch=WATCH)])
        backend.free(output)
        subject.require_fresh(backend, channel, PREFIX[:heard] + WORDS, OTHER, "promoted channel")


def check_channels_do_not_see_each_other(subject: Subject) -> None:
    """Siblings, their parent and an unrelated sequence in one pass give the same results as each alone."""
    with subject.begun() as (backend, parent):
        stranger = backend.fork(None)
        first, second = backend.fork(parent, len(PREFIX)), backend.fork(parent, 5)
        fed = {parent: OTHER[:1], stranger: WORDS[::-1], first: WORDS, second: OTHER}
        before = {parent: PREFIX, stranger: (), first: PREFIX, second: PREFIX[:5]}
        batch = [Extend(seq, tokens, watch=WATCH, ticket=10 + seq) for seq, tokens in fed.items()]
        steps = backend.forward(batch)
    for extend, step in zip(batch, steps, strict=True):
        subject.same(step, subject.alone(before[extend.seq] + extend.tokens, extend), f"sequence {extend.seq} of four")


def check_forks_of_every_length(subject: Subject) -> None:
    """A fork of length 0, of a part or of everything continues exactly from there."""
    for length in (0, 1, 7, len(PREFIX)):
        with subject.begun() as (backend, parent):
            child = backend.fork(parent, length)
            require_equal(backend.length(child), length, "length of a fork")
            require_equal(backend.usage().kv_entries, len(PREFIX), "entries after a fork")
            subject.require_fresh(backend, child, PREFIX[:length], WORDS, f"fork of length {length}")


def check_grandchildren_outlive_their_parents(subject: Subject) -> None:
    """A fork of a fork keeps the tokens it shares when parent and grandparent are cut and freed."""
    with subject.begun() as (backend, old):
        middle = backend.fork(old, 10)
        backend.forward([Extend(middle, WORDS)])
        young = backend.fork(middle, 13)
        backend.truncate(old, 3)
        backend.free(old)
        backend.truncate(middle, 4)
        backend.forward([Extend(middle, OTHER)])
        backend.free(middle)
        require_equal(backend.usage().kv_entries, 13, "entries of the grandchild")
        subject.require_fresh(backend, young, PREFIX[:10] + WORDS[:3], OTHER, "grandchild")


def check_shared_entries_count_once(subject: Subject) -> None:
    """`usage` counts an entry once, however many sequences hold it, until the last of them releases it."""
    with subject.begun() as (backend, parent):
        children = [backend.fork(parent, 10) for _ in range(3)]
        backend.forward([Extend(child, WORDS[:2]) for child in children])
        per_token = backend.info.kv_bytes_per_token
        expected = [(4, 20), (3, 16), (2, 14), (1, 12), (0, 0)]
        for seq, (num_left, kept) in zip((None, parent, *children), expected, strict=True):
            if seq is not None:
                backend.free(seq)
            require_equal(backend.usage(), Usage(num_left, kept, kept * per_token), "what the backend holds")
        _require(backend.fork(None) not in (parent, *children), "the name of a freed sequence was reused")


def check_one_pass_whatever_the_number_of_channels(subject: Subject) -> None:
    """`forward` runs the model once, for one channel and for seven; with probes, as often as `info` declares.

    With several caches, this applies to a sequence and its forks. It needs `Subject.num_passes`.
    """
    if subject.num_passes is None:
        raise UsageError("give Subject a num_passes to check how often the model runs")
    with subject.begun() as (backend, parent):
        seqs = [backend.fork(parent, 3 + index) for index in range(4)]
        seqs += [backend.fork(None if backend.info.num_caches == 1 else parent) for _ in range(2)]
        probe = probe_of(backend)
        for batch in ([parent], [parent, seqs[0]], [parent, *seqs]):
            for start, end, expected in ((1, (), 1), (1, probe, 1 + backend.info.probe_passes), (0, probe or WORDS, 1)):
                extends = [Extend(seq, OTHER[: start * (1 + seq % 4)] + end, watch=WATCH) for seq in batch]
                before = subject.num_passes(backend)
                require_equal(num_passes(backend.forward(extends)), expected, "passes that the steps declare")
                require_equal(subject.num_passes(backend) - before, expected, f"passes for {len(batch)} channels")


def check_lora_leaves_the_base_alone(subject: Subject, bare: Subject) -> None:
    """With the LoRA, answers and words are cached and continued bit for bit as without it; only decisions differ.

    `bare` opens the same backend with the same rows but without the LoRA.
    """
    with subject.open() as backend:
        is_apart = backend.info.probe_passes > 0
        drawn, judged = _probed_answer(backend, is_apart=False)
    with bare.open() as backend:
        plain, plainly_judged = _probed_answer(backend, is_apart=is_apart)
    require_equal(drawn, plain, "what was drawn")
    differences = [abs(a.p[0][0] - b.p[0][0]) for a, b in zip(judged, plainly_judged, strict=True)]
    _require(max(differences) > 0.01, f"the LoRA changes no decision: {differences}")


def check_cascade(cascade: Callable[[float], Subject], rows: Subject, lora: Subject) -> None:
    """A probe is judged as by the rows alone if they are sure, and else as by the LoRA; the base does not change.

    `cascade` makes the subject with this limit. `rows` opens the same backend with the rows of the cascade as its
    adapter, and `lora` with an adapter without the cascade.
    """
    with rows.open() as backend:
        plain, by_rows = _probed_answer(backend, is_apart=False)
    with lora.open() as backend:
        _, by_lora = _probed_answer(backend, is_apart=False)
    highest = [max(step.p[0]) for step in by_rows]
    limit = sorted(highest)[len(highest) // 2]
    subject = cascade(limit)
    with subject.open() as backend:
        require_equal(backend.info.cascade_limit, limit, "limit of the cascade")
        drawn, judged = _probed_answer(backend, is_apart=False)
    require_equal(drawn, plain, "what was drawn")
    is_sure = [p >= limit for p in highest]
    _require(len(set(is_sure)) == 2, f"the rows are equally sure of all probes: {highest}")
    require_equal([not step.is_apart for step in judged], is_sure, "probes without a pass of their own")
    for step, sure, row, second in zip(judged, is_sure, by_rows, by_lora, strict=True):
        if sure:
            require_equal(step, row, "a probe of which the rows are sure")
        else:
            subject.same(step, second, "a probe of which the rows are unsure")


def _probed_answer(backend: Backend, *, is_apart: bool) -> tuple[list[Step], list[Step]]:
    """An answer with words and probes beside it; `is_apart`: probes in separate calls. Returns draws and decisions."""
    drawn, judged = list[Step](), list[Step]()
    probe, states = probe_of(backend), states_of(backend)
    output = backend.fork(None)
    backend.forward([Extend(output, PREFIX)])
    words = backend.fork(output, len(PREFIX) - 3)
    for forced in WORDS:
        speech = Extend(output, (forced,), draw=Draw())
        if is_apart:
            drawn += backend.forward([speech, Extend(words, OTHER[:2])])[:1]
            judged += backend.forward([Extend(words, probe, watch=(states,))])
        else:
            step, judgement = backend.forward([speech, Extend(words, OTHER[:2] + probe, watch=(states,))])
            drawn, judged = [*drawn, step], [*judged, judgement]
        backend.truncate(words, backend.length(words) - 1)
    drawn += backend.forward([Extend(words, OTHER[:1], draw=Draw())])
    return drawn, judged


def check_chunked_prefill_equals_whole(subject: Subject) -> None:
    """Feeding in chunks of any size ends with the same result as feeding at once."""
    text = PREFIX + WORDS + OTHER
    for size in (1, 4, 11):
        with subject.open() as backend:
            seq = backend.fork(None)
            for start in range(0, len(text) - 1, size):
                backend.forward([Extend(seq, text[start : min(start + size, len(text) - 1)])])
            subject.require_fresh(backend, seq, text[:-1], text[-1:], f"prefill in chunks of {size}")


def check_draws_follow_the_distribution(subject: Subject) -> None:
    """Greedy draws the most probable base id, `uniform` selects by descending probability, watched groups sum to 1."""
    with subject.begun() as (backend, base):
        everything = tuple(range(backend.info.vocab_size))

        def step(draw: Draw | None, watch: tuple[tuple[Token, ...], ...] = ()) -> Step:
            backend.truncate(base, len(PREFIX) - 1)
            return backend.forward([Extend(base, PREFIX[-1:], draw, watch)])[0]

        (p,) = step(None, (everything,)).p
        _require(abs(sum(p) - 1.0) < 1e-3, f"watched probabilities sum to {sum(p)}")
        scales = [sum(p[token] for token in group) for group in WATCH]
        few = tuple(tuple(p[token] / all_p for token in group) for group, all_p in zip(WATCH, scales, strict=True))
        subject.same(step(None, WATCH), Step(0, p=few), "a softmax over each group")
        order = sorted(everything, key=lambda token: (-p[token], token))
        greedy = step(Draw(Sampling(), 0.99))
        require_equal(greedy.tokens, (order[0],), "greedy token")
        _require(greedy.margin is not None and greedy.margin >= 0.0, f"margin of a draw is {greedy.margin}")
        for sampling in (Sampling(1.0), Sampling(1.0, top_k=20), Sampling(1.0, top_p=0.8), Sampling(1.0, 40, 0.5)):
            kept = _kept(p, order, sampling)
            for uniform in (0.0, 0.31, 0.62, 0.93):
                _drawn_at(step(Draw(sampling, uniform)).tokens, p, kept, uniform, subject.tolerance)


def _kept(p: Sequence[float], order: list[Token], sampling: Sampling) -> list[Token]:
    kept = order[: sampling.top_k or len(order)]
    if sampling.top_p == 1.0:
        return kept
    totals = list(accumulate(p[token] for token in kept))
    return kept[: 1 + bisect_left(totals, sampling.top_p * totals[-1])]


def _drawn_at(
    tokens: tuple[Token, ...], p: Sequence[float], kept: list[Token], uniform: float, tolerance: float
) -> None:
    """Require that the drawn token covers `uniform` of the kept probability, up to rounding."""
    _require(len(tokens) == 1 and tokens[0] in kept, f"drew {tokens}, which is not among the {len(kept)} kept tokens")
    whole = sum(p[token] for token in kept)
    below = sum(p[token] for token in kept[: kept.index(tokens[0])]) / whole
    above = below + p[tokens[0]] / whole
    slack = 10 * tolerance
    _require(below - slack <= uniform <= above + slack, f"uniform {uniform} drew a token of {below:.4f} … {above:.4f}")


def check_scores_are_log_probabilities(subject: Subject) -> None:
    """A scored token has the log-probability of a softmax over the base vocabulary, however it is fed."""
    expected = [_token_score(subject, PREFIX + WORDS[:length], WORDS[length]) for length in range(len(WORDS))]
    fed = (PREFIX[-1], *WORDS[:-1])
    with subject.begun() as (backend, seq):
        context = backend.fork(seq, len(PREFIX) - 1)
        (whole,) = backend.forward([Extend(context, fed, ticket=3, score=WORDS)])
        subject.same(whole, Step(3, scores=tuple(expected)), "a continuation after a cached context")
        backend.truncate(context, len(PREFIX) - 1)
        parts = backend.forward(
            [
                Extend(seq, OTHER[:1], draw=Draw()),
                Extend(context, fed[:4], score=WORDS[2:4]),
                Extend(backend.fork(None), (*PREFIX, *WORDS[:-1]), score=WORDS),
            ]
        )
        subject.same(parts[1], Step(0, scores=tuple(expected[2:4])), "the end of an Extend beside other sequences")
        subject.same(parts[2], Step(0, scores=tuple(expected)), "a continuation with its context in one pass")
        (rest,) = backend.forward([Extend(context, fed[4:], score=WORDS[4:])])
        subject.same(rest, Step(0, scores=tuple(expected[4:])), "the rest of a continuation")
    _score_many(subject)


def _score_many(subject: Subject) -> None:
    """Every token of a wide pass is scored as it is alone."""
    texts = [ids(20 + number, 48) for number in range(4)]
    with subject.open() as backend:
        batch = [Extend(backend.fork(None), text, score=text[::-1]) for text in texts]
        steps = backend.forward(batch)
    for extend, step in zip(batch, steps, strict=True):
        subject.same(step, subject.alone(extend.tokens, extend), "a text among four, scored at every token")


def _token_score(subject: Subject, before: tuple[Token, ...], token: Token) -> TokenScore:
    """What the distribution after `before` says of `token`, by watching the whole vocabulary."""
    with subject.open() as backend:
        seq = backend.fork(None)
        everything = tuple(range(backend.info.vocab_size))
        ((p,),) = [step.p for step in backend.forward([Extend(seq, before, watch=(everything,))])]
    first, second = sorted(p, reverse=True)[:2]
    return TokenScore(log(p[token]), p.index(first), log(first / second))


def check_illegal_calls_change_nothing(subject: Subject) -> None:
    """Every illegal call raises the documented error and has no effect on later calls."""
    with subject.begun() as (backend, seq):
        gone, child = backend.fork(None), backend.fork(seq, 5)
        backend.free(gone)
        num_ids = backend.info.vocab_size + backend.info.num_added
        good = Extend(child, WORDS)
        calls = _illegal_calls(backend, seq, gone, good, num_ids)
        if backend.info.probe_passes:
            misplaced = [good, Extend(seq, (*probe_of(backend), 5))]
            calls.append((UsageError, lambda: backend.forward(misplaced)))
        for error, call in calls:
            before = backend.usage(), backend.length(seq), backend.length(child)
            refuses(error, call)
            require_equal(
                (backend.usage(), backend.length(seq), backend.length(child)), before, "state after a refused call"
            )
        subject.require_fresh(backend, seq, PREFIX, WORDS, "after refused calls")
        subject.require_fresh(backend, child, PREFIX[:5], OTHER, "fork after refused calls")


def _illegal_calls(
    backend: Backend, seq: Seq, gone: Seq, good: Extend, num_ids: int
) -> list[tuple[type[DuologueError], Callable[[], object]]]:
    long = backend.info.context_length

    def fed(*extends: Extend) -> Callable[[], object]:
        return lambda: backend.forward(list(extends))

    return [
        (UsageError, fed()),
        (UsageError, fed(good, Extend(seq, ()))),
        (UsageError, fed(good, Extend(good.seq, OTHER))),
        (UsageError, fed(good, Extend(seq, (5, -1)))),
        (UsageError, fed(good, Extend(seq, (5, num_ids)))),
        (UsageError, fed(good, Extend(seq, (5,), watch=((3, num_ids),)))),
        (UsageError, fed(good, Extend(seq, (5,), watch=((3,), ())))),
        (UsageError, fed(good, Extend(seq, (5,), draw=Draw(), watch=((3,),)))),
        (UsageError, fed(good, Extend(seq, (5,), draw=Draw(), score=(3,)))),
        (UsageError, fed(good, Extend(seq, (5,), watch=((3,),), score=(3,)))),
        (UsageError, fed(good, Extend(seq, (5,), score=(3, 4)))),
        (UsageError, fed(good, Extend(seq, (5,), score=(backend.info.vocab_size,)))),
        (UsageError, fed(good, Extend(seq, (*probe_of(backend), num_ids), score=(3,)))),
        (UnknownSeq, fed(good, Extend(gone, (5,)))),
        (ContextOverflow, fed(good, Extend(seq, (5,) * (long - len(PREFIX) + 1)))),
        (UnknownSeq, lambda: backend.fork(gone, 0)),
        (UsageError, lambda: backend.fork(seq, len(PREFIX) + 1)),
        (UsageError, lambda: backend.fork(seq, -1)),
        (UsageError, lambda: backend.fork(None, 1)),
        (UnknownSeq, lambda: backend.truncate(gone, 0)),
        (UsageError, lambda: backend.truncate(seq, len(PREFIX) + 1)),
        (UsageError, lambda: backend.truncate(seq, -1)),
        (UnknownSeq, lambda: backend.free(gone)),
        (UnknownSeq, lambda: backend.length(gone)),
    ]


def check_limits(subject: Subject) -> None:
    """The context, the capacity and the number of sequences can be used up to the last entry, but not beyond.

    With several caches, one of them is filled, with a sequence and its forks.
    """
    with subject.open(capacity=40, max_seqs=6, context_length=24) as backend:
        info = backend.info
        capacity, max_seqs = info.capacity // info.num_caches, info.max_seqs // info.num_caches
        seqs = [backend.fork(None)]
        left = capacity
        while left > 2:
            room = info.context_length - backend.length(seqs[-1])
            if room == 0 and len(seqs) < max_seqs:
                seqs.append(backend.fork(None if info.num_caches == 1 else seqs[0]))
                continue
            _require(room > 0, f"max_seqs {max_seqs} times the context is less than the capacity {capacity}")
            number = min(left - 2, room, 16)
            backend.forward([Extend(seqs[-1], ids(left, number))])
            left -= number
        while len(seqs) < max_seqs:
            seqs.append(backend.fork(seqs[0], 3))
        refuses(CacheFull, lambda: backend.fork(None if info.num_caches == 1 else seqs[0]))
        refuses(CacheFull, lambda: backend.forward([Extend(seqs[-1], OTHER[:3])]))
        require_equal(backend.usage().kv_entries, capacity - 2, "entries after a refused pass")
        backend.forward([Extend(seqs[-1], OTHER[:2])])
        refuses(CacheFull, lambda: backend.forward([Extend(seqs[-1], OTHER[:1])]))
        backend.truncate(seqs[-1], 3)
        backend.free(seqs[-2])
        subject.require_fresh(backend, seqs[-1], ids(capacity, 3), OTHER[:2], "after a full cache")
        _full_context(backend, seqs)


def _full_context(backend: Backend, seqs: list[Seq]) -> None:
    """A sequence holds exactly `context_length` tokens."""
    for seq in [seq for seq in seqs if seq != seqs[-2]]:
        backend.free(seq)
    seq, length = backend.fork(None), backend.info.context_length
    backend.forward([Extend(seq, ids(9, length - 1))])
    refuses(ContextOverflow, lambda: backend.forward([Extend(seq, OTHER[:2])]))
    require_equal(backend.length(seq), length - 1, "length after a refused pass")
    backend.forward([Extend(seq, OTHER[:1], draw=Draw())])
    refuses(ContextOverflow, lambda: backend.forward([Extend(seq, OTHER[:1])]))
    require_equal(backend.length(seq), length, "length of a full context")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_rollback_is_as_if_never_fed,
    check_probe_leaves_nothing,
    check_drop_leaves_the_other_channel_alone,
    check_promotion_equals_fresh_prefill,
    check_channels_do_not_see_each_other,
    check_forks_of_every_length,
    check_grandchildren_outlive_their_parents,
    check_shared_entries_count_once,
    check_chunked_prefill_equals_whole,
    check_draws_follow_the_distribution,
    check_scores_are_log_probabilities,
    check_illegal_calls_change_nothing,
    check_limits,
)


def probe_of(backend: Backend) -> tuple[Token, ...]:
    """The adapter's first probe token, or nothing if it adds no ids."""
    return (backend.info.vocab_size,) if backend.info.num_added else ()


def states_of(backend: Backend) -> tuple[Token, ...]:
    """The adapter's output rows, or nothing if it adds no ids."""
    info = backend.info
    return tuple(range(info.vocab_size + 1, info.vocab_size + info.num_added))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def require_equal(got: object, expected: object, what: str) -> None:
    """Raise `AssertionError` unless both are equal."""
    _require(got == expected, f"{what}: {got} instead of {expected}")


def refuses(error: type[DuologueError], call: Callable[[], object]) -> None:
    """Raise `AssertionError` unless `call` raises `error` with a message that says something."""
    try:
        call()
    except error as raised:
        _require(len(str(raised)) > 20, f"the message of {type(raised).__name__} is not helpful: {raised}")
        return
    raise AssertionError(f"an illegal call succeeded instead of raising {error.__name__}")
