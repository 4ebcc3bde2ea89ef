"""A random Llama with a byte-level tokenizer and ChatML, small enough to be trained in a test."""

from pathlib import Path
from typing import Any

import torch
import transformers

from duologue.backends.torch.tokenizer import HfTokenizer
from scripted import CHATML
from tiny_tokenizers import bytelevel


def tiny_chat(*, padding: int = 0, seed: int = 0, **changes: Any) -> tuple[Any, HfTokenizer]:
    """The model and its tokenizer. `padding`: ids without a token, as many models have; `changes` of its size."""
    tokenizer = bytelevel(["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer.wrapped.chat_template = CHATML
    size = {
        "vocab_size": len(tokenizer.wrapped) + padding,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.wrapped.convert_tokens_to_ids("<|im_end|>"),
    }
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(size | changes))), tokenizer


def tiny_chat_folder(folder: Path, **options: Any) -> Path:
    """The same in Hugging Face form, in `folder`."""
    model, tokenizer = tiny_chat(**options)
    model.save_pretrained(folder)
    tokenizer.wrapped.save_pretrained(folder)
    return folder
