"""Final hidden states of text, from llama.cpp: what rows are multiplied with."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
import numpy.typing as npt

from duologue.backends.llamacpp import library
from duologue.backends.sampling import choose
from duologue.core.backend import Draw, Sampling
from duologue.errors import EngineError
from duologue.types import Token

FloatArray = npt.NDArray[np.float32]


class Looker:
    """Reads logits and hidden states at every position of one sequence at a time. Close it after use."""

    def __init__(self, path: Path, *, length: int, threads: int) -> None:
        self._model = library.LoadedModel(path)
        self.vocab_size = self._model.vocab_size
        self.length = min(length, self._model.context_length)
        self._width = int(ll.llama_model_n_embd(self._model.handle))
        self._context = library.open_context(
            self._model,
            capacity=self.length,
            max_seqs=1,
            threads=threads,
            flash_attention=True,
            micro_batch=self.length,
            kv_type="f16",
            all_outputs=True,
        )
        ll.llama_set_embeddings(self._context, True)
        self._batch: Any = ll.llama_batch_init(self.length, 0, 1)
        self._num = 0

    def feed(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """Feed `tokens`, at most what is left of `length`. Views of their logits [N, V] and hidden states [N, D]."""
        batch = self._batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self._num + i, 1, 1
            batch.seq_id[i][0] = 0
        batch.n_tokens = len(tokens)
        if self._num + len(tokens) > self.length or ll.llama_decode(self._context, batch) != 0:
            raise EngineError(f"llama.cpp could not read {len(tokens)} tokens: {library.last_messages()}")
        self._num += len(tokens)
        shape = (len(tokens), self.vocab_size)
        logits = np.ctypeslib.as_array(ll.llama_get_logits(self._context), shape=shape)
        hidden = np.ctypeslib.as_array(ll.llama_get_embeddings(self._context), shape=(len(tokens), self._width))
        return logits, hidden

    def reset(self) -> None:
        """Forget the sequence."""
        ll.llama_memory_seq_rm(ll.llama_get_memory(self._context), 0, -1, -1)
        self._num = 0

    def close(self) -> None:
        """Release everything."""
        ll.llama_batch_free(self._batch)
        ll.llama_free(self._context)
        self._model.close()


@contextmanager
def looking(path: Path, *, length: int = 256, threads: int = 1) -> Iterator[Looker]:
    """An open `Looker`."""
    looker = Looker(path, length=length, threads=threads)
    try:
        yield looker
    finally:
        looker.close()


def own_text(
    looker: Looker, num_tokens: int, *, base_vocab_size: int, starts: Sequence[Sequence[Token]], seed: int = 0
) -> list[list[Token]]:
    """What the model writes by itself, at temperature 1, after each of `starts` in turn, `num_tokens` in all."""
    chance, texts, num = random.Random(seed), list[list[Token]](), 0
    while num < num_tokens:
        tokens = list(starts[len(texts) % len(starts)])
        looker.reset()
        logits, _ = looker.feed(tokens)
        while len(tokens) < looker.length:
            draw = Draw(Sampling(temperature=1.0), chance.random())
            tokens.append(choose(logits[-1][:base_vocab_size], draw)[0])
            if len(tokens) < looker.length:
                logits, _ = looker.feed(tokens[-1:])
        texts.append(tokens)
        num += len(tokens)
    return texts


def hidden_states(
    looker: Looker, texts: Sequence[Sequence[Token]], base_vocab_size: int
) -> tuple[FloatArray, FloatArray]:
    """Hidden states [N, D] of all positions of `texts`, and the largest base logit [N] at each."""
    hidden, best = [], []
    for text in texts:
        looker.reset()
        logits, states = looker.feed(text)
        hidden.append(states.copy())
        best.append(logits[:, :base_vocab_size].max(axis=1))
    return np.concatenate(hidden), np.concatenate(best)
