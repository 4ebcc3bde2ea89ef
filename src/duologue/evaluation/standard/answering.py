"""What one model, or two side by side, say about the requests of benchmarks; what is done is remembered in a file.

Two models are asked side by side, in passes of equal composition. If one of them is the other with an adapter that
touches nothing, every token and every log-probability must be equal, to the last bit.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from duologue.core.backend import TokenScore
from duologue.data.jsonl import complete_lines
from duologue.errors import BadData, UsageError
from duologue.evaluation.standard.feeding import Answer, Continuation, Feeder, Prompt, Tokens, batches
from duologue.models.model import Model
from duologue.text.detokenizer import Detokenizer
from duologue.types import Role, Token, Turn, well_formed

_ROOM_TO_LISTEN = 32  # tokens of a context, for what is spoken over an answer

Tick = Callable[[int, int], None]
"""Called with the number of finished requests and that of all."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How probable is `continuation` after `context`?"""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Generation:
    """What does the model say after `context`, up to one of `until`? Greedy, at most `max_tokens`."""

    context: str
    until: tuple[str, ...]
    max_tokens: int
    is_turn: bool = False  # the context is what a user says, for the model's chat template


Request = Scoring | Generation


@dataclass(frozen=True, slots=True)
class Identity:
    """How far the tokens of two models agree, at equal composition of the passes."""

    tokens: int = 0  # compared: scored or generated
    different: int = 0  # tokens (for a scored one, the greedy one at its position) that differ
    inexact: int = 0  # tokens whose log-probability or margin differs at all
    ties: int = 0  # positions where the two best tokens have the same logit, so that the lower id is drawn

    def __add__(self, other: "Identity") -> "Identity":
        return Identity(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Response:
    """The results of one request: of each model, and their comparison."""

    results: tuple[Any, ...]  # for scoring [log-probability, whether greedy], for generation the text
    identity: Identity = Identity()


@dataclass(slots=True, eq=False)
class Memory:
    """Responses by request, kept in a JSONL file if there is a path. The first line says what was asked."""

    path: Path | None
    about: Mapping[str, Any]  # models, adapter, backend: what the responses depend on
    _found: dict[str, Response] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is None:
            return
        lines = [json.loads(line) for line in complete_lines(self.path, b"{")]
        header = {"about": dict(self.about)}
        if not lines:
            self._append([header])
        elif lines[0] != json.loads(json.dumps(header)):
            raise UsageError(
                f"{self.path} holds responses of {lines[0].get('about')}, and this run is of {header['about']}; "
                "name another --out folder"
            )
        for line in lines[1:]:
            self._found[line["key"]] = Response(tuple(line["results"]), Identity(*line["identity"]))

    @property
    def identity(self) -> Identity:
        """The comparison over all responses."""
        return sum((one.identity for one in self._found.values()), Identity())

    def get(self, request: Request) -> Response | None:
        """The response to `request`, if it was recorded."""
        return self._found.get(_key(request))

    def record(self, requests: Sequence[Request], responses: Sequence[Response]) -> None:
        """Keep responses, and append them to the file."""
        keys = [_key(request) for request in requests]
        self._found.update(zip(keys, responses, strict=True))
        self._append(
            {
                "key": key,
                "results": one.results,
                "identity": [getattr(one.identity, name) for name in Identity.__slots__],
            }
            for key, one in zip(keys, responses, strict=True)
        )

    def _append(self, lines: Any) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _key(request: Request) -> str:
    text = json.dumps([type(request).__name__, *(getattr(request, name) for name in request.__slots__)])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(slots=True, eq=False)
class Answerer:
    """Answers requests with one model or two."""

    models: Sequence[Model]
    feeders: Sequence[Feeder]
    memory: Memory

    def answer(self, requests: Sequence[Request], tick: Tick) -> list[Response]:
        """The responses, in order. Those that are not remembered are computed, sorted by what they begin with."""
        waiting = sorted({one for one in requests if self.memory.get(one) is None}, key=_begins)
        done = len(requests) - len(waiting)
        for kind, compute in ((Scoring, self._score), (Generation, self._generate)):
            for asked, responses in compute([one for one in waiting if isinstance(one, kind)]):
                self.memory.record(asked, responses)
                done += len(asked)
                tick(done, len(requests))
        found = [self.memory.get(request) for request in requests]
        return [one for one in found if one is not None]

    def _score(self, requests: Sequence[Any]) -> Iterator[tuple[list[Request], list[Response]]]:
        rest = iter(requests)
        encoder = _Encoder(self.models[0])
        for batch in batches(map(encoder.continuation, requests), self.models[0].backend):
            scores = [feeder.score(batch) for feeder in self.feeders]
            responses = [_scored([one[i] for one in scores], item.tokens) for i, item in enumerate(batch)]
            yield [next(rest) for _ in batch], responses

    def _generate(self, requests: Sequence[Any]) -> Iterator[tuple[list[Request], list[Response]]]:
        rest = iter(requests)
        encoder = _Encoder(self.models[0])
        for batch in batches(map(encoder.prompt, requests), self.models[0].backend):
            asked = [next(rest) for _ in batch]
            found: dict[int, dict[int, tuple[Answer, str]]] = {}  # by request, then by model
            with ExitStack() as closed:
                ending = [closed.enter_context(closing(self._write(one, batch, asked))) for one in self.feeders]
                for ended in zip(*ending, strict=True):
                    for number, (i, answer, text) in enumerate(ended):
                        answers = found.setdefault(i, {})
                        answers[number] = answer, text
                        if len(answers) == len(ending):
                            yield [asked[i]], [_generated([answers[each] for each in range(len(ending))])]

    def _write(
        self, feeder: Feeder, batch: Sequence[Prompt], asked: Sequence[Any]
    ) -> Generator[tuple[int, Answer, str], None, None]:
        """The index of each answer, the answer, and its text, as soon as it ends."""
        texts = [_StoppedText(self.models[0], one.until) for one in asked]
        stop_tokens = self.models[0].template.stop_tokens
        with closing(feeder.generate(batch, lambda i, token: texts[i].push(token), stop_tokens)) as ending:
            for i, answer in ending:
                yield i, answer, texts[i].finished()


def _begins(request: Request) -> tuple[str, ...]:
    return request.context, *((request.continuation,) if isinstance(request, Scoring) else request.until)


def _scored(scores: Sequence[tuple[TokenScore, ...]], tokens: Tokens) -> Response:
    """From the scores of each model."""
    results = tuple(
        [sum(one.logprob for one in each), all(one.greedy == token for one, token in zip(each, tokens, strict=True))]
        for each in scores
    )
    pairs = [*zip(*scores, strict=True)]
    if len(scores) == 1:
        return Response(results)
    return Response(
        results,
        Identity(
            len(tokens),
            sum(one.greedy != other.greedy for one, other in pairs),
            sum((one.logprob, one.margin) != (other.logprob, other.margin) for one, other in pairs),
            sum(one.margin == 0.0 for one, _ in pairs),
        ),
    )


def _generated(found: Sequence[tuple[Answer, str]]) -> Response:
    """From the answer and the text of each model."""
    results = tuple(text for _, text in found)
    if len(found) == 1:
        return Response(results)
    (one, _), (other, _) = found
    tokens = [*zip_longest(one.tokens, other.tokens)]
    margins = [*zip_longest(one.margins, other.margins)]
    return Response(
        results,
        Identity(
            len(tokens),
            sum(a != b for a, b in tokens),
            sum(a != b for a, b in margins),
            sum(margin == 0.0 for margin in one.margins),
        ),
    )


class _StoppedText:
    """The text of an answer that ends before one of some strings."""

    def __init__(self, model: Model, until: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(model.template.tokenizer)
        self._until = until
        self._longest = max(map(len, until), default=0)
        self._parts: list[str] = []
        self._tail = ""  # the end of the text, in which one of the strings may have begun

    def push(self, token: Token) -> bool:
        """Whether the text is over with this token."""
        part = self._detokenizer.push(token)
        self._parts.append(part)
        self._tail = self._tail[-self._longest :] + part
        return any(one in self._tail for one in self._until)

    def finished(self) -> str:
        text = "".join(self._parts) + self._detokenizer.flush()
        return text[: min((at for one in self._until if (at := text.find(one)) >= 0), default=len(text))]


class _Encoder:
    """Texts to ids as lm-evaluation-harness does it for models of Transformers. Long contexts lose their beginning."""

    def __init__(self, model: Model) -> None:
        tokenizer = model.template.tokenizer
        self._tokenizer = tokenizer
        self._template = model.template
        self._bos = () if tokenizer.bos is None else (tokenizer.bos,)
        self._limit = model.max_length - _ROOM_TO_LISTEN
        self._last: tuple[str, Tokens] = ("", ())
        begin = tokenizer.special_tokens.get(tokenizer.special_text.get("bos_token", ""))
        self._begin = min(tokenizer.stop_tokens) if begin is None else begin  # stands before a text without context

    def continuation(self, request: Scoring) -> Continuation:
        """Spaces at the end of the context belong to the continuation: tokens begin with them.

        Raises:
            BadData: the tokenizer makes no token of the continuation.
        """
        context = request.context.rstrip()
        continuation = request.context[len(context) :] + request.continuation
        if not request.context:
            before: Tokens = (self._begin,)
            tokens = self._encode(continuation)
        else:
            before = self._context(context)
            tokens = (*self._bos, *self._encode(context + continuation))[len(before) :]
        if not tokens:
            raise BadData(f"the continuation {request.continuation!r} has no token of its own in this tokenizer")
        return Continuation(before[-max(1, self._limit + 1 - len(tokens)) :], tokens)

    def prompt(self, request: Generation) -> Prompt:
        if request.is_turn:
            turn = Turn(Role.USER, well_formed(request.context))
            context = (*self._template.render([turn]), *self._template.header)
        else:
            context = self._context(request.context) or (self._begin,)
        max_tokens = min(request.max_tokens, self._limit // 2)
        return Prompt(context[-(self._limit - max_tokens) :], max_tokens)

    def _context(self, text: str) -> Tokens:
        if self._last[0] != text:
            self._last = text, (*self._bos, *self._encode(text))
        return self._last[1]

    def _encode(self, text: str) -> Tokens:
        return tuple(self._tokenizer.encode(well_formed(text)))
