"""What the method needs from a model: fork, forward, truncate and free, over token sequences with a shared KV cache.

A backend holds weights and KV. It knows ids, positions and sequences, but no roles, states or time. Every call either
does what it says, or raises and changes nothing. All backends pass the same tests (`duologue.testing.contract`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any, Protocol

from duologue.errors import UnsupportedModel, UsageError, refuse, require
from duologue.types import Seq, Token, VirtualId


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen from the distribution over the base vocabulary. The default is greedy."""

    temperature: float = 0.0  # 0 is greedy: the most probable token, the lowest id on a tie
    top_k: int = 0  # keep the k most probable; 0 keeps all
    top_p: float = 1.0  # then keep the smallest set that holds this much probability

    def __post_init__(self) -> None:
        require(0.0 <= self.temperature <= 10.0, f"temperature {self.temperature} is not between 0 (greedy) and 10")
        require(self.top_k >= 0, f"top_k {self.top_k} is negative; 0 keeps every token")
        require(0.0 < self.top_p <= 1.0, f"top_p {self.top_p} is not in (0, 1]; 1 keeps every token")


class Constraint(Protocol):
    """A grammar that answers follow."""

    def apply(self, tokens: Sequence[Token], logits: Any) -> Any:
        """`logits` (a NumPy array, [V]), with -inf for what may not follow `tokens`, an answer so far."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far may be drawn before it is asked for, and by which chances: those that `uniform` gives."""

    num_tokens: int  # at most, the one that is asked for included
    seed: int
    turn: int
    index: int  # of the token that is asked for


@dataclass(frozen=True, slots=True)
class Draw:
    """Sample one token after the last one fed.

    `uniform` in [0, 1) is the only source of randomness. It is passed in, so that no other channel or session can
    change what a channel says (choice 12). Tokens are ordered by decreasing probability, ties by id, and the first
    whose cumulative probability exceeds `uniform` is drawn.
    """

    sampling: Sampling = Sampling()
    uniform: float = 0.0
    num_alternatives: int | None = None  # most probable tokens to report with the drawn one; None: not even that one
    constraint: Constraint | None = None
    answer: tuple[Token, ...] = ()  # what the constraint has to know: the answer so far
    ahead: Ahead | None = field(default=None, compare=False)  # None: only this token will be wanted, as far as is known


@dataclass(frozen=True, slots=True)
class Extend:
    """Feed `tokens` to the end of `seq`, in one forward pass with the rest of the batch.

    At the position of the last token, an output channel draws and an input channel watches, never both. With neither,
    the tokens are only cached. For evaluation, `score` asks how probable given continuations are, at several positions.
    """

    seq: Seq
    tokens: tuple[Token, ...]
    draw: Draw | None = None
    watch: tuple[tuple[Token, ...], ...] = ()  # groups of ids whose probabilities are wanted: a softmax over each alone
    ticket: int = 0  # returned with the result
    score: tuple[Token, ...] = ()
    """S base ids to score: the first as successor of the S-th last token fed, …, the last as successor of the last.
    A continuation of S tokens is scored by feeding what precedes it and its first S - 1 tokens."""

    @property
    def watched(self) -> tuple[Token, ...]:
        """The ids of all groups."""
        return tuple(chain.from_iterable(self.watch))


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How probable one token was."""

    logprob: float  # natural logarithm of its probability, over the base vocabulary
    greedy: Token  # the most probable base token at its position, the lowest id on a tie
    margin: float  # logit of the best base token minus that of the second best


@dataclass(frozen=True, slots=True)
class Step:
    """What a forward pass said about one `Extend`."""

    ticket: int
    tokens: tuple[Token, ...] = ()  # the drawn token; an engine that speculates may return several
    p: tuple[tuple[float, ...], ...] = ()  # for each watched group, the probabilities of its ids, summing to 1
    margin: float | None = None  # if drawn: logit of the best base token minus that of the second best
    scores: tuple[TokenScore, ...] = ()  # one for each token of `Extend.score`
    log_p: tuple[tuple[Token, float], ...] = ()
    """If wanted: the drawn token and then the most probable ones, with log probabilities at temperature 1."""
    passes: tuple[int, ...] = field(default=(0,), compare=False)
    """The forward passes that its tokens took. They are numbered within a call; what shares a pass has its number."""
    is_apart: bool = field(default=False, compare=False)  # the last of these is a pass of probes alone


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a backend is and can do."""

    name: str  # "torch", "llamacpp", ...
    model: str  # for display
    weights: str  # "bf16", "f32", "Q4_0", ...
    vocab_size: int  # ids that can be drawn: 0 … vocab_size - 1
    num_added: int  # adapter rows: ids vocab_size … vocab_size + num_added - 1
    context_length: int  # longest sequence, in tokens
    capacity: int  # KV entries of all sequences and caches; a shared entry counts once
    max_seqs: int  # in all caches
    kv_bytes_per_token: int
    can_truncate: bool  # False: `truncate` to less than the cached length raises `UnsupportedModel`
    probe_passes: int = 0
    """Further forward passes if added ids (probes) are fed, at most: 0 if they are part of the pass, 1 if the probes of
    all sequences may need a pass of their own."""
    cascade_limit: float | None = None
    """With a cascade: a probe after new tokens is first judged in their pass, by rows. Only if nothing in its first
    watched group is at least so probable does it take a pass of its own. None: every probe does."""
    num_caches: int = 1
    """Capacity and sequences are divided equally among these. A sequence and its forks share one cache, which can be
    full while others have room. Each cache that has something to feed makes a pass of its own."""
    embedding_width: int = 0  # D of the rows that `Backend.embed` takes; 0: it takes none

    def is_added(self, token: Token) -> bool:
        """Whether `token` is a row of the adapter: neither a base id nor a virtual one."""
        return token >= self.vocab_size and not isinstance(token, VirtualId)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a backend holds at the moment."""

    num_seqs: int
    kv_entries: int  # an entry shared by several sequences counts once
    kv_bytes: int


class Backend(ABC):
    """Weights and KV cache. Not thread-safe: one thread owns it, and runs one forward pass at a time."""

    @property
    @abstractmethod
    def info(self) -> BackendInfo:
        """What this backend is and can do. Constant."""

    @abstractmethod
    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        """Open a sequence that shares the first `length` cached tokens of `parent` without copying them.

        `fork(None)` opens an empty sequence. The parent may be extended, truncated or freed afterwards: the child keeps
        what it shares.

        Raises:
            UnknownSeq: no such parent.
            UsageError: `length` is negative or more than the parent has cached.
            CacheFull: `max_seqs` are open, or the parent's share of them if there are several caches.
        """

    def fork_listening(self) -> Seq:
        """Open an empty sequence where the words being heard are judged: on the listener, if there is one.

        Raises:
            CacheFull: see `fork`.
        """
        return self.fork(None)

    def embed(self, rows: Any) -> tuple[VirtualId, ...]:
        """Ids for embedding rows, to be fed among tokens: `rows` [N, D] as float32, with D = `info.embedding_width`.

        A row takes the place of what the embedding module returns for a token, that is, after any scaling by the
        module. An id is like a base token that is never drawn, watched or scored, and an adapter's LoRA does not apply
        at it. Nothing is computed or stored here, and any thread may call it; `VirtualId` says how long a row lives.

        Raises:
            UsageError: rows of another width, shape or number type, or a number that is not finite.
            UnsupportedModel: this backend takes no rows for this model.
        """
        if not self.info.embedding_width:
            raise UnsupportedModel(f"the {self.info.name} backend takes no embedding rows for {self.info.model}")
        return virtual_ids(rows, self.info.embedding_width)

    @abstractmethod
    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        """Run one forward pass for all of `batch` and return one `Step` for each `Extend`, in order.

        The number of sequences does not matter. The steps tell the exceptions (`Step.passes`): where
        `info.probe_passes` is 1, probes may take another pass, and must be the last tokens of their `Extend`; where
        there are several caches (`info.num_caches`), each one that is involved takes its own. A backend may also
        prefill long texts separately. Roll a probe back before other tokens follow it.

        A token attends to the tokens before it in its own sequence, and to nothing else: channels that share a prefix
        do not attend to each other (DUO, section 2.1).

        Raises:
            UsageError: the batch or an `Extend` is empty, a sequence occurs twice, an id is out of range, two of
                `draw`, `watch` and `score` occur together, more tokens are scored than fed, or some after an added id,
                or a probe that needs its own pass comes before other tokens; a virtual id is watched or scored, has
                lost its row, or has one of another width.
            UnknownSeq: no such sequence.
            ContextOverflow: a sequence would become longer than `context_length`.
            CacheFull: the new tokens exceed `capacity`, or the share of one of several caches.
        """

    @abstractmethod
    def truncate(self, seq: Seq, length: int) -> None:
        """Roll `seq` back to its first `length` tokens, exactly as if the rest had never been fed.

        Raises:
            UnknownSeq: no such sequence.
            UsageError: `length` is negative or more than is cached.
            UnsupportedModel: the model cannot roll back (`info.can_truncate` is False).
        """

    @abstractmethod
    def free(self, seq: Seq) -> None:
        """Close `seq`. KV that no other sequence shares is released.

        Raises:
            UnknownSeq: no such sequence.
        """

    @abstractmethod
    def length(self, seq: Seq) -> int:
        """Number of tokens cached in `seq`.

        Raises:
            UnknownSeq: no such sequence.
        """

    @abstractmethod
    def usage(self) -> Usage:
        """What a backend holds at the moment."""

    def close(self) -> None:  # noqa: B027 - most backends have nothing to close
        """Release the weights. No other call is legal afterwards."""


class RequestBackend(Backend):
    """A backend on an engine that has a loop of its own: the work of each sequence begins and ends for itself.

    `begin` and `complete` are the two halves of `forward`, which begins a batch and waits for all of it. Between them,
    a sequence may be forked and freed, but not fed or truncated.
    """

    @abstractmethod
    def begin(self, extend: Extend) -> Future[Step]:
        """Begin the work of `extend`; the future has its result. The sequence does not change before `complete`.

        Raises:
            UsageError, UnknownSeq, ContextOverflow: see `forward`.
        """

    @abstractmethod
    def complete(self, extend: Extend, future: Future[Step]) -> Step:
        """Append the tokens of `extend`, whose work is done, and return the result.

        Raises:
            EngineError: the work failed. The sequence is unchanged.
        """

    @abstractmethod
    def abandon(self, seq: Seq) -> None:
        """Give up the work that was begun for `seq`, as if it had not been. Its future is cancelled."""

    @abstractmethod
    def is_being_drawn(self, extend: Extend) -> bool:
        """Whether the token that `extend` draws has been drawn ahead, or is about to be: no new work is needed."""


def num_passes(steps: Iterable[Step]) -> int:
    """The number of forward passes that these steps of one `Backend.forward` took together."""
    return len({number for step in steps for number in step.passes})


def check_batch(info: BackendInfo, batch: Sequence[Extend]) -> None:
    """Raise `UsageError` if `batch` is invalid whatever the sequences hold (see `Backend.forward`)."""
    if not batch:
        raise UsageError("a forward pass needs at least one Extend; skip the pass if there is nothing to feed")
    if len({extend.seq for extend in batch}) != len(batch):
        raise UsageError("a sequence occurs twice in one batch; join its tokens in one Extend")
    num_ids = info.vocab_size + info.num_added
    for extend in batch:
        if not extend.tokens:
            raise UsageError(f"Extend of sequence {extend.seq} has no tokens; leave it out of the batch")
        if (extend.draw is not None) + bool(extend.watch) + bool(extend.score) > 1:
            raise UsageError(
                f"Extend of sequence {extend.seq} draws, watches or scores at once; a channel does only one of them"
            )
        if not all(extend.watch):
            raise UsageError(f"Extend of sequence {extend.seq} watches a group without ids; leave it out")
        for token in (*extend.tokens, *extend.watched):
            if not 0 <= token < num_ids and not isinstance(token, VirtualId):
                raise UsageError(
                    f"token {token} of sequence {extend.seq} is not an id of this model (0 … {num_ids - 1}); a virtual "
                    "id is one that Backend.embed returned, not its number"
                )
        check_virtual(info, extend)
        if extend.score:
            _check_score(info, extend)
        is_probe = [info.is_added(token) for token in extend.tokens] if info.probe_passes else []
        if is_probe != sorted(is_probe):
            raise UsageError(
                f"Extend of sequence {extend.seq} has probe tokens before others; this backend computes probes last, "
                "so feed what follows them in another call"
            )


def _check_score(info: BackendInfo, extend: Extend) -> None:
    if len(extend.score) > len(extend.tokens):
        raise UsageError(
            f"Extend of sequence {extend.seq} scores {len(extend.score)} tokens, but feeds {len(extend.tokens)}; feed "
            "the token before each of them"
        )
    fed = [token for token in extend.tokens if not isinstance(token, VirtualId)]
    for token in (*fed, *extend.score):
        if not 0 <= token < info.vocab_size:
            raise UsageError(
                f"token {token} of sequence {extend.seq} is not a base id (0 … {info.vocab_size - 1}); only base ids "
                "are scored, after base ids and embedding rows"
            )


def check_virtual(info: BackendInfo, extend: Extend) -> None:
    """Raise `UsageError` if `extend` watches a virtual id, or feeds one whose row does not fit."""
    if any(isinstance(token, VirtualId) for token in extend.watched):
        raise UsageError(
            f"Extend of sequence {extend.seq} watches a virtual id; rows are fed, and only base ids and an adapter's "
            "states are watched"
        )
    for token in extend.tokens:
        if isinstance(token, VirtualId) and token.width != info.embedding_width:
            wanted = f"rows of width {info.embedding_width}" if info.embedding_width else "no embedding rows"
            raise UsageError(
                f"a virtual id of sequence {extend.seq} has a row of width {token.width}, but {info.model} takes "
                f"{wanted}; embed it on the backend that it is fed to"
            )


def virtual_ids(rows: Any, width: int) -> tuple[VirtualId, ...]:
    """Ids for `rows` [N, D], with D = `width`: anything with a buffer of float32, such as a NumPy array.

    Raises:
        UsageError: rows of another width, shape or number type, or a number that is not finite.
    """
    try:
        view = memoryview(rows)
    except TypeError:
        raise UsageError(
            f"embedding rows are an array [N, {width}] of float32, not {type(rows).__name__}; of a torch tensor, pass "
            "tensor.float().cpu().numpy()"
        ) from None
    refuse(
        [
            (view.format not in ("f", "<f"), _wrong_numbers(view.format)),
            (
                view.ndim != 2 or view.shape is None or view.shape[1] != width,
                f"embedding rows have shape {view.shape}, but this model takes rows of width {width}: [N, {width}]",
            ),
        ]
    )
    data, size = view.tobytes(), 4 * width
    made = tuple(VirtualId(data[start : start + size]) for start in range(0, len(data), size))
    for index, one in enumerate(made):
        if not isfinite(sum(memoryview(one.row).cast("f"))):
            raise UsageError(f"embedding row {index} of {len(made)} has a number that is not finite (NaN or infinity)")
    return made


def _wrong_numbers(kind: str) -> str:
    advice = "rows.astype(np.float32), which holds float16 and bfloat16 exactly"
    return f"embedding rows have numbers of type {kind!r}, but must be float32 ('f'): pass {advice}"


def uniform(seed: int, turn: int, index: int) -> float:
    """A random number in [0, 1) for token `index` of the answer after `turn` turns, in the session with `seed`.

    It depends on nothing else, so other sessions, ignored words and answers taken back do not change it (choice 12).
    """
    digest = hashlib.blake2b(f"{seed}/{turn}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
