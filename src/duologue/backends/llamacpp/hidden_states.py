"""Logits and final hidden states at every position of a text, from llama.cpp. Adapter rows multiply these states.

Shapes: N tokens of a text, V ids in the file, D the hidden width.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
import numpy.typing as npt

from duologue.backends.llamacpp import library
from duologue.errors import EngineError
from duologue.types import Token

FloatArray = npt.NDArray[np.float32]


class HiddenStateReader:
    """Reads one text at a time, of at most `length` tokens. Use it as a context manager."""

    def __init__(self, path: Path, *, length: int = 256, threads: int = 1) -> None:
        self._model = library.LoadedModel(path)
        self._closing = ExitStack()
        self._closing.callback(self._model.close)
        self.vocab_size = self._model.vocab_size
        self.length = min(length, self._model.context_length)
        self._width = int(ll.llama_model_n_embd(self._model.handle))
        self._context = library.open_context(
            self._model,
            self._closing,
            capacity=self.length,
            max_seqs=1,
            micro_batch=self.length,
            threads=threads,
        )
        ll.llama_set_embeddings(self._context, True)
        self._batch: Any = ll.llama_batch_init(self.length, 0, 1)
        self._closing.callback(ll.llama_batch_free, self._batch)
        self._num_fed = 0

    def __enter__(self) -> "HiddenStateReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def read(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """Read a new text. Returns views of its logits [N, V] and hidden states [N, D], valid until the next call."""
        library.remove_from_cache(self._context, 0, 0)
        self._num_fed = 0
        return self.extend(tokens)

    def extend(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """Append N `tokens` to the text. Returns views of their logits [N, V] and hidden states [N, D], as `read`."""
        batch, num = self._batch, len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self._num_fed + i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = num
        if self._num_fed + num > self.length or ll.llama_decode(self._context, batch) != 0:
            raise EngineError(f"llama.cpp could not read {num} tokens: {library.last_messages()}")
        self._num_fed += num
        logits = np.ctypeslib.as_array(ll.llama_get_logits(self._context), shape=(num, self.vocab_size))
        hidden = np.ctypeslib.as_array(ll.llama_get_embeddings(self._context), shape=(num, self._width))
        return logits, hidden
