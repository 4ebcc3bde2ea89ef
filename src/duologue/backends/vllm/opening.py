"""Opens a folder that `duologue export --format vllm` wrote: reads what it says, and starts vLLM with it."""

import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.backends.vllm.backend import VllmBackend
from duologue.backends.vllm.plugin import CONFIG_KEY, ExportedAdapter
from duologue.backends.vllm.service import VllmService
from duologue.core.backend import BackendInfo
from duologue.errors import BrokenModel, UnsupportedModel, UsageError, require

BLOCK_SIZE = 32
"""Tokens of a block on CPUs, whose block sizes are multiples of this. Elsewhere vLLM chooses."""

_TOKENS_PER_PASS = 512  # on CPUs, where a longer pass would keep decisions waiting
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_GIB = 1 << 30
_MAX_SEQS = 1 << 20  # a sequence is a list of ids


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """What the `config.json` of an exported folder says."""

    path: Path
    adapter: ExportedAdapter
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    most_positions: int
    dtype: str

    @classmethod
    def read(cls, path: Path) -> "ExportedModel":
        """Read it.

        Raises:
            BrokenModel: this is no such folder, or it is damaged.
        """
        try:
            content = json.loads((path / "config.json").read_text(encoding="utf-8"))
            adapter = ExportedAdapter.from_json(content.get(CONFIG_KEY))
            num_heads = int(content["num_attention_heads"])
            return cls(
                path,
                adapter,
                hidden_size=int(content["hidden_size"]),
                num_layers=int(content["num_hidden_layers"]),
                num_kv_heads=int(content.get("num_key_value_heads") or num_heads),
                head_size=int(content.get("head_dim") or content["hidden_size"] // num_heads),
                most_positions=int(content["max_position_embeddings"]),
                dtype=str(content.get("dtype") or content.get("torch_dtype") or "bfloat16"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenModel(f"{path} is not a folder that duologue export --format vllm wrote: {error}") from None

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes of a token's keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * _BYTES[dtype]


def is_export(path: Path) -> bool:
    """Whether `path` is a folder for vLLM."""
    try:
        return CONFIG_KEY in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def open_exported(
    model: ExportedModel, label: str, *, dtype: str, weights: str, context_length: int, sessions: int
) -> VllmBackend:
    """Start vLLM with `model`, for so many sessions with contexts of `context_length` tokens.

    Raises:
        UnsupportedModel: vLLM would start without the plug-in.
        UsageError: the cache is too small for the sessions.
        EngineError: vLLM does not start.
    """
    _check_plugin()
    from vllm.platforms import current_platform

    context_length = min(context_length, model.most_positions - 1)  # a request has one token more
    per_token, is_cpu = model.kv_bytes_per_token(dtype), bool(current_platform.is_cpu())
    options: dict[str, Any] = {
        "served_model_name": label,
        "dtype": dtype,
        "max_model_len": context_length + 1,
        "max_num_seqs": min(256, 4 * sessions + 4),
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "async_scheduling": False,  # `ChanceProcessor` counts the tokens drawn so far
        "logits_processors": ["duologue.backends.vllm.chances:ChanceProcessor"],
    }
    if is_cpu:
        options |= {"block_size": BLOCK_SIZE, "enforce_eager": True, "max_num_batched_tokens": _TOKENS_PER_PASS}
        given = os.environ.get(_CACHE_VARIABLE, "").strip()
        if given:
            _check_capacity(int(given) * _GIB // per_token, context_length, sessions, per_token)
        else:
            num_blocks = (sessions + 1 + sessions // 2) * -(-(context_length + 1) // BLOCK_SIZE) + 1
            options["kv_cache_memory_bytes"] = num_blocks * BLOCK_SIZE * per_token
    service = VllmService(model.path, options)
    capacity = (service.num_blocks - 1) * service.block_size  # vLLM keeps one for itself
    try:
        _check_capacity(capacity, context_length, sessions, per_token)
    except UsageError:
        service.close()
        raise
    info = BackendInfo(
        name="vllm",
        model=label,
        weights=weights,
        vocab_size=model.adapter.base_size,
        num_added=model.adapter.num_probes + model.adapter.num_outputs,
        context_length=context_length,
        capacity=capacity,
        max_seqs=_MAX_SEQS,
        kv_bytes_per_token=per_token,
        can_truncate=True,
    )
    return VllmBackend(service, model.adapter, info)


def _check_plugin() -> None:
    known = {point.name for point in importlib.metadata.entry_points(group="vllm.general_plugins")}
    allowed = os.environ.get("VLLM_PLUGINS")
    if "duologue" not in known or (allowed is not None and "duologue" not in allowed.split(",")):
        raise UnsupportedModel(
            "vLLM would start without duologue's plug-in: install duologue in the environment of vLLM (pip install), "
            "and name it in VLLM_PLUGINS if that is set"
        )


def _check_capacity(capacity: int, context_length: int, sessions: int, per_token: int) -> None:
    needed = sessions * (context_length + 1)
    require(
        needed <= capacity,
        f"vLLM's cache holds {capacity} tokens, and {sessions} sessions with contexts of {context_length} need "
        f"{needed}: allow fewer sessions or shorter contexts, or give it {-(-needed * per_token // _GIB)} GiB "
        f"({_CACHE_VARIABLE} on a CPU)",
    )
