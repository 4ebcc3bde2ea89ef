"""Any Hugging Face causal language model with a KV pool that sequences share: fork copies a list, never KV."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from duologue.backends.lora import Lora
from duologue.backends.rows import Rows
from duologue.backends.torch import dequantised
from duologue.backends.torch.huggingface import CausalModel, Window, layer_windows
from duologue.backends.torch.slot_attention import SlotCache, SlotPool, make_plan, slot_attention
from duologue.backends.torch.slots import SlotTable
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import (
    BrokenModel,
    CacheFull,
    ContextOverflow,
    MissingDependency,
    ModelNotFound,
    UnsupportedModel,
    UsageError,
)
from duologue.types import Seq, Token

Tensor = torch.Tensor

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative; half precision rounds far more
_HALF_TOLERANCE = 0.1
_DEFAULT_CONTEXT = 4096  # a model's own limit can be a hundred times what a conversation needs


class TorchBackend(Backend):
    """A preallocated slot pool per layer, a slot list per sequence, and one model forward per `forward`.

    All tokens of a pass are fed as one row of N tokens. Only attention knows that they belong to different sequences:
    it runs once per *conversation* (sequences that share slots by forking), over that conversation's slots, under a
    mask made from the slot lists. So nothing is padded, no KV is copied, and a conversation costs the same whoever
    else is in the pass. Sliding windows are applied in the mask; nothing is evicted, so every rollback is possible.

    The model's attention is replaced for the time of a pass by way of the library's attention interface, and the model
    can be used for anything else between passes. It is set to evaluation mode.

    At construction two forked channels and a stranger are run against plain forwards of the same tokens; a model that
    answers otherwise is refused. Runs on the model's device; devices other than the CPU are not tested.

    Raises:
        UnsupportedModel: recurrent or linear attention, an encoder, or a model whose attention cannot be replaced.
        AdapterMismatch: the rows have another width than the model, or the LoRA changes layers that it does not have.
        UsageError: a limit that makes no sense, or a pool larger than the memory.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: Rows | None = None,
        lora: Lora | None = None,
        capacity: int,
        max_seqs: int = 16,
        context_length: int | None = None,
        label: str | None = None,
        weights: str | None = None,
    ) -> None:
        causal = CausalModel(model, rows, lora)
        context_length = causal.context_length(context_length)
        windows = _windows(causal)
        pool = _verified_pool(causal, windows).sized(capacity)
        slots = SlotTable(capacity, max_seqs)
        self._passes = _Passes(causal, windows, slots, pool)
        self._causal = causal
        self._slots = slots
        self._info = BackendInfo(
            name="torch",
            model=label or causal.label,
            weights=weights or causal.weights,
            vocab_size=causal.vocab_size,
            num_added=causal.num_added,
            context_length=context_length,
            capacity=capacity,
            max_seqs=max_seqs,
            kv_bytes_per_token=pool.bytes_per_slot,
            can_truncate=True,
        )

    @property
    def info(self) -> BackendInfo:
        return self._info

    @property
    def model(self) -> Any:
        """The Hugging Face model; not to be used while a pass runs."""
        return self._causal.model

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._slots.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        check_batch(self._info, batch)
        self._causal.check_ids(batch)
        for extend in batch:
            length = self._slots.length(extend.seq) + len(extend.tokens)
            if length > self._info.context_length:
                raise ContextOverflow(
                    f"sequence {extend.seq} would have {length} tokens; the context holds {self._info.context_length}"
                )
        with self._passes.undone_on_error(batch):
            looks = self._passes.run(batch, [self._causal.needs_logits(extend) for extend in batch])
            return [self._causal.read(extend, *look) for extend, look in zip(batch, looks, strict=True)]

    def truncate(self, seq: Seq, length: int) -> None:
        self._slots.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._slots.free(seq)

    def length(self, seq: Seq) -> int:
        return self._slots.length(seq)

    def usage(self) -> Usage:
        entries = self._slots.num_used
        return Usage(self._slots.num_seqs, entries, entries * self._info.kv_bytes_per_token)

    def close(self) -> None:
        self._passes.pool.layers.clear()


@dataclass(frozen=True, slots=True)
class _Passes:
    """Runs the model over a pool."""

    causal: CausalModel
    windows: list[Window]  # of each layer
    slots: SlotTable
    pool: SlotPool

    def run(self, batch: Sequence[Extend], wanted: Sequence[bool]) -> list[tuple[Tensor | None, Tensor]]:
        """One forward pass. For each `Extend`, at its last token: base logits [V] if wanted, final hidden state [D]."""
        self.slots.extend([(extend.seq, len(extend.tokens)) for extend in batch])
        plan, order = make_plan(self.slots, batch, self.causal, set(self.windows))
        lasts = dict(zip(order, np.cumsum([len(batch[index].tokens) for index in order]) - 1, strict=True))
        looked = [index for index in order if wanted[index]]
        cache = SlotCache(self.pool, plan, self.windows)
        with slot_attention(self.causal.configs, cache):
            logits, hidden = self.causal.run(
                [token for index in order for token in batch[index].tokens],
                [int(lasts[index]) for index in looked],
                position_ids=plan.positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache.check()
        found = dict(zip(looked, logits, strict=True))
        return [(found.get(index), hidden[int(lasts[index])]) for index in range(len(batch))]

    @contextmanager
    def undone_on_error(self, batch: Sequence[Extend]) -> Iterator[None]:
        """Whatever fails inside leaves every sequence as long as it was."""
        before = [self.slots.length(extend.seq) for extend in batch]
        try:
            yield
        except BaseException as error:
            for extend, length in zip(batch, before, strict=True):
                self.slots.truncate(extend.seq, length)
            if isinstance(error, torch.OutOfMemoryError):
                number = sum(len(extend.tokens) for extend in batch)
                raise CacheFull(f"no memory for a pass of {number} tokens; feed fewer at once") from error
            raise


def load_torch(
    source: Path | str,
    *,
    gguf_file: str | None = None,
    dtype: str = "bfloat16",
    rows: Rows | None = None,
    lora: Lora | None = None,
    context_length: int | None = None,
    capacity: int | None = None,
    max_seqs: int = 16,
    device: str = "cpu",
) -> tuple[TorchBackend, Any]:
    """A backend and its tokenizer (`PreTrainedTokenizerBase`) from a folder, a GGUF file, or a name on the hub.

    `source` is a folder in Hugging Face form, a folder with `gguf_file` in it, a path to a `.gguf` file, or
    "owner/name" on the hub; only the last uses the network. GGUF weights are unpacked to `dtype`: "bfloat16",
    "float16" or "float32". Without `context_length` it is the model's own, at most 4096. Without `capacity`, the KV
    holds half of `max_seqs` full contexts, since a conversation's channels share most of theirs; memory is taken as it
    fills.

    Raises:
        ModelNotFound: nothing is there, or no model in it.
        BrokenModel: there is one, but it cannot be read.
        UnsupportedModel, AdapterMismatch, UsageError: see `TorchBackend`.
    """
    model, tokenizer = read_model(source, gguf_file=gguf_file, dtype=dtype, device=device)
    if context_length is None:
        context_length = min(CausalModel(model, None).context_length(None), _DEFAULT_CONTEXT)
    backend = TorchBackend(
        model,
        rows=rows,
        lora=lora,
        capacity=capacity or context_length * max(1, max_seqs // 2),
        max_seqs=max_seqs,
        context_length=context_length,
        label=Path(gguf_file or source).stem,
    )
    return backend, tokenizer


def read_model(
    source: Path | str, *, gguf_file: str | None = None, dtype: str = "bfloat16", device: str = "cpu"
) -> tuple[Any, Any]:
    """The model and its tokenizer (`PreTrainedModel`, `PreTrainedTokenizerBase`) from where `load_torch` finds them.

    Raises:
        ModelNotFound: nothing is there, or no model in it.
        BrokenModel: there is one, but it cannot be read.
        UsageError: `dtype` is none of those that `load_torch` knows, or there is no such device.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"dtype {dtype!r} is none of bfloat16, float16, float32")
    folder, gguf_file = _located(source, gguf_file)
    if gguf_file is not None and Path(folder).is_dir():
        model, tokenizer = _unpacked(folder, gguf_file, dtype)
    else:
        model, tokenizer = _read(folder, gguf_file, getattr(torch, dtype))
    try:
        return model.to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the model cannot be put on device {device!r}: {error}") from error


def _located(source: Path | str, gguf_file: str | None) -> tuple[str, str | None]:
    """Folder or hub name, and the GGUF file in it if it is one."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and gguf_file is None:
        path, gguf_file = path.parent, path.name
    if path.is_dir():
        if gguf_file is not None and not (path / gguf_file).is_file():
            raise ModelNotFound(f"there is no {gguf_file} in {path}; it has {_listing(path, '*.gguf')}")
        if gguf_file is None and not (path / "config.json").is_file():
            ggufs = _listing(path, "*.gguf")
            raise ModelNotFound(f"{path} has no config.json; name one of its GGUF files if that is meant: {ggufs}")
        return str(path), gguf_file
    name = str(source)
    is_hub_name = isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not is_hub_name:
        raise ModelNotFound(f"there is no folder {path}; give a model folder, a .gguf file, or owner/name on the hub")
    return name, gguf_file


def _listing(folder: Path, pattern: str) -> str:
    names = sorted(path.name for path in folder.glob(pattern))
    return ", ".join(names[:8]) if names else "none"


def _unpacked(folder: str, gguf_file: str, dtype: str) -> tuple[Any, Any]:
    """The model in a GGUF file, from what was kept of an earlier reading if there is any."""
    try:
        kept = dequantised.place(Path(folder) / gguf_file, dtype)
    except (OSError, RuntimeError):  # no home, or a file that cannot be read: the reader will say so
        return _read(folder, gguf_file, getattr(torch, dtype))
    if kept.is_dir():
        try:
            return _read(str(kept), None, getattr(torch, dtype))
        except BrokenModel:
            dequantised.discard(kept)
    model, tokenizer = _read(folder, gguf_file, getattr(torch, dtype))
    with _quiet():
        dequantised.keep(model, tokenizer, kept)
    return model, tokenizer


def _read(folder: str, gguf_file: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    options: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    unpack = {}
    if gguf_file is not None and hasattr(transformers, "GgufConfig"):
        # Newer versions may keep GGUF weights packed and fetch kernels for them; older ones always unpack.
        unpack = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    try:
        with _quiet() if Path(folder).is_dir() else nullcontext():  # a download shows its progress
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options, **unpack)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except ImportError as error:
        raise MissingDependency(f"{error}; pip install 'duologue[torch]' accelerate") from error
    except Exception as error:
        # Whatever a damaged file makes the readers of its format raise: there is no common class.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"{folder}/{gguf_file}" if gguf_file else folder
        if not Path(folder).is_dir():
            raise ModelNotFound(f"the hub gave no model {folder}: {reason}") from error
        raise BrokenModel(f"{what} cannot be read as a causal language model: {reason}") from error
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and advice of the library while local files are read."""
    logging = transformers.utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the reader of GGUF has a bar that no setting turns off
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


# --- What the model is, and the proof of it ---------------------------------------------------------------------------


def _windows(causal: CausalModel) -> list[Window]:
    """How far each layer looks back. Raises `UnsupportedModel` for layers that are not attention."""
    if getattr(causal.model, "_is_stateful", False):
        raise UnsupportedModel(_refusal(causal, "it is recurrent: its state cannot be rolled back or shared"))
    try:
        return layer_windows(causal.config)
    except UnsupportedModel as error:
        raise UnsupportedModel(_refusal(causal, str(error))) from None


def _verified_pool(causal: CausalModel, windows: list[Window]) -> SlotPool:
    """Run two channels and a stranger, compare with plain forwards, and return the (small) pool that was used."""
    shortest = min((window for window in windows if window is not None), default=0)
    length = 12 + (shortest if shortest <= 64 else 0)  # beyond the window, where that is cheap to see
    ids = [(7919 * index + 13) % causal.vocab_size for index in range(length + 24)]
    prefix, answer, words, stranger = ids[:length], ids[length : length + 4], ids[length + 6 : length + 11], ids[-9:]
    passes = _Passes(causal, windows, SlotTable(2 * length + 64, 3), SlotPool(2 * length + 64))
    slots = passes.slots
    output, other = slots.fork(None), slots.fork(None)

    def look(*fed: tuple[Seq, list[Token]]) -> list[Tensor | None]:
        return [logits for logits, _ in passes.run([Extend(seq, tuple(t)) for seq, t in fed], [True] * len(fed))]

    try:
        look((output, prefix[:-2]))
        look((output, [*prefix[-2:], *words]), (other, stranger[:4]))
        slots.truncate(output, length)
        heard = slots.fork(output, length - 3)
        packed = look((output, answer), (other, stranger[4:]), (heard, words))
        plain = [
            causal.run(tokens, [len(tokens) - 1], use_cache=False)[0][0]
            for tokens in (prefix + answer, stranger, prefix[:-3] + words)
        ]
    except UnsupportedModel as error:
        raise UnsupportedModel(_refusal(causal, str(error))) from error
    except (RuntimeError, TypeError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise UnsupportedModel(_refusal(causal, f"a trial pass failed ({type(error).__name__}: {error})")) from error
    worst = float(np.max([_difference(fast, slow) for fast, slow in zip(packed, plain, strict=True)]))
    if not worst <= _TOLERANCE.get(causal.dtype, _HALF_TOLERANCE):  # not NaN either
        raise UnsupportedModel(
            _refusal(causal, f"two channels in one pass gave other logits than each alone (relative error {worst:.2g})")
        )
    return passes.pool


def _difference(fast: Tensor | None, slow: Tensor) -> float:
    """Length of the difference of two logit vectors, relative to how much the logits vary."""
    assert fast is not None
    fast, slow = fast.float(), slow.float()
    spread = (slow - slow.mean()).norm().clamp_min(1e-6)
    return float((fast - slow).norm() / spread)


def _refusal(causal: CausalModel, reason: str) -> str:
    return (
        f"{causal.label} ({causal.model.config.model_type}) cannot run on the torch backend: {reason}. "
        "The reference backend runs it, slowly: ReferenceBackend(model), or --backend reference"
    )
