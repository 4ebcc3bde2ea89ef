"""Tiny random models of several architectures, built from a config with a fixed seed. For tests; no downloads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from duologue.backends.lora import Factors, Lora
from duologue.backends.rows import AdapterRows

VOCAB_SIZE = 300
CONTEXT_LENGTH = 128
WIDTH = 32  # of the hidden state
WINDOW = 6  # tokens a sliding layer looks back

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


def tiny_model(architecture: str, *, seed: int = 0) -> Any:
    """A random model in float32, ready for inference; the same weights for the same seed.

    `architecture` is one of `ARCHITECTURES` or "mamba", which is recurrent and which cached backends must refuse.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = _BUILDERS[architecture]()
        with torch.no_grad():
            for parameter in model.parameters():
                # The usual initial values are so small that attention hardly shows in the logits, nor would errors.
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 1.5 / parameter.shape[-1] ** 0.5)
    finally:
        torch.random.set_rng_state(state)
    return model.eval()


def tiny_rows(*, num_probes: int = 1, num_states: int = 4, width: int = WIDTH, seed: int = 0) -> AdapterRows:
    """Random rows that fit every tiny model."""
    random = np.random.default_rng(seed)
    return AdapterRows(
        probes=random.normal(size=(num_probes, width)).astype(np.float32),
        states=random.normal(size=(num_states, width)).astype(np.float32) / np.float32(width**0.5),
    )


def tiny_lora(model: Any, *, rank: int = 4, size: float = 0.5, seed: int = 0) -> Lora:
    """A random LoRA on the linear layers of a model, large enough to change decisions.

    Left out are those whose weights Mamba uses without calling the layer.
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


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_COMMON))


def _qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_COMMON, tie_word_embeddings=True))


def _gemma3() -> Any:
    config = transformers.Gemma3TextConfig(
        **{**_COMMON, "num_hidden_layers": 3},
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def _gemma2() -> Any:
    config = transformers.Gemma2Config(
        **_COMMON,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    )
    return transformers.Gemma2ForCausalLM(config)


def _phi() -> Any:
    config = transformers.PhiConfig(**{**_COMMON, "num_key_value_heads": 4}, partial_rotary_factor=0.5)
    return transformers.PhiForCausalLM(config)


def _minicpm3() -> Any:
    config = transformers.MiniCPM3Config(
        **{**_COMMON, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        scale_emb=3,
        dim_model_base=16,
    )
    return transformers.MiniCPM3ForCausalLM(config)


def _mistral() -> Any:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**_COMMON, sliding_window=WINDOW))


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT_LENGTH,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config)


def _mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=WIDTH, num_hidden_layers=2, state_size=8, use_mambapy=False
    )
    return transformers.MambaForCausalLM(config)


_BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": _llama,  # grouped key/value heads
    "qwen2": _qwen2,  # biases, tied head
    "gemma3": _gemma3,  # windows on some layers, scaled embeddings
    "gemma2": _gemma2,  # capped scores and logits
    "phi": _phi,  # partial rotary
    "minicpm3": _minicpm3,  # latent attention (keys and values of different width), scaled embeddings and head
    "mistral": _mistral,  # one window on all layers
    "gpt2": _gpt2,  # learned positions
    "mamba": _mamba,
}

ARCHITECTURES: tuple[str, ...] = tuple(name for name in _BUILDERS if name != "mamba")
