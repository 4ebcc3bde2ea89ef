"""Caches a GGUF file's dequantised weights in Hugging Face format, because transformers dequantises slowly.

Loading SmolLM2-135M takes 18 seconds from GGUF and half a second from this cache, with identical bits. This module
handles files only: the reader of a model asks `folder_for` for its place and passes what it read to `store`.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import transformers

from duologue.backends.file_cache import cache_folder, file_digest

SMALLEST, LARGEST = 32 << 20, 2 << 30
"""Bytes of weights. Smaller models load fast enough; larger ones would fill a disk without the user's consent."""


def folder_for(gguf: Path, dtype: str) -> Path:
    """The folder in the cache for the weights of `gguf` in `dtype`. It exists whole or not at all.

    Another file, type or version of transformers has another folder.
    """
    digest = file_digest(gguf, after=f" {transformers.__version__}")
    return cache_folder() / "unpacked" / f"{gguf.stem}-{dtype}-{digest.hexdigest()[:16]}"


def store(model: Any, tokenizer: Any, folder: Path) -> bool:
    """Write model and tokenizer to `folder`. False (not an error) if the size is out of range or there is no room."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if not SMALLEST <= size <= LARGEST:
        return False
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(part).free < 2 * size:
            return False
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        with contextlib.suppress(OSError):  # another process was faster
            part.rename(folder)
    except (OSError, RuntimeError, ValueError):
        # The folder is not writable, or the tokenizer or model cannot be saved: the next start is slow again.
        return False
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder.is_dir()


def discard(folder: Path) -> None:
    """Remove a cached folder that cannot be read."""
    shutil.rmtree(folder, ignore_errors=True)
