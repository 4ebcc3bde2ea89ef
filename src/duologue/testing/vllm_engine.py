"""vLLM in this process, one model after the other, and what it returns as plain values. For tests and benchmarks.

`VLLM_ENABLE_V1_MULTIPROCESSING=0` must be set before vLLM is imported.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from duologue.backends.vllm.plugin import ExportedAdapter

Answer: TypeAlias = tuple[list[int], list[dict[int, float]]]
"""The tokens, and the log-probabilities at each by id."""

EXACT = {"dtype": "float32", "max_model_len": 256, "block_size": 32, "max_num_seqs": 8, "max_num_batched_tokens": 256}


@contextmanager
def engine(path: Path, **options: Any) -> Iterator[Any]:
    """vLLM's `LLM` for the model in the folder `path`, in float32 unless `options` say otherwise."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(str(path), **{**EXACT, "enforce_eager": True, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def answers(llm: Any, prompts: Sequence[Any], num: int, **sampling: Any) -> list[Answer]:
    """`num` tokens after each prompt (ids or embeddings), and the five best log-probabilities at each."""
    return _generate(llm, [(prompt, _answering(num, **sampling)) for prompt in prompts])


def decisions(llm: Any, prompts: Sequence[Any], adapter: ExportedAdapter) -> list[list[float]]:
    """The probabilities of the states, and of the timing pair, at the ends of `prompts`, which include the probe."""
    return decisions_among_answers(llm, prompts, adapter, [], 1)[0]


def decisions_among_answers(
    llm: Any, prompts: Sequence[Any], adapter: ExportedAdapter, others: Sequence[Any], num: int
) -> tuple[list[list[float]], list[Answer]]:
    """`decisions` at `prompts` and `answers` of `num` tokens to `others`, in the same passes."""
    states, timing = tuple(adapter.states.values()), adapter.timing
    deciding = _answering(1, logprobs=None, logprob_token_ids=[*states, *timing])
    asked = [*((prompt, deciding) for prompt in prompts), *((prompt, _answering(num)) for prompt in others)]
    found = _generate(llm, asked)
    decided = [[*_shares(at[0], states), *_shares(at[0], timing)] for _, at in found[: len(prompts)]]
    return decided, found[len(prompts) :]


def _answering(num: int, **sampling: Any) -> dict[str, Any]:
    return {
        "max_tokens": num, "temperature": 0.0, "logprobs": 5, "ignore_eos": True, "detokenize": False, **sampling
    }  # fmt: skip


def _generate(llm: Any, asked: Sequence[tuple[Any, dict[str, Any]]]) -> list[Answer]:
    from vllm import SamplingParams

    sampling = [SamplingParams(**options) for _, options in asked]
    outputs = llm.generate([_as_prompt(prompt) for prompt, _ in asked], sampling, use_tqdm=False)
    return [
        (
            list(output.outputs[0].token_ids),
            [{id: float(found.logprob) for id, found in at.items()} for at in output.outputs[0].logprobs or []],
        )
        for output in outputs
    ]


def _shares(log_p: dict[int, float], ids: Sequence[int]) -> list[float]:
    p = [math.exp(log_p[id]) for id in ids]
    return [each / sum(p) for each in p]


def _as_prompt(prompt: Any) -> dict[str, Any]:
    return {"prompt_embeds": prompt} if hasattr(prompt, "dim") else {"prompt_token_ids": list(prompt)}
