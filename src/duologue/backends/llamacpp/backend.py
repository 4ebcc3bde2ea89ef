"""A backend on llama.cpp: any GGUF model, sequences that share KV without copying it, one `llama_decode` for a pass.

It knows ids, positions and llama.cpp's cache; not text and not roles. llama.cpp answers an illegal call with an
assertion that ends the process, so everything is checked here before it is asked. An adapter's rows live in the model
file (see `gguf_files`), because llama.cpp does not mix tokens and embeddings in one batch. Its LoRA holds for a whole
`llama_decode`, so with one the probes of all sequences have a pass of their own, behind that of all other tokens. Long
new texts can be read in a second cache (see `llamacpp_nursery`).
"""

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import llama_cpp as ll
import numpy as np
import numpy.typing as npt

from duologue.backends.llamacpp import library
from duologue.backends.llamacpp.caches import Caches
from duologue.backends.llamacpp.prefill_cache import LEAST, Nursery
from duologue.backends.sampling import choose, weigh
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import CacheFull, ContextOverflow, EngineError, UnknownSeq, UnsupportedModel, UsageError
from duologue.types import Seq, Token

MAX_MICRO_BATCH = 512
"""Tokens computed at once: a longer pass is cut by llama.cpp inside one call, which bounds its scratch memory."""

_BELOW_TILES = 63
"""With flash attention on a CPU, llama.cpp computes 64 tokens and more in tiles, in which it does not pass over what
belongs to other sequences; with ten of 512 tokens, the 64th made a pass three times as long. On a GPU (untested) it has
other kernels, for which wide is good."""


@dataclass(slots=True)
class _Sequence:
    """One open sequence: its id in llama.cpp, and a name for each entry it holds, shared ones with other sequences."""

    slot: int
    entries: list[int]
    cradle: int | None = None  # its id in the nursery, as long as it is there


@dataclass(frozen=True, slots=True)
class _Piece:
    """What of one `Extend` is fed in one pass."""

    index: int  # of the `Extend` in its batch
    slot: int  # in the cache of the pass
    tokens: tuple[Token, ...]
    position: int  # of the first of them
    is_looked_at: bool  # the last of them is where the `Extend` draws or watches


class LlamaCppBackend(Backend):
    """llama.cpp through the C interface of `llama-cpp-python`.

    Args:
        model: a GGUF file, or one that is loaded already: its weights are in memory once, whoever uses them.
        base_vocab_size: ids of the base model; by default what the file says of itself when `gguf_files` has added
            rows to it, else all of its vocabulary.
        num_added: added ids after those; by default what the file says, else none.
        context_length: longest sequence in tokens; by default the model's own, at most `capacity`.
        capacity: KV entries over all sequences, a shared one counted once.
        max_seqs: sequences open at the same time, 1 … 128.
        threads: CPU threads; by default one for each core this process may use.
        flash_attention: compute attention without storing its scores.
        micro_batch: tokens computed at once; a longer pass is cut inside the call. With flash attention on a CPU at
            most 63 of them, but in the nursery.
        kv_type: numbers the cache is kept in; "f32" doubles it, for comparing with other backends.
        lora_path: a GGUF file with the LoRA of an adapter (see `gguf_lora`), which holds at added ids alone.
        nursery: KV entries, beside `capacity`, of the cache in which long new texts are read; 0: they are read where
            all sequences are. A pass that feeds both takes two.

    Raises:
        ModelNotFound: no such file.
        AdapterMismatch: the LoRA does not fit the model.
        BrokenModel: the file cannot be read as a model.
        UnsupportedModel: a kind of model that llama.cpp does not know or that cannot roll back.
        UsageError: numbers that contradict each other.
    """

    def __init__(
        self,
        model: Path | str | library.LoadedModel,
        *,
        base_vocab_size: int | None = None,
        num_added: int | None = None,
        context_length: int | None = None,
        capacity: int = 4096,
        max_seqs: int = 16,
        threads: int | None = None,
        flash_attention: bool = True,
        micro_batch: int = MAX_MICRO_BATCH,
        kv_type: Literal["f16", "f32"] = "f16",
        lora_path: Path | str | None = None,
        nursery: int = 0,
    ) -> None:
        _check_sizes(capacity, max_seqs, context_length, micro_batch, threads)
        self._seqs: dict[Seq, _Sequence] = {}
        self._next_seq = 0
        self._free_slots = list(range(max_seqs - 1, -1, -1))
        self._holders = np.zeros(capacity, dtype=np.int32)  # sequences that hold an entry
        self._free_entries = list(range(capacity - 1, -1, -1))
        self._closing = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, self._closing.close)
        try:
            model = model.shared() if isinstance(model, library.LoadedModel) else library.LoadedModel(Path(model))
            self._closing.callback(model.close)
            self._softcap = model.softcap
            self._num_probes = model.num_probes
            self._lora = None if lora_path is None else model.lora(Path(lora_path))
            self._file_vocab_size = model.vocab_size
            vocab_size, added = _split_vocabulary(model, base_vocab_size, num_added)
            self._info = BackendInfo(
                name="llamacpp",
                model=model.name,
                weights=model.weights,
                vocab_size=vocab_size,
                num_added=added,
                context_length=min(context_length or model.context_length, capacity),
                capacity=capacity,
                max_seqs=max_seqs,
                kv_bytes_per_token=model.kv_numbers_per_token * (4 if kv_type == "f32" else 2),
                can_truncate=True,
                probe_passes=int(self._lora is not None),
            )
            # Layers with a sliding window reuse cells that have left it, unless two sequences hold them. A twin of
            # every sequence holds what it holds, so that rolling back beyond the window stays possible.
            self._twins = max_seqs if model.sliding_window else 0
            open_context = partial(
                self._open_context,
                model,
                threads=threads or _num_cores(),
                flash_attention=flash_attention,
                kv_type=kv_type,
            )
            has_tiles = flash_attention and not ll.llama_supports_gpu_offload()
            self._context = open_context(
                capacity,
                max_seqs + self._twins,
                micro_batch=min(micro_batch, _BELOW_TILES) if has_tiles else micro_batch,
            )
            open_nursery = partial(open_context, micro_batch=micro_batch)
            self._nursery = Nursery(nursery, open_nursery) if nursery and not self._twins else None
            self._memory = ll.llama_get_memory(self._context)
            self._batch = self._open_batch(capacity)
            # OpenMP keeps a team of threads for every thread that has run a pass, as long as that one lives, and lets
            # them spin less while there are more than cores: a team left behind here would slow down a worker's passes.
            with ThreadPoolExecutor(1) as passing:
                passing.submit(self._check_rollback).result()
        except BaseException:
            self.close()
            raise

    # -- the contract ------------------------------------------------------------------------------------------------

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        self._check_open()
        shared: list[int] = []
        if parent is not None:
            shared = self._open(parent).entries
            if not 0 <= length <= len(shared):
                raise UsageError(f"cannot fork sequence {parent} at {length}; it has {len(shared)} cached tokens")
        elif length != 0:
            raise UsageError(f"a sequence without a parent starts empty; got length {length}")
        if not self._free_slots:
            raise CacheFull(
                f"{self._info.max_seqs} sequences are open; free one or open the backend with more max_seqs"
            )
        if parent is not None and length:
            self._settle(self._seqs[parent])
            self._copy(self._seqs[parent].slot, self._free_slots[-1], 0, length)
        slot = self._free_slots.pop()
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._seqs[seq] = _Sequence(slot, shared[:length])
        self._holders[shared[:length]] += 1
        return seq

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self._check_open()
        check_batch(self._info, batch)
        if self._num_probes is not None:
            _check_added(self._info.vocab_size, self._num_probes, batch)
        self._check_room(batch)
        steps: dict[int, Step] = {}
        apart = self._apart(batch)
        try:
            base, probes, young = self._pieces(batch, apart)
            if young:
                assert self._nursery is not None, "it is where they are"
                steps |= self._pass(batch, young, self._nursery.context)
            if base:
                steps |= self._pass(batch, base, self._context)
            if probes:
                with self._lora_set():
                    steps |= self._pass(batch, probes, self._context)
        except BaseException:
            for extend in batch:
                self._roll_back(self._seqs[extend.seq], len(self._seqs[extend.seq].entries))
            raise
        if self._nursery is not None:
            self._nursery.fed(sum(len(extend.tokens) for extend in batch if extend.seq in apart))
        for extend in batch:
            new = [self._free_entries.pop() for _ in extend.tokens]
            self._holders[new] = 1
            self._seqs[extend.seq].entries.extend(new)
        return [steps[index] for index in range(len(batch))]

    def num_passes(self, batch: Sequence[Extend]) -> int:
        apart = self._apart(batch)
        others = [extend for extend in batch if extend.seq not in apart]
        return bool(apart) + (super().num_passes(others) if others else 0)

    def truncate(self, seq: Seq, length: int) -> None:
        sequence = self._open(seq)
        if not 0 <= length <= len(sequence.entries):
            raise UsageError(
                f"cannot roll sequence {seq} back to {length}; it has {len(sequence.entries)} cached tokens"
            )
        if length < len(sequence.entries):
            self._roll_back(sequence, length)
            if self._nursery is not None and sequence.cradle is not None:
                self._nursery.fed(length - len(sequence.entries))
            self._let_go(sequence.entries[length:])
            del sequence.entries[length:]

    def free(self, seq: Seq) -> None:
        sequence = self._open(seq)
        self._remove(sequence.slot, 0)
        if self._nursery is not None and sequence.cradle is not None:
            self._nursery.leave(sequence.cradle, len(sequence.entries))
        self._let_go(sequence.entries)
        del self._seqs[seq]
        self._free_slots.append(sequence.slot)

    def length(self, seq: Seq) -> int:
        return len(self._open(seq).entries)

    def usage(self) -> Usage:
        entries = self._info.capacity - len(self._free_entries)
        return Usage(num_seqs=len(self._seqs), kv_entries=entries, kv_bytes=entries * self._info.kv_bytes_per_token)

    def close(self) -> None:
        self._seqs.clear()
        self._finalizer()

    def _open_context(self, model: library.LoadedModel, capacity: int, max_seqs: int, **options: Any) -> Any:
        context = library.open_context(model, capacity=capacity, max_seqs=max_seqs, **options)
        self._closing.callback(ll.llama_free, context)
        return context

    def _open_batch(self, capacity: int) -> Any:
        batch = ll.llama_batch_init(capacity, 0, 1)
        self._closing.callback(ll.llama_batch_free, batch)
        for i in range(capacity):
            batch.n_seq_id[i] = 1
        return batch

    # -- the cache ---------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise UsageError("this backend is closed; open another one")

    def _open(self, seq: Seq) -> _Sequence:
        self._check_open()
        try:
            return self._seqs[seq]
        except (KeyError, TypeError):
            raise UnknownSeq(f"no sequence {seq!r} is open; open ones: {sorted(self._seqs)}") from None

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        ll.llama_memory_seq_cp(self._memory, source, target, start, end)
        if self._twins:
            ll.llama_memory_seq_cp(self._memory, source, target + self._twins, start, end)

    def _remove(self, slot: int, start: int) -> None:
        """Forget all of `slot` from position `start` on; `start` 0 empties it."""
        for each in (slot, slot + self._twins) if self._twins else (slot,):
            if not ll.llama_memory_seq_rm(self._memory, each, start, -1):
                raise EngineError(
                    f"llama.cpp could not roll a sequence back to {start}; this is a defect, please report it"
                )

    def _roll_back(self, sequence: _Sequence, length: int) -> None:
        """Forget all of `sequence` from position `length` on, wherever it is."""
        if self._nursery is not None and sequence.cradle is not None:
            self._nursery.roll_back(sequence.cradle, length)
        else:
            self._remove(sequence.slot, length)

    def _apart(self, batch: Sequence[Extend]) -> set[Seq]:
        """Which sequences are fed in the nursery: new ones of which nothing is wanted but that they are read."""
        nursery, apart = self._nursery, set[Seq]()
        if nursery is None:
            return apart
        num_new = num_tokens = 0
        for extend in batch:
            sequence = self._open(extend.seq)
            is_new = sequence.cradle is None
            if is_new and sequence.entries:
                continue
            is_plain = extend.draw is None and not extend.watch and len(extend.tokens) >= LEAST
            if is_plain and nursery.has_room(num_tokens + len(extend.tokens), num_new + is_new):
                apart.add(extend.seq)
                num_tokens, num_new = num_tokens + len(extend.tokens), num_new + is_new
        return apart

    def _settle(self, sequence: _Sequence) -> None:
        """What was read in the nursery moves to where all others are."""
        if self._nursery is not None and sequence.cradle is not None:
            if sequence.entries:
                self._nursery.move(sequence.cradle, len(sequence.entries), self._context, sequence.slot)
            else:
                self._nursery.leave(sequence.cradle, 0)
            sequence.cradle = None

    def _let_go(self, entries: Sequence[int]) -> None:
        self._holders[entries] -= 1
        self._free_entries.extend(entry for entry in entries if self._holders[entry] == 0)

    def _check_room(self, batch: Sequence[Extend]) -> None:
        for extend in batch:
            length = len(self._open(extend.seq).entries) + len(extend.tokens)
            if length > self._info.context_length:
                raise ContextOverflow(
                    f"sequence {extend.seq} would hold {length} tokens; the context ends at {self._info.context_length}"
                )
        wanted = sum(len(extend.tokens) for extend in batch)
        if wanted > len(self._free_entries):
            raise CacheFull(
                f"the pass needs {wanted} KV entries and {len(self._free_entries)} of {self._info.capacity} are free; "
                "free or truncate a sequence"
            )

    # -- the passes --------------------------------------------------------------------------------------------------

    def _pieces(self, batch: Sequence[Extend], apart: set[Seq]) -> tuple[list[_Piece], list[_Piece], list[_Piece]]:
        """What is fed in the base's pass, in the one with the LoRA set, and in that of the nursery."""
        base, probes, young = [], [], []
        for index, extend in enumerate(batch):
            sequence, tokens = self._seqs[extend.seq], extend.tokens
            start, num_base = len(sequence.entries), len(tokens)
            if extend.seq in apart:
                assert self._nursery is not None, "it is where they are"
                sequence.cradle = self._nursery.enter() if sequence.cradle is None else sequence.cradle
                young.append(_Piece(index, sequence.cradle, tokens, start, is_looked_at=False))
                continue
            self._settle(sequence)
            if self._lora is not None:
                num_base = sum(token < self._info.vocab_size for token in tokens)
            is_looked_at = extend.draw is not None or bool(extend.watch)
            if num_base:
                is_end = num_base == len(tokens)
                base.append(_Piece(index, sequence.slot, tokens[:num_base], start, is_looked_at and is_end))
            if num_base < len(tokens):
                probes.append(_Piece(index, sequence.slot, tokens[num_base:], start + num_base, is_looked_at))
        return base, probes, young

    def _pass(self, batch: Sequence[Extend], pieces: Sequence[_Piece], context: Any) -> dict[int, Step]:
        """One `llama_decode`. Returns what it says to each `Extend`, by its index."""
        last = self._fill(pieces)
        status = ll.llama_decode(context, self._batch)
        if status != 0:
            raise _decode_error(status)
        if self._twins:
            for piece in pieces:
                ll.llama_memory_seq_cp(self._memory, piece.slot, piece.slot + self._twins, piece.position, -1)
        return {
            piece.index: self._step(batch[piece.index], row) if piece.is_looked_at else Step(batch[piece.index].ticket)
            for piece, row in zip(pieces, last, strict=True)
        }

    def _fill(self, pieces: Sequence[_Piece]) -> list[int]:
        """Write `pieces` into llama.cpp's batch; return the index of the last token of each."""
        c, i, last = self._batch, 0, []
        for piece in pieces:
            for position, token in enumerate(piece.tokens, piece.position):
                c.token[i], c.pos[i], c.seq_id[i][0], c.logits[i] = token, position, piece.slot, 0
                i += 1
            c.logits[i - 1] = piece.is_looked_at
            last.append(i - 1)
        c.n_tokens = i
        return last

    @contextlib.contextmanager
    def _lora_set(self) -> Iterator[None]:
        """For the passes inside, the LoRA holds."""
        library.set_lora(self._context, self._lora)
        try:
            yield
        finally:
            library.set_lora(self._context, None)

    def _step(self, extend: Extend, row: int) -> Step:
        pointer = ll.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise EngineError("llama.cpp returned no logits for a token that asked for them")
        # A view of llama.cpp's own buffer, valid until the next pass. logits: [V]
        logits = np.ctypeslib.as_array(pointer, shape=(self._file_vocab_size,))
        if extend.draw is None:
            return Step(extend.ticket, p=weigh(self._watched(logits, extend.watch)))
        token, margin = choose(logits[: self._info.vocab_size], extend.draw)
        return Step(extend.ticket, tokens=(token,), margin=margin)

    def _watched(self, logits: npt.NDArray[np.float32], watch: Sequence[int]) -> npt.NDArray[np.float32]:
        ids = np.asarray(watch)
        picked = np.asarray(logits[ids], dtype=np.float32)
        if not self._softcap:
            return picked
        # Rows are plain dot products wherever they run: undo the squashing the model applies to all of its logits.
        limit = np.nextafter(np.float32(1), np.float32(0))
        plain = self._softcap * np.arctanh(np.clip(picked / self._softcap, -limit, limit))
        return np.asarray(np.where(ids >= self._info.vocab_size, plain, picked), dtype=np.float32)

    def _check_rollback(self) -> None:
        """Feed two tokens and take the second one back: a cache that cannot do it shows it here."""
        probe = self.fork(None)
        self.forward([Extend(probe, (0,) * min(2, self._info.context_length))])
        try:
            self.truncate(probe, 1)
        except EngineError as error:
            raise UnsupportedModel(
                f"the cache of {self._info.model} cannot be rolled back, which duplex decoding needs; "
                "use a model with plain attention, or the torch backend"
            ) from error
        self.free(probe)
        self._next_seq = 0


def open_caches(path: Path | str, number: int, **options: Any) -> Backend:
    """A backend of so many caches, each with the `options` of `LlamaCppBackend`; the weights are loaded once.

    Raises what `LlamaCppBackend` raises.
    """
    with contextlib.ExitStack() as undoing, contextlib.closing(library.LoadedModel(Path(path))) as model:
        caches: list[Backend] = []
        for _ in range(number):
            caches.append(LlamaCppBackend(model, **options))
            undoing.callback(caches[-1].close)
        undoing.pop_all()
    return caches[0] if number == 1 else Caches(caches)


def _check_sizes(
    capacity: int, max_seqs: int, context_length: int | None, micro_batch: int, threads: int | None
) -> None:
    limit = ll.llama_max_parallel_sequences() // 2
    if not 1 <= max_seqs <= limit:
        raise UsageError(f"max_seqs {max_seqs} is not between 1 and {limit}, llama.cpp's limit")
    if capacity < 2:
        raise UsageError(f"a capacity of {capacity} KV entries holds nothing; give at least 2")
    if context_length is not None and not 2 <= context_length <= capacity:
        raise UsageError(f"context_length {context_length} is not between 2 and the capacity of {capacity} KV entries")
    if micro_batch < 1 or (threads is not None and threads < 1):
        raise UsageError(f"micro_batch {micro_batch} and threads {threads} must be at least 1")


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # a container may be given fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _split_vocabulary(model: library.LoadedModel, base: int | None, added: int | None) -> tuple[int, int]:
    """How many ids are the base model's, and how many were added."""
    if base is None:
        base = model.base_vocab_size if model.base_vocab_size is not None else model.vocab_size - (added or 0)
    if added is None:
        added = model.num_added if model.base_vocab_size == base else 0
    if not (base >= 1 and added >= 0 and base + added <= model.vocab_size):
        raise UsageError(
            f"{base} base ids and {added} added ones do not fit the {model.vocab_size} ids of {model.path.name}; "
            "add the rows with duologue.backends.llamacpp.gguf_files.convert"
        )
    return base, added


def _check_added(vocab_size: int, num_probes: int, batch: Sequence[Extend]) -> None:
    first_state = vocab_size + num_probes
    for extend in batch:
        if max(extend.tokens) >= first_state:
            raise UsageError(f"id {max(extend.tokens)} is a state of the adapter; states are watched, never fed")
        for token in extend.watch:
            if vocab_size <= token < first_state:
                raise UsageError(f"id {token} is a probe token of the adapter; probes are fed, never watched")


def _decode_error(status: int) -> EngineError:
    if status == 1:
        return CacheFull("llama.cpp found no room in its cache for this pass; free or truncate a sequence")
    return EngineError(f"llama.cpp could not compute the pass (status {status}): {library.last_messages()}")
