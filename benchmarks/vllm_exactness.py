"""vLLM: what an exported adapter decides there, and what becomes of answers.

Claim: a model that `duologue export --format vllm` wrote decides in vLLM as on the torch backend, and answers as the
stock model does, bit for bit. A decision computes the words anew, and less than a block of tokens before them.

Why: the LoRA is zero except at probe tokens, and added ids have no share in the softmax of plain tokens. Decisions make
no LoRA request, so they share the prefix cache of the conversation that they are about.

How: the model is exported in float32. vLLM writes greedy answers with it, and with the base model without a plug-in;
tokens and log-probabilities are compared for equality. Then words over each answer are judged, in requests that are in
flight together, and compared with the torch backend in float32. The same is repeated in bfloat16, where rounding
differs. Which tokens were cached is what vLLM reports for the second and further words over the same answer. The exit
status is 1 if an answer differs, or a float32 probability by more than 0.001. Run it where `scripts/test-vllm`
installed vLLM.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np

from duologue.backends.torch.loading import read_model
from duologue.core.backend import Extend
from duologue.evaluation.results import describe_model
from duologue.export.inspection import QUESTIONS
from duologue.export.vllm import VllmFolder, export_vllm
from duologue.models.catalogue import find
from duologue.models.model import Model
from duologue.testing import vllm_engine
from duologue.types import Role, Token, Turn

NUM_TOKENS = 32  # of each answer
TOLERANCE = 1e-3
WORDS = (
    "what about",
    "what about the weather",
    "mhm",
    "stop it",
    "Anna, the kettle is boiling",
    "no, I meant in winter",
)
OPTIONS = {"max_model_len": 512, "max_num_batched_tokens": 512}


def main() -> int:
    """Run it."""
    args = _arguments()
    os.environ.update(
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    )
    measurement = measuring.begin(args)
    model = measuring.load_model(args, context=512, backend="torch", weights="f32")
    source = find(args.model).location
    prompts = [model.template.render([Turn(Role.USER, text)]) + model.template.header for text in QUESTIONS]
    with tempfile.TemporaryDirectory() as name:
        base, exported = Path(name) / "base", Path(name) / "duplex"
        for each in read_model(source, dtype="float32"):
            each.save_pretrained(base)
        folder = export_vllm(source, model.adapter, exported, dtype="float32")
        with vllm_engine.engine(base, **OPTIONS) as llm:
            stock = vllm_engine.answers(llm, prompts, NUM_TOKENS)
        talks = [
            _talk(model, text, answer, words)
            for text, (answer, _) in zip(QUESTIONS, stock, strict=True)
            for words in WORDS
        ]
        expected = _expected(model, talks)
        with vllm_engine.engine(exported, **OPTIONS) as llm:
            ours = vllm_engine.answers(llm, prompts, NUM_TOKENS)
            recomputed = _recomputed(llm, folder, talks)
            exact = _compared(llm, folder, talks, expected)
        with vllm_engine.engine(exported, dtype="bfloat16", **OPTIONS) as llm:
            rounded = _compared(llm, folder, talks, expected)
    same = sum(a == b for one, other in zip(stock, ours, strict=True) for a, b in zip(one[1], other[1], strict=True))
    result = {
        "model": describe_model(model), "answers": len(prompts), "tokens": len(prompts) * NUM_TOKENS,
        "tokens_with_equal_log_p": same, "decisions": len(talks), "f32": exact, "bf16": rounded,
        "block_size": vllm_engine.EXACT["block_size"], "recomputed_tokens": recomputed,
    }  # fmt: skip
    rows = [(key, value) for key, value in result.items() if key != "model"]
    measuring.finish(args, measurement, result, ("", "found"), rows)
    return int(same != result["tokens"] or exact["largest_difference"] > TOLERANCE)


def _talk(model: Model, question: str, answer: Sequence[Token], words: str) -> tuple[Token, ...]:
    """Words over an answer, of which the half was heard."""
    heard = model.template.decode(answer[: NUM_TOKENS // 2])
    return model.template.render([Turn(Role.USER, question), Turn(Role.ASSISTANT, heard), Turn(Role.USER, words)])


def _expected(model: Model, talks: Sequence[tuple[Token, ...]]) -> list[list[float]]:
    """Probabilities on the torch backend."""
    found = []
    for talk in talks:
        seq = model.backend.fork(None)
        (step,) = model.backend.forward([Extend(seq, (*talk, *model.probe.tokens), watch=model.probe.groups)])
        found.append([p for group in step.p for p in group])
        model.backend.free(seq)
    return found


def _asked(folder: VllmFolder, talks: Sequence[tuple[Token, ...]]) -> list[tuple[Token, ...]]:
    return [(*talk, *range(folder.adapter.first_added, folder.adapter.first_output)) for talk in talks]


def _compared(
    llm: Any, folder: VllmFolder, talks: Sequence[tuple[Token, ...]], expected: list[list[float]]
) -> dict[str, Any]:
    num = len(folder.adapter.states)
    found = np.array(vllm_engine.decisions(llm, _asked(folder, talks), folder.adapter))
    other = int((found[:, :num].argmax(axis=1) != np.array(expected)[:, :num].argmax(axis=1)).sum())
    difference = float(np.abs(found - np.array(expected)).max())
    return {"largest_difference": round(difference, 6), "other_states": other}


def _recomputed(llm: Any, folder: VllmFolder, talks: Sequence[tuple[Token, ...]]) -> dict[str, float]:
    """Tokens of a decision that are not taken from the cache, behind an earlier one on the same answer."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    asked = _asked(folder, talks)
    llm.generate([{"prompt_token_ids": list(each)} for each in asked[:: len(WORDS)]], sampling, use_tqdm=False)
    later = [each for i, each in enumerate(asked) if i % len(WORDS)]
    outputs = llm.generate([{"prompt_token_ids": list(each)} for each in later], sampling, use_tqdm=False)
    counts = [len(each) - int(output.num_cached_tokens) for each, output in zip(later, outputs, strict=True)]
    return {"mean": round(float(np.mean(counts)), 1), "max": max(counts)}


def _arguments() -> argparse.Namespace:
    return measuring.arguments(__doc__).parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
