"""Tiny random models of several architectures, built from a configuration and a fixed seed. For tests; no downloads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows

VOCAB_SIZE = 300
CONTEXT_LENGTH = 128
WIDTH = 32  # of the hidden state
WINDOW = 6  # tokens that a sliding layer attends to

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # class of the model, of its configuration, and changes to it
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),  # grouped key/value heads
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),  # biases, tied head
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 8}),  # normed queries and keys
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 8}),  # scaled embeddings
    "gemma3": (  # windows on some layers, scaled embeddings
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma2": (  # capped scores and logits
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",
        },
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "minicpm3": (  # latent attention (keys and values of different width), scaled embeddings and head
        "MiniCPM3ForCausalLM",
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "scale_emb": 3,
            "dim_model_base": 16,
        },
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": WINDOW}),  # one window on all layers
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),  # learned positions
    "mamba": ("MambaForCausalLM", "MambaConfig", {"intermediate_size": 64, "state_size": 8, "use_mambapy": False}),
}

ARCHITECTURES: tuple[str, ...] = tuple(name for name in _MODELS if name != "mamba")


def tiny_model(architecture: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32, ready for inference; the same weights for the same seed.

    `architecture` is one of `ARCHITECTURES` or "mamba", which is recurrent, so that cached backends must refuse it.
    `changes` are other values of its configuration.
    """
    model_class, config_class, settings = _MODELS[architecture]
    config = getattr(transformers, config_class)(**{**_COMMON, **settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(getattr(transformers, model_class)(config))


def randomised(model: Any) -> Any:
    """`model`, ready for inference, with random matrices.

    The usual initial values are so small that attention, and errors in it, hardly affect the logits.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def embedding_rows(model: Any, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """What the embedding module of a model returns for `tokens`: [N, D]."""
    with torch.inference_mode():
        return np.asarray(model.get_input_embeddings()(torch.tensor(list(tokens))).float().numpy())


def tiny_rows(
    *, num_probes: int = 1, num_states: int = 4, timing: bool = False, width: int = WIDTH, seed: int = 0
) -> AdapterRows:
    """Random rows that fit every tiny model: probes [P, D], states [S, D] and, if wanted, a timing pair [2, D]."""
    random = np.random.default_rng(seed)
    probes = random.normal(size=(num_probes, width)).astype(np.float32)
    states, pair = (
        random.normal(size=(num, width)).astype(np.float32) / np.float32(width**0.5) for num in (num_states, 2)
    )
    return AdapterRows(probes, states, pair if timing else None)


def tiny_lora(model: Any, *, rank: int = 4, size: float = 0.5, seed: int = 0) -> Lora:
    """A random LoRA on the linear layers of a model, large enough to change decisions.

    It omits the layers whose weights Mamba uses without calling the layer.
    """
    random, layers = np.random.default_rng(seed), {}
    for path, module in model.get_decoder().named_modules():
        if not isinstance(module, torch.nn.Linear | transformers.pytorch_utils.Conv1D) or path.endswith(".dt_proj"):
            continue
        weight = module.weight if isinstance(module, torch.nn.Linear) else module.weight.T
        a = random.normal(0.0, weight.shape[1] ** -0.5, (rank, weight.shape[1]))
        b = random.normal(0.0, size * rank**-0.5, (weight.shape[0], rank))
        layers[path] = Factors(a.astype(np.float32), b.astype(np.float32))
    return Lora(layers, scale=2.0)
