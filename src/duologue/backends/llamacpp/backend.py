"""A backend on llama.cpp: any GGUF model, sequences that share KV without copying, one `llama_decode` per pass.

It knows ids, positions and llama.cpp's cache, not text or roles. An illegal call makes llama.cpp fail an assertion and
end the process, so every call is checked here first. An adapter's rows are part of the model file (see `gguf_convert`),
because llama.cpp does not mix tokens and embeddings in one batch. A pass with embedding rows therefore feeds all of
its tokens as rows (see `gguf_embeddings`). Its LoRA applies to a whole `llama_decode`; the
probes of all sequences therefore get a second pass after that of all other tokens. With a cascade, probes of other
rows are part of the first pass, and only where these are unsure is there a second one. Long new texts can be read in a
second cache (see `prefill_cache`).
"""

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import llama_cpp as ll
import numpy as np

from duologue.backends.llamacpp import library
from duologue.backends.llamacpp.multi_cache import MultiCacheBackend
from duologue.backends.llamacpp.prefill_cache import MIN_PREFILL, PrefillCache
from duologue.backends.machine import num_cores
from duologue.backends.rows import check_added_ids
from duologue.backends.sampling import FloatArray, drawn, score, weigh
from duologue.backends.slots import SlotTable
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage, check_batch
from duologue.errors import BrokenModel, CacheFull, EngineError, UnsupportedModel, UsageError, refuse
from duologue.types import Seq, Token, VirtualId

MAX_MICRO_BATCH = 512
"""Tokens computed at once. llama.cpp splits a longer pass internally, which bounds its scratch memory."""

_BELOW_TILES = 63
"""With flash attention on a CPU, llama.cpp computes 64 or more tokens in tiles, and then does not skip the entries of
other sequences. With ten sequences of 512 tokens, the 64th token made a pass three times as slow. On a GPU (untested)
it uses other kernels, for which wide passes are good."""


@dataclass(slots=True)
class _Place:
    """Where one open sequence is in llama.cpp."""

    seq_id: int  # in the shared cache
    prefill_id: int | None = None  # in the prefill cache, while it is there


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of one `Extend` that is fed in one pass."""

    index: int  # of the `Extend` in its batch
    seq_id: int  # in the cache of the pass
    tokens: tuple[Token, ...]
    position: int  # of the first token
    num_read: int  # the logits of so many of its last tokens are read: where the `Extend` draws, watches or scores
    shift: int = 0  # of the watched ids: the size of an adapter's vocabulary if its last tokens are a cascade's probe


class LlamaCppBackend(Backend):
    """llama.cpp through the C interface of `llama-cpp-python`.

    Args:
        model: a GGUF file, or a model that is loaded already; its weights are in memory once for all users.
        context_length: the longest sequence, in tokens. By default the model's own, at most `capacity`.
        capacity: KV entries over all sequences; a shared entry counts once.
        max_seqs: sequences open at the same time, 1 … 128.
        threads: CPU threads. By default one for each core that this process may use.
        flash_attention: compute attention without storing its scores.
        micro_batch: tokens computed at once; a longer pass is split internally. With flash attention on a CPU at most
            63, except in the prefill cache.
        kv_type: the number format of the cache. "f32" doubles its size and serves comparisons with other backends.
        lora_path: a GGUF file with an adapter's LoRA (see `gguf_lora`), which applies at added ids only.
        cascade_limit: how probable a state must be by the rows of a cascade, which the model file must have, for the
            LoRA not to be asked (see `BackendInfo.cascade_limit`). None ignores these rows.
        prefill_capacity: KV entries, in addition to `capacity`, of the cache in which long new texts are read. With 0
            they are read in the shared cache. A pass that feeds both caches counts as two.

    Raises:
        ModelNotFound: there is no such file.
        AdapterMismatch: the LoRA does not fit the model.
        BrokenModel: the file cannot be read as a model, or its vocabulary contradicts its metadata.
        UnsupportedModel: llama.cpp does not know this kind of model, or it cannot roll back.
        UsageError: the numbers contradict each other.
    """

    def __init__(
        self,
        model: Path | str | library.LoadedModel,
        *,
        context_length: int | None = None,
        capacity: int = 4096,
        max_seqs: int = 16,
        threads: int | None = None,
        flash_attention: bool = True,
        micro_batch: int = MAX_MICRO_BATCH,
        kv_type: Literal["f16", "f32"] = "f16",
        lora_path: Path | str | None = None,
        cascade_limit: float | None = None,
        prefill_capacity: int = 0,
    ) -> None:
        _check_sizes(capacity, max_seqs, context_length, micro_batch, threads)
        self._places: dict[Seq, _Place] = {}
        self._free_ids = list(range(max_seqs - 1, -1, -1))
        self._slots = SlotTable(capacity, max_seqs)
        self._closing = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, self._closing.close)
        try:
            self._model = model.shared() if isinstance(model, library.LoadedModel) else library.LoadedModel(Path(model))
            self._closing.callback(self._model.close)
            self._lora = None if lora_path is None else self._model.lora(Path(lora_path))
            _check_vocabulary(self._model)
            _check_cascade(self._model, cascade_limit, has_lora=lora_path is not None)
            self._info = BackendInfo(
                name="llamacpp",
                model=self._model.name,
                weights=self._model.weights,
                vocab_size=self._model.base_vocab_size,
                num_added=self._model.num_added,
                context_length=min(context_length or self._model.context_length, capacity),
                capacity=capacity,
                max_seqs=max_seqs,
                kv_bytes_per_token=self._model.kv_numbers_per_token * (4 if kv_type == "f32" else 2),
                can_truncate=True,
                probe_passes=int(self._lora is not None),
                cascade_limit=cascade_limit,
                embedding_width=0 if self._model.embeddings is None else self._model.embeddings.width,
            )
            open_context = partial(
                library.open_context,
                self._model,
                self._closing,
                threads=threads or num_cores(),
                flash_attention=flash_attention,
                kv_type=kv_type,
            )
            has_tiles = flash_attention and not ll.llama_supports_gpu_offload()
            self._open_caches(prefill_capacity, micro_batch, open_context, has_tiles=has_tiles)
        except BaseException:
            self.close()
            raise

    def _open_caches(
        self, prefill_capacity: int, micro_batch: int, open_context: Callable[..., Any], *, has_tiles: bool
    ) -> None:
        """Open the shared cache and the prefill cache, and check that the model can roll back."""
        capacity, max_seqs = self._info.capacity, self._info.max_seqs
        # Layers with a sliding window reuse cells that have left it, unless two sequences hold them. Each sequence has
        # a mirror that holds the same cells, so that it can roll back beyond the window.
        self._mirror_offset = max_seqs if self._model.sliding_window else 0
        self._context = open_context(
            capacity=capacity,
            max_seqs=max_seqs + self._mirror_offset,
            micro_batch=min(micro_batch, _BELOW_TILES if has_tiles else micro_batch),
        )
        self._prefill_cache = PrefillCache(
            0 if self._mirror_offset else prefill_capacity, partial(open_context, micro_batch=micro_batch)
        )
        self._memory = ll.llama_get_memory(self._context)
        self._batch = ll.llama_batch_init(capacity, 0, 1)
        self._closing.callback(ll.llama_batch_free, self._batch)
        for i in range(capacity):
            self._batch.n_seq_id[i] = 1
        # OpenMP keeps a team of threads for each thread that has run a pass until that thread ends, and spins less
        # while there are more threads than cores. A team left behind here would slow down the passes of a worker.
        with ThreadPoolExecutor(1) as passing:
            passing.submit(self._check_rollback).result()

    # -- the contract ------------------------------------------------------------------------------------------------

    @property
    def info(self) -> BackendInfo:
        return self._info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        self._check_open()
        seq = self._slots.fork(parent, length)
        try:
            if parent is not None and length:
                self._settle(parent)
                source, target = self._places[parent].seq_id, self._free_ids[-1]
                for offset in {0, self._mirror_offset}:
                    ll.llama_memory_seq_cp(self._memory, source, target + offset, 0, length)
        except BaseException:
            self._slots.free(seq)
            raise
        self._places[seq] = _Place(self._free_ids.pop())
        return seq

    def embed(self, rows: Any) -> tuple[VirtualId, ...]:
        if self._model.no_embeddings:
            raise UnsupportedModel(self._model.no_embeddings)
        return super().embed(rows)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        self._check_open()
        check_batch(self._info, batch)
        if self._model.num_probes is not None:
            check_added_ids(self._info.vocab_size, self._model.num_probes, batch)
        self._slots.check(batch, self._info.context_length)
        prefilled = self._prefilled(batch)
        try:
            steps = self._run_passes(batch, prefilled)
        except BaseException:
            for extend in batch:
                self._roll_back(extend.seq, self._slots.length(extend.seq))
            raise
        self._prefill_cache.count(sum(len(extend.tokens) for extend in batch if extend.seq in prefilled))
        for extend in batch:
            self._slots.extend(extend.seq, len(extend.tokens))
        return [steps[index] for index in range(len(batch))]

    def truncate(self, seq: Seq, length: int) -> None:
        before = self.length(seq)
        if 0 <= length < before:
            self._roll_back(seq, length)
            if self._places[seq].prefill_id is not None:
                self._prefill_cache.count(length - before)
        self._slots.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        length, place = self.length(seq), self._places[seq]
        self._remove(place.seq_id, 0)
        if place.prefill_id is not None:
            self._prefill_cache.free(place.prefill_id, length)
        self._slots.free(seq)
        self._free_ids.append(place.seq_id)
        del self._places[seq]

    def length(self, seq: Seq) -> int:
        self._check_open()
        return self._slots.length(seq)

    def usage(self) -> Usage:
        entries = self._slots.num_used
        return Usage(self._slots.num_seqs, entries, entries * self._info.kv_bytes_per_token)

    def close(self) -> None:
        self._finalizer()

    # -- the caches --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise UsageError("this backend is closed; open another one")

    def _remove(self, seq_id: int, start: int) -> None:
        """Remove `seq_id` from position `start` on; `start` 0 empties it."""
        for each in {seq_id, seq_id + self._mirror_offset}:
            library.remove_from_cache(self._context, each, start)

    def _roll_back(self, seq: Seq, length: int) -> None:
        """Remove `seq` from position `length` on, from whichever cache it is in."""
        place = self._places[seq]
        if place.prefill_id is not None:
            library.remove_from_cache(self._prefill_cache.context, place.prefill_id, length)
        else:
            self._remove(place.seq_id, length)

    def _prefilled(self, batch: Sequence[Extend]) -> set[Seq]:
        """The sequences fed in the prefill cache: new ones that are only cached."""
        prefilled = set[Seq]()
        if self._prefill_cache.context is None:
            return prefilled
        num_new = num_tokens = 0
        for extend in batch:
            length, is_new = self.length(extend.seq), self._places[extend.seq].prefill_id is None
            if length and is_new:
                continue  # it is in the shared cache
            is_read = extend.draw is not None or extend.watch or extend.score
            is_plain = not is_read and len(extend.tokens) >= MIN_PREFILL
            if is_plain and self._prefill_cache.has_room(num_tokens + len(extend.tokens), num_new + is_new):
                prefilled.add(extend.seq)
                num_tokens, num_new = num_tokens + len(extend.tokens), num_new + is_new
        return prefilled

    def _settle(self, seq: Seq) -> None:
        """Move `seq` from the prefill cache to the shared cache, if it is in the former."""
        place, length = self._places[seq], self._slots.length(seq)
        if place.prefill_id is not None:
            if length:
                self._prefill_cache.move(place.prefill_id, length, self._context, place.seq_id)
            else:
                self._prefill_cache.free(place.prefill_id, 0)
            place.prefill_id = None

    # -- the passes --------------------------------------------------------------------------------------------------

    def _run_passes(self, batch: Sequence[Extend], prefilled: set[Seq]) -> dict[int, Step]:
        """Feed `batch` in up to three passes: prefills, base tokens, probes with the LoRA. Returns steps by index."""
        steps: dict[int, Step] = {}
        prefills, base, probes = self._pieces(batch, prefilled)
        for number, context, pieces in ((0, self._prefill_cache.context, prefills), (1, self._context, base)):
            if pieces:
                found = self._pass(batch, pieces, context)
                steps |= {index: replace(step, passes=(number,)) for index, step in found.items()}
        if probes := self._unsure(probes, base, steps):
            library.set_lora(self._context, self._lora)
            try:
                found = self._pass(batch, probes, self._context)
            finally:
                library.set_lora(self._context, None)
            for index, step in found.items():
                before = steps[index].passes if index in steps else ()
                steps[index] = replace(step, passes=(*before, 2), is_apart=True)
        return steps

    def _unsure(self, probes: list[_Piece], base: Sequence[_Piece], steps: Mapping[int, Step]) -> list[_Piece]:
        """The `probes` that the rows of a cascade have not judged for sure; their own probes are rolled back."""
        judged = {piece.index for piece in base if piece.shift}
        sure = {index for index in judged if max(steps[index].p[0]) >= (self._info.cascade_limit or 0.0)}
        unsure = [piece for piece in probes if piece.index not in sure]
        for piece in unsure:
            if piece.index in judged:
                self._remove(piece.seq_id, piece.position)
        return unsure

    def _pieces(self, batch: Sequence[Extend], prefilled: set[Seq]) -> tuple[list[_Piece], list[_Piece], list[_Piece]]:
        """What is fed to the prefill cache, to the shared cache without the LoRA, and then with the LoRA."""
        prefills, base, probes = [], [], []
        for index, extend in enumerate(batch):
            place, start, tokens = self._places[extend.seq], self._slots.length(extend.seq), extend.tokens
            if extend.seq in prefilled:
                if place.prefill_id is None:
                    place.prefill_id = self._prefill_cache.open()
                prefills.append(_Piece(index, place.prefill_id, tokens, start, num_read=0))
                continue
            self._settle(extend.seq)
            seq_id = place.seq_id
            num_base = len(tokens)
            if self._lora is not None:
                num_base = sum(not self._info.is_added(token) for token in tokens)
            num_read = len(extend.score) or int(extend.draw is not None or bool(extend.watch))
            if num_base and self._asks_cascade(extend, num_base):
                shift = self._info.num_added
                fed = (*tokens[:num_base], *(token + shift for token in tokens[num_base:]))
                base.append(_Piece(index, seq_id, fed, start, num_read, shift))
            elif num_base:
                is_end = num_base == len(tokens)
                base.append(_Piece(index, seq_id, tokens[:num_base], start, num_read if is_end else 0))
            if num_base < len(tokens):
                probes.append(_Piece(index, seq_id, tokens[num_base:], start + num_base, num_read))
        return prefills, base, probes

    def _asks_cascade(self, extend: Extend, num_base: int) -> bool:
        """Whether the tokens after the first `num_base` are a whole probe that only watches rows of the adapter.

        The rows of a cascade have not learned to read soft tokens in front of them.
        """
        if self._info.cascade_limit is None or not extend.watch or isinstance(extend.tokens[num_base - 1], VirtualId):
            return False
        first, num_probes = self._info.vocab_size, self._model.num_probes or 0
        is_probe = extend.tokens[num_base:] == tuple(range(first, first + num_probes))
        return is_probe and min(extend.watched) >= first

    def _pass(self, batch: Sequence[Extend], pieces: Sequence[_Piece], context: Any) -> dict[int, Step]:
        """Run one `llama_decode`. Returns the step of each `Extend` by its index in `batch`."""
        last = self._fill(pieces)
        status = self._decode(context, pieces)
        if status == 1:
            raise CacheFull("llama.cpp found no room in its cache for this pass; free or truncate a sequence")
        if status != 0:
            raise EngineError(f"llama.cpp could not compute the pass (status {status}): {library.last_messages()}")
        if self._mirror_offset:
            for piece in pieces:
                mirror = piece.seq_id + self._mirror_offset
                ll.llama_memory_seq_cp(self._memory, piece.seq_id, mirror, piece.position, -1)
        return {
            piece.index: self._step(batch[piece.index], row, piece.shift)
            if piece.num_read
            else Step(batch[piece.index].ticket)
            for piece, row in zip(pieces, last, strict=True)
        }

    def _fill(self, pieces: Sequence[_Piece]) -> list[int]:
        """Write `pieces` into llama.cpp's batch. Returns the index of the last token of each."""
        c, i, last = self._batch, 0, []
        for piece in pieces:
            for position, token in enumerate(piece.tokens, piece.position):
                is_read = position - piece.position >= len(piece.tokens) - piece.num_read
                c.token[i] = 0 if isinstance(token, VirtualId) else token
                c.pos[i], c.seq_id[i][0], c.logits[i] = position, piece.seq_id, is_read
                i += 1
            last.append(i - 1)
        c.n_tokens = i
        return last

    def _decode(self, context: Any, pieces: Sequence[_Piece]) -> int:
        """Run llama.cpp on the batch that `pieces` were written to. With virtual ids in it, all tokens become rows."""
        tokens = [token for piece in pieces for token in piece.tokens]
        if self._model.embeddings is None or not any(isinstance(token, VirtualId) for token in tokens):
            return int(ll.llama_decode(context, self._batch))
        rows = self._model.embeddings.rows(tokens)  # of which llama.cpp gets the address only
        batch = type(self._batch).from_buffer_copy(self._batch)
        batch.token, batch.embd = None, rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return int(ll.llama_decode(context, batch))

    def _step(self, extend: Extend, row: int, shift: int) -> Step:
        """The result of `extend` from a row of logits. `shift` is added to the watched ids."""
        if extend.score:
            rows = [self._logits(row + 1 - back)[: self._info.vocab_size] for back in range(len(extend.score), 0, -1)]
            return Step(extend.ticket, scores=score(np.stack(rows), extend.score))
        logits = self._logits(row)
        if extend.draw is None:
            groups = [[token + shift for token in group] for group in extend.watch]
            return Step(extend.ticket, p=tuple(weigh(self._watched(logits, group)) for group in groups))
        return drawn(extend.ticket, logits[: self._info.vocab_size], extend.draw)

    def _logits(self, row: int) -> FloatArray:
        """The logits of token `row` of the last pass [ids in the file]: llama.cpp's own buffer, until the next pass."""
        pointer = ll.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise EngineError("llama.cpp returned no logits for a token that asked for them")
        return np.ctypeslib.as_array(pointer, shape=(self._model.vocab_size,))

    def _watched(self, logits: FloatArray, group: Sequence[int]) -> FloatArray:
        """The logits of a group of W watched ids: [W]. logits: [ids in the file]."""
        ids = np.asarray(group)
        picked = np.asarray(logits[ids], dtype=np.float32)
        softcap = self._model.softcap
        if not softcap:
            return picked
        # State logits are plain dot products on every backend: undo the squashing that the model applies to all logits.
        limit = np.nextafter(np.float32(1), np.float32(0))
        plain = softcap * np.arctanh(np.clip(picked / softcap, -limit, limit))
        return np.asarray(np.where(ids >= self._info.vocab_size, plain, picked), dtype=np.float32)

    def _check_rollback(self) -> None:
        """Feed two tokens and roll back the second: a cache that cannot do this fails here."""
        seq = self.fork(None)
        self.forward([Extend(seq, (0,) * min(2, self._info.context_length))])
        try:
            self.truncate(seq, 1)
        except EngineError as error:
            raise UnsupportedModel(
                f"the cache of {self._info.model} cannot be rolled back, which duplex decoding needs; "
                "use a model with plain attention, or the torch backend"
            ) from error
        self.free(seq)


def open_caches(path: Path | str, number: int, **options: Any) -> Backend:
    """A backend with so many caches, each with these `options` of `LlamaCppBackend`. The weights are loaded once.

    Raises the same errors as `LlamaCppBackend`.
    """
    with contextlib.ExitStack() as undoing, contextlib.closing(library.LoadedModel(Path(path))) as model:
        caches: list[Backend] = []
        for _ in range(number):
            caches.append(LlamaCppBackend(model, **options))
            undoing.callback(caches[-1].close)
        undoing.pop_all()
    return caches[0] if number == 1 else MultiCacheBackend(caches)


def _check_sizes(
    capacity: int, max_seqs: int, context_length: int | None, micro_batch: int, threads: int | None
) -> None:
    limit = ll.llama_max_parallel_sequences() // 2
    refuse(
        [
            (not 1 <= max_seqs <= limit, f"max_seqs {max_seqs} is not between 1 and {limit}, llama.cpp's limit"),
            (capacity < 2, f"a capacity of {capacity} KV entries is too small; give at least 2"),
            (
                context_length is not None and not 2 <= context_length <= capacity,
                f"context_length {context_length} is not between 2 and the capacity of {capacity} KV entries",
            ),
            (
                micro_batch < 1 or (threads is not None and threads < 1),
                f"micro_batch {micro_batch} and threads {threads} must be at least 1",
            ),
        ]
    )


def _check_vocabulary(model: library.LoadedModel) -> None:
    base, added, probes, cascade = model.base_vocab_size, model.num_added, model.num_probes or 0, model.num_cascade
    if not (base >= 1 and 0 <= probes <= added <= model.vocab_size - base - cascade and cascade in (0, added)):
        raise BrokenModel(
            f"{model.path.name} declares {base} base ids and {added} added ids, {probes} of them probes, and {cascade} "
            f"of a cascade, for a vocabulary of {model.vocab_size}; export it again"
        )


def _check_cascade(model: library.LoadedModel, limit: float | None, *, has_lora: bool) -> None:
    if limit is None:
        return
    refuse(
        [
            (not 0.0 <= limit <= 1.0, f"cascade_limit {limit} is not a probability"),
            (not has_lora, "a cascade_limit is for a model with a LoRA (lora_path): nothing else takes a second pass"),
            (
                not model.num_cascade,
                f"{model.path.name} has no rows of a cascade; write them with gguf_convert.convert",
            ),
        ]
    )
