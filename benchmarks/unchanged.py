"""The base model is unchanged: its answers with an adapter and without are identical.

Claim: with an adapter of kind rows or alora loaded, and decisions made in the middle of an answer, the base model
writes the same tokens with the same margins (logit of the best token minus that of the second best), to the last bit.

Why: every weight is frozen, added rows are not part of the vocabulary that answers are sampled from, and a LoRA is
active at the probe alone, which is rolled back.

How: the model without an adapter and the model with one answer the same prompts greedily, eight at a time. The latter
decides on every conversation after every eighth token, in separate passes; the former is fed as many ordinary tokens
there. So every pass of an answer has the same width and finds the same layout of the cache, and only a changed model
could make a difference.
"""

import argparse
import random

import measuring
import spoken

from duologue import Turn
from duologue.core.backend import Draw, Extend
from duologue.evaluation.results import describe_model
from duologue.models.model import Model
from duologue.types import Role

_TOGETHER = 8
_EVERY = 8  # tokens between two decisions


def answers(model: Model, prompts: list[str], length: int) -> tuple[list[list[tuple[int, float]]], int]:
    """Tokens and margins of each answer, and the number of decisions made on the way."""
    found: list[list[tuple[int, float]]] = []
    decisions = 0
    for start in range(0, len(prompts), _TOGETHER):
        seqs = [model.backend.fork(None) for _ in prompts[start : start + _TOGETHER]]
        fed = [tuple(model.template.render([Turn(Role.USER, text)])) for text in prompts[start : start + _TOGETHER]]
        said: list[list[tuple[int, float]]] = [[] for _ in seqs]
        for number in range(length):
            batch = [Extend(seq, tokens, draw=Draw()) for seq, tokens in zip(seqs, fed, strict=True)]
            steps = model.backend.forward(batch)
            for row, step in zip(said, steps, strict=True):
                assert step.margin is not None
                row.append((step.tokens[0], step.margin))
            fed = [step.tokens for step in steps]
            if number % _EVERY == _EVERY - 1:
                decisions += _listen(model, seqs)
        found += said
        for seq in seqs:
            model.backend.free(seq)
        measuring.progress(f"{min(start + _TOGETHER, len(prompts))} prompts")
    return found, decisions


def _listen(model: Model, seqs: list[int]) -> int:
    """Hear words after each answer and roll them back. Returns the number of decisions."""
    words = (*model.template.joint(Role.ASSISTANT, Role.USER), *model.template.user("wait a moment", first=False))
    decides = model.adapter.kind != "prompted"
    probe, watch = (model.probe.tokens, model.probe.groups) if decides else (words[:1], ())
    forks = [model.backend.fork(seq, model.backend.length(seq)) for seq in seqs]
    model.backend.forward([Extend(fork, (*words, *probe), watch=watch) for fork in forks])
    for fork in forks:
        model.backend.free(fork)
    return len(forks) if decides else 0


def main() -> int:
    """Run it. The exit status is 1 if anything differs."""
    args = _arguments()
    measurement = measuring.begin(args)
    chance = random.Random(args.seed)
    prompts: dict[str, None] = {}
    while len(prompts) < args.prompts:
        prompts[spoken.question(chance)] = None
    adapted = measuring.load_model(args)
    described = describe_model(adapted)
    with_adapter, decisions = answers(adapted, list(prompts), args.length)
    adapted.close()
    args.adapter = "prompted"
    bare = measuring.load_model(args)
    without, _ = answers(bare, list(prompts), args.length)
    bare.close()
    pairs = list(zip(with_adapter, without, strict=True))
    different = sum([token for token, _ in one] != [token for token, _ in other] for one, other in pairs)
    margins = sum(a != b for one, other in pairs for (_, a), (_, b) in zip(one, other, strict=True))
    result = {
        "model": described,
        "prompts": len(prompts),
        "tokens": sum(map(len, with_adapter)),
        "decisions": decisions,
        "answers_that_differ": different,
        "margins_that_differ": margins,
    }
    rows = [(described["backend"], len(prompts), result["tokens"], decisions, different, margins)]
    header = ("backend", "prompts", "tokens", "decisions", "answers that differ", "margins that differ")
    measuring.finish(args, measurement, result, header, rows)
    return int(different + margins > 0)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--length", type=int, default=32, help="tokens of each answer")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
