"""vLLM in this process, one model after the other, and what it returns as plain values. For tests and benchmarks.

`VLLM_ENABLE_V1_MULTIPROCESSING=0` must be set before vLLM is imported.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from duologue.backends.vllm.plugin import ExportedAdapter

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


def answers(
    llm: Any, prompts: Sequence[Any], num: int, **sampling: Any
) -> list[tuple[list[int], list[dict[int, float]]]]:
    """`num` tokens after each prompt (ids or embeddings), and the five best log-probabilities at each."""
    from vllm import SamplingParams

    options = {"temperature": 0.0, "logprobs": 5, "ignore_eos": True, "detokenize": False, **sampling}
    outputs = llm.generate(
        [_as_prompt(prompt) for prompt in prompts], SamplingParams(max_tokens=num, **options), use_tqdm=False
    )
    return [
        (
            list(output.outputs[0].token_ids),
            [{id: float(found.logprob) for id, found in at.items()} for at in output.outputs[0].logprobs or []],
        )
        for output in outputs
    ]


def decisions(llm: Any, prompts: Sequence[Any], adapter: ExportedAdapter) -> list[list[float]]:
    """The probabilities of the states, and of the timing pair, at the ends of `prompts`, which include the probe."""
    states, timing = tuple(adapter.states.values()), adapter.timing
    found = answers(llm, prompts, 1, logprobs=None, logprob_token_ids=[*states, *timing])
    return [[*_shares(at[0], states), *_shares(at[0], timing)] for _, at in found]


def _shares(log_p: dict[int, float], ids: Sequence[int]) -> list[float]:
    p = [math.exp(log_p[id]) for id in ids]
    return [each / sum(p) for each in p]


def _as_prompt(prompt: Any) -> dict[str, Any]:
    return {"prompt_embeds": prompt} if hasattr(prompt, "dim") else {"prompt_token_ids": list(prompt)}
