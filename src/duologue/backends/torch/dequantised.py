"""Keeps a GGUF file's weights in Hugging Face form once they were unpacked, since unpacking takes transformers long.

SmolLM2-135M takes 18 seconds from GGUF and half a second from what is kept, which holds the same bits. Knows files
only; whoever reads a model asks `place` where it would be and gives `keep` what it read.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import transformers

SMALLEST, LARGEST = 32 << 20, 2 << 30
"""Bytes of weights: smaller models are unpacked fast enough, larger ones would fill a disk unasked."""


def place(gguf: Path, dtype: str) -> Path:
    """The folder for the weights of `gguf` in `dtype`; it exists whole or not at all.

    It is in the folder that `DUOLOGUE_CACHE` names (`~/.cache/duologue` by default); another file, type, or version of
    transformers has another one.
    """
    stat = gguf.stat()
    digest = hashlib.sha256(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns} {transformers.__version__}".encode())
    with gguf.open("rb") as file:  # a file may be replaced by one of its size and age
        digest.update(file.read(1 << 16))
        file.seek(max(0, stat.st_size - (1 << 20)))
        digest.update(file.read())
    home = Path(os.environ.get("DUOLOGUE_CACHE") or Path.home() / ".cache" / "duologue")
    return home / "unpacked" / f"{gguf.stem}-{dtype}-{digest.hexdigest()[:16]}"


def keep(model: Any, tokenizer: Any, folder: Path) -> bool:
    """Write what was read to `folder`. False if it was not kept: of another size, or no room, which is no error."""
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
        # A folder that cannot be written, a tokenizer or model that cannot be saved: the next start is slow again.
        return False
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder.is_dir()


def discard(folder: Path) -> None:
    """Remove a kept folder that cannot be read."""
    shutil.rmtree(folder, ignore_errors=True)
