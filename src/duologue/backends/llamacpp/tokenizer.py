"""The tokenizer of a GGUF file, through llama.cpp."""

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from duologue.backends.llamacpp.library import LoadedModel  # before llama_cpp: it configures OpenMP

# isort: split
import llama_cpp

from duologue.errors import UsageError
from duologue.text.tokenizer import is_mark
from duologue.types import Token, well_formed

_NO_TOKEN = -1  # llama.cpp's id for a token that the vocabulary lacks


@final
class GgufTokenizer:
    """A `Tokenizer` over a model that llama.cpp has loaded. It owns nothing: the model must stay open."""

    def __init__(self, model: Any) -> None:
        """`model` is the `llama_model_p` of `llama_cpp.llama_model_load_from_file`.

        Raises:
            UsageError: the model has no vocabulary.
        """
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self._pieces: dict[Token, bytes] = {}
        if self._vocab_size == 0:
            raise UsageError("the GGUF file has no vocabulary; use a file that includes its tokenizer")

    @classmethod
    def from_file(cls, path: Path) -> "GgufTokenizer":
        """Read the vocabulary only. Its (little) memory is held until the process ends.

        Raises:
            ModelNotFound: there is no such file.
            BrokenModel: llama.cpp cannot read the file.
            UnsupportedModel: llama.cpp does not know the architecture.
        """
        # The model is never closed, because the tokenizer reads from it.
        return cls(LoadedModel(path, vocab_only=True).handle)

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self._vocab_size

    @cached_property
    def chat_template(self) -> str | None:
        """The metadata's `tokenizer.chat_template`."""
        source: bytes | None = llama_cpp.llama_model_chat_template(self._model, None)
        return source.decode("utf-8", "replace") if source else None

    @cached_property
    def special_text(self) -> Mapping[str, str]:
        """`bos_token`, `eos_token`, `pad_token` and `sep_token`, as far as the vocabulary has them."""
        ids = {
            "bos_token": llama_cpp.llama_vocab_bos(self._vocab),
            "eos_token": llama_cpp.llama_vocab_eos(self._vocab),
            "pad_token": llama_cpp.llama_vocab_pad(self._vocab),
            "sep_token": llama_cpp.llama_vocab_sep(self._vocab),
        }
        return {name: self._text(token) for name, token in ids.items() if token != _NO_TOKEN}

    @cached_property
    def special_tokens(self) -> Mapping[str, Token]:
        """Control tokens, and user-defined tokens that look like markup rather than words or white space."""
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        marks: dict[str, Token] = {}
        for token in range(self._vocab_size):
            attributes = llama_cpp.llama_vocab_get_attr(self._vocab, token)
            if attributes & (control | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = self._text(token)
                if text and (attributes & control or is_mark(text)):
                    marks.setdefault(text, token)
        return marks

    @cached_property
    def bos(self) -> Token | None:
        """BOS if the metadata declares that a text begins with it."""
        bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        return bos if bos != _NO_TOKEN and llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    @cached_property
    def stop_tokens(self) -> frozenset[Token]:
        """The ids that llama.cpp considers an end of generation."""
        return frozenset(token for token in range(self._vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """See `Tokenizer.encode`."""
        data = well_formed(text).encode()
        room = len(data) + 8  # a token has at least one byte, except for a space that is put before the text
        for _ in range(2):
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise UsageError(f"llama.cpp cannot tokenise a text of {len(data)} bytes; split it")

    def decode(self, tokens: Sequence[Token]) -> str:
        """See `Tokenizer.decode`. Removes the space that was put before the text, as llama.cpp does."""
        data = b"".join(self._bytes(token) for token in tokens if 0 <= token < self._vocab_size)
        if self._puts_space and tokens and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    @cached_property
    def _puts_space(self) -> bool:
        """Whether a space is put before each text, detected by a round trip."""
        return b"".join(map(self._bytes, self.encode("x"))) == b" x"

    def _text(self, token: Token) -> str:
        return self._bytes(token).decode("utf-8", "replace")

    def _bytes(self, token: Token) -> bytes:
        """The bytes of one token, cached because asking llama.cpp takes longer than the rest of `decode`."""
        data = self._pieces.get(token)
        if data is None:
            data = self._pieces[token] = self._read_piece(token)
        return data

    def _read_piece(self, token: Token) -> bytes:
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count
        raise UsageError(f"llama.cpp has no text for token {token}")
