"""Writes a tiny Hugging Face model as a GGUF file in float32, for tests of GGUF readers."""

from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, TokenType, get_tensor_name_map

ARCHS = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "gemma3": MODEL_ARCH.GEMMA3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "minicpm": MODEL_ARCH.MINICPM,
}


def write_tiny_gguf(model, name: str, path: Path, *, extra=()) -> Path:
    """Write the `model` of `tiny_model(name)` to `path`. `extra`: additional (method, value) pairs for the writer."""
    config, arch = model.config, ARCHS[name]
    writer = GGUFWriter(path, arch.name.lower())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(f"tiny {name}")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_theta(config))
    writer.add_file_type(0)
    writer.add_vocab_size(config.vocab_size)
    if name.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if name == "gemma3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    for method, value in extra:
        getattr(writer, method)(value)
    _add_vocabulary(writer, config.vocab_size)
    _add_tensors(writer, model, name, arch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _theta(config) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        rope = rope["full_attention"]
    return float(rope.get("rope_theta", 10000.0))


def _add_vocabulary(writer, size: int) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", "Ċ", *letters, "ab"]
    tokens += [f"t{i}" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([int(TokenType.CONTROL)] * 3 + [int(TokenType.NORMAL)] * (size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_tensors(writer, model, name: str, arch: MODEL_ARCH) -> None:
    names = get_tensor_name_map(arch, model.config.num_hidden_layers)
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = value.numpy().astype(np.float32)
        if name in ("llama", "minicpm") and "q_proj" in key:
            array = _interleave(array, heads)
        if name in ("llama", "minicpm") and "k_proj" in key:
            array = _interleave(array, kv_heads)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            array = array + 1
        stem, suffix = key.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", array)


def _interleave(array: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs adjacent, as in llama.cpp, instead of half a head apart. array: [out, in]."""
    return array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
