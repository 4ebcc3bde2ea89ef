"""Reads a Hugging Face model and its tokenizer from a folder, a GGUF file or the hub."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import transformers

from duologue.backends.torch import dequantised
from duologue.errors import BrokenModel, MissingDependency, ModelNotFound, UsageError, require
from duologue.types import Token

DTYPES = ("bfloat16", "float16", "float32")


def faster_dtype() -> str:
    """ "bfloat16", or "float32" where that is at least three times as fast: on CPUs without instructions for bfloat16.

    With them, it can be twice as fast in products of this size, which must not decide: a training run that was killed
    would not continue if the answer changed.
    """
    if torch.accelerator.is_available():
        return "bfloat16"
    return "float32" if _product_s(torch.bfloat16) > 3 * _product_s(torch.float32) else "bfloat16"


def _product_s(dtype: torch.dtype) -> float:
    """Processor seconds of a matrix product, the least of some: what else the machine does matters little."""
    left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
    seconds = []
    for _ in range(9):  # the first also chooses the kernel
        start = time.process_time()
        left @ right
        seconds.append(time.process_time() - start)
    return min(seconds)


def read_model(
    source: Path | str, *, revision: str | None = None, dtype: str = "bfloat16", device: str = "cpu"
) -> tuple[Any, Any]:
    """The model and its tokenizer (`PreTrainedModel`, `PreTrainedTokenizerBase`).

    `source` is a folder in Hugging Face format, the path of a `.gguf` file, or "owner/name" on the hub. Only the last
    uses the network; `revision` pins what is downloaded (a commit, tag or branch). GGUF weights are dequantised to
    `dtype`: "bfloat16", "float16" or "float32".

    Raises:
        ModelNotFound: there is no such model.
        BrokenModel: the model cannot be read.
        MissingDependency: reading it needs a library that is not installed.
        UsageError: `dtype` or `device` is not available.
    """
    require(dtype in DTYPES, f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        model, tokenizer = _read_gguf(path, dtype)
    else:
        model, tokenizer = _read(_folder_or_hub_name(source, path), getattr(torch, dtype), revision=revision)
    try:
        return model.to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the model cannot be put on device {device!r}: {error}") from error


def read_tokenizer(source: Path | str, *, revision: str | None = None) -> Any:
    """The tokenizer alone (`PreTrainedTokenizerBase`); no weights are read. See `read_model`.

    Raises:
        ModelNotFound, BrokenModel, MissingDependency: see `read_model`.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        _check_gguf(path)
        return _read_tokenizer(str(path.parent), {"gguf_file": path.name})
    return _read_tokenizer(_folder_or_hub_name(source, path), {} if revision is None else {"revision": revision})


def read_stop_tokens(folder: Path) -> list[Token]:
    """The ids that end a generation according to the configuration in `folder`; none if it has none."""
    try:
        ids = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return [] if ids is None else list(ids) if isinstance(ids, list) else [int(ids)]


def _folder_or_hub_name(source: Path | str, path: Path) -> str:
    if path.is_dir():
        if not (path / "config.json").is_file():
            ggufs = ", ".join(sorted(file.name for file in path.glob("*.gguf"))[:8]) or "none"
            raise ModelNotFound(f"{path} has no config.json; if you meant one of its GGUF files, name it: {ggufs}")
        return str(path)
    name = str(source)
    if isinstance(source, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelNotFound(f"there is no folder {path}; give a model folder, a .gguf file, or owner/name on the hub")
    return name


def _read_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    """The model in a GGUF file, from the cache of dequantised weights if an earlier call stored it there."""
    _check_gguf(path)
    try:
        stored = dequantised.folder_for(path, dtype)
    except (OSError, RuntimeError):  # no home directory, or an unreadable file, which the reader reports
        return _read(str(path.parent), getattr(torch, dtype), gguf_file=path.name)
    if stored.is_dir():
        try:
            return _read(str(stored), getattr(torch, dtype))
        except BrokenModel:
            dequantised.discard(stored)
    model, tokenizer = _read(str(path.parent), getattr(torch, dtype), gguf_file=path.name)
    with _quiet():
        dequantised.store(model, tokenizer, stored)
    return model, tokenizer


def _check_gguf(path: Path) -> None:
    if not path.is_file():
        others = ", ".join(sorted(file.name for file in path.parent.glob("*.gguf"))[:8]) or "no GGUF files"
        raise ModelNotFound(f"there is no {path.name} in {path.parent}, which has {others}")


def _read(
    folder: str, dtype: torch.dtype, *, gguf_file: str | None = None, revision: str | None = None
) -> tuple[Any, Any]:
    given = {"gguf_file": gguf_file, "revision": revision}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with _explained(folder, options):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options, **_unpacking(options))
    return model, _read_tokenizer(folder, options)


def _read_tokenizer(folder: str, options: dict[str, Any]) -> Any:
    with _explained(folder, options):
        return transformers.AutoTokenizer.from_pretrained(folder, **options)


@contextmanager
def _explained(folder: str, options: dict[str, Any]) -> Iterator[None]:
    """Explain what the library raises while it reads `folder` with `options`."""
    try:
        with _quiet() if Path(folder).is_dir() else nullcontext():  # a download shows its progress
            yield
    except ImportError as error:
        raise MissingDependency(f"{error}; pip install 'duologue[torch]' accelerate") from error
    except Exception as error:
        # The readers of damaged files raise errors without a common class.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not Path(folder).is_dir():
            pinned = f" at revision {options['revision']}" if "revision" in options else ""
            raise ModelNotFound(f"the hub provided no model {folder}{pinned}: {reason}") from error
        what = "/".join([folder, *([options["gguf_file"]] if "gguf_file" in options else [])])
        raise BrokenModel(f"{what} cannot be read as a causal language model: {reason}") from error


def _unpacking(options: dict[str, Any]) -> dict[str, Any]:
    """Newer versions of transformers keep GGUF weights packed unless told otherwise; older ones always unpack."""
    config = getattr(transformers, "GgufConfig", None) if "gguf_file" in options else None
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's progress bars and advice while it reads local files."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader has a progress bar that no setting turns off
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
