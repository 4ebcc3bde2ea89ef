"""The noise of a backend: how much its results depend on the shape of a pass, and what that can change."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import spoken

from duologue.core.backend import Backend, Draw, Extend, Sampling
from duologue.text.template import Template
from duologue.types import Role, Token, Turn

_GREEDY = Draw()


@dataclass(frozen=True, slots=True)
class Noise:
    """Changes of the gap between the two best logits, for the same tokens in passes of other widths."""

    changes: tuple[float, ...]

    @property
    def largest(self) -> float:
        return max(self.changes)


def measure(backend: Backend, template: Template, *, seed: int, conversations: int = 6, length: int = 40) -> Noise:
    """The same conversations, token by token, beside a second channel, in chunks, and in one pass."""
    chance = random.Random(seed)
    changes: list[float] = []
    for _ in range(conversations):
        turns = [Turn(Role.USER, spoken.question(chance)), Turn(Role.ASSISTANT, spoken.aside(chance))]
        turns.append(Turn(Role.USER, spoken.question(chance)))
        prompt = [*template.render(turns), *template.header]
        tokens, gaps = _alone(backend, prompt, length)
        for other in (_beside(backend, prompt, tokens, chance), _rebuilt(backend, prompt, tokens, chance)):
            for at, (token, gap) in other.items():
                # If another token is the best one now, the gap has changed its sign.
                changes.append(abs(gaps[at] - (gap if token == tokens[at] else -gap)))
    return Noise(tuple(changes))


def _alone(backend: Backend, prompt: list[Token], length: int) -> tuple[list[Token], list[float]]:
    """A greedy answer, one token per pass, after a prompt fed in one pass."""
    seq, fed = backend.fork(None), tuple(prompt)
    tokens: list[Token] = []
    gaps: list[float] = []
    for _ in range(length):
        step = backend.forward([Extend(seq, fed, _GREEDY)])[0]
        tokens.append(step.tokens[0])
        gaps.append(step.margin or 0.0)
        fed = step.tokens
    backend.free(seq)
    return tokens, gaps


def _beside(
    backend: Backend, prompt: list[Token], tokens: Sequence[Token], chance: random.Random
) -> dict[int, tuple[Token, float]]:
    """The same tokens, each in a pass with 1 to 12 tokens of a second channel; the prompt in chunks."""
    seq, found = backend.fork(None), {}
    size = chance.randint(3, 20)
    for start in range(0, len(prompt) - 1, size):
        backend.forward([Extend(seq, tuple(prompt[start : min(start + size, len(prompt) - 1)]))])
    fed = (prompt[-1],)
    for i, token in enumerate(tokens):
        other = backend.fork(seq, backend.length(seq))
        words = tuple(chance.choices(prompt, k=chance.randint(1, 12)))
        step = backend.forward([Extend(seq, fed, _GREEDY), Extend(other, words)])[0]
        backend.free(other)
        found[i] = step.tokens[0], step.margin or 0.0
        fed = (token,)
    backend.free(seq)
    return found


def _rebuilt(
    backend: Backend, prompt: list[Token], tokens: Sequence[Token], chance: random.Random
) -> dict[int, tuple[Token, float]]:
    """The same tokens up to a few positions, each time fed again in one pass."""
    found = {}
    for i in chance.sample(range(1, len(tokens)), min(8, len(tokens) - 1)):
        seq = backend.fork(None)
        step = backend.forward([Extend(seq, (*prompt, *tokens[:i]), _GREEDY)])[0]
        found[i] = step.tokens[0], step.margin or 0.0
        backend.free(seq)
    return found


def could_draw(
    backend: Backend, ids: Sequence[Token], sampling: Sampling, uniform: float, tokens: Sequence[Token], noise: float
) -> bool:
    """Whether each of `tokens` can be sampled after `ids` if gaps between logits are off by at most `noise`.

    For sampling by temperature alone. A token is sampled if `uniform` falls into its interval of the probabilities,
    summed up from the most probable token on. Noise moves the ends of the intervals and swaps near ties.
    """
    seq = backend.fork(None)
    p = backend.forward([Extend(seq, tuple(ids), watch=(tuple(range(backend.info.vocab_size)),))])[0].p[0]
    backend.free(seq)
    floor = 1e-30
    logits = [math.log(max(x, floor)) / sampling.temperature for x in p]
    top, slack = max(logits), noise / sampling.temperature
    weights = [math.exp(x - top) for x in logits]
    total = sum(weights)
    for token in tokens:
        surely = sum(w for w, x in zip(weights, logits, strict=True) if x > logits[token] + slack) / total
        possibly = sum(w for w, x in zip(weights, logits, strict=True) if x > logits[token] - slack) / total
        if not _shifted(surely, -slack) <= uniform <= _shifted(possibly, slack):
            return False
    return True


def _shifted(p: float, by: float) -> float:
    """`p` with `by` added to its log-odds."""
    if not 0.0 < p < 1.0:
        return min(1.0, max(0.0, p))
    return 1.0 / (1.0 + math.exp(-(math.log(p / (1.0 - p)) + by)))
