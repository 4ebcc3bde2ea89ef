"""Tiny random audio language models, their feature extractor and a tokenizer. For tests and examples; no downloads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import transformers

from duologue.testing.tiny_models import CONTEXT_LENGTH, VOCAB_SIZE, WIDTH, randomised
from duologue.types import Token

AUDIO_TOKEN = VOCAB_SIZE - 1  # stands for a row in the ids that the library's own forward pass takes
WINDOW_S = 2  # seconds that the encoder takes at once; 30 in the real models

_NUM_MEL_BINS = 16
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4 * CONTEXT_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_POSITIONS = 50 * WINDOW_S


def tiny_audio_model(kind: str, *, seed: int = 0) -> Any:
    """A random "qwen2_audio" or "voxtral" in float32, ready for inference; the same weights for the same seed."""
    config: Any
    if kind == "qwen2_audio":
        encoder = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 32}
        config = transformers.Qwen2AudioConfig(
            audio_config={"model_type": "qwen2_audio_encoder", **encoder, **_sizes()},
            text_config={"model_type": "qwen2", **_TEXT},
            audio_token_index=AUDIO_TOKEN,
        )
        made = transformers.Qwen2AudioForConditionalGeneration
    else:
        encoder = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        config = transformers.VoxtralConfig(
            audio_config={"model_type": "voxtral_encoder", **encoder, **_sizes()},
            text_config={"model_type": "llama", **_TEXT},
            audio_token_id=AUDIO_TOKEN,
        )
        made = transformers.VoxtralForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(made(config))


def tiny_extractor() -> Any:
    """The feature extractor of the tiny audio models: 16 kHz, in windows of `WINDOW_S` seconds."""
    return transformers.WhisperFeatureExtractor(feature_size=_NUM_MEL_BINS, chunk_length=WINDOW_S)


def _sizes() -> dict[str, int]:
    return {"num_mel_bins": _NUM_MEL_BINS, "max_source_positions": _POSITIONS}


@final
class TinyTokenizer:
    """Every byte is a token, and so are the marks of ChatML and of audio."""

    vocab_size = VOCAB_SIZE
    special_text: Mapping[str, str] = {}
    special_tokens: Mapping[str, Token] = {
        text: 256 + index
        for index, text in enumerate(("<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", "[BEGIN_AUDIO]"))
    }
    bos = None
    stop_tokens = frozenset({257})
    chat_template: str | None = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """Bytes; with `special`, marks are tokens."""
        marks = "|".join(map(re.escape, self.special_tokens))
        parts = re.split(f"({marks})", text) if special else [text]
        return [
            token
            for part in parts
            for token in ([self.special_tokens[part]] if special and part in self.special_tokens else part.encode())
        ]

    def decode(self, tokens: Sequence[Token]) -> str:
        """The bytes and marks as text."""
        marks = {token: text.encode() for text, token in self.special_tokens.items()}
        return b"".join(marks.get(t, bytes([t]) if t < 256 else b"") for t in tokens).decode(errors="replace")
