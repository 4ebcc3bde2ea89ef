"""The tokenizer of a GGUF file, through llama.cpp.

llama.cpp splits text with `std::regex` for most kinds of vocabularies. Its recursion takes about 330 bytes of stack per
character of a run (letters, digits, spaces): a run of 26,000 characters overflows a stack of 8 MiB, which ends the
process. Texts that might do so are tokenised on a thread with a stack in proportion to their length. The ids are those
of llama.cpp for the whole text, whatever the vocabulary.

With the pre-tokenizer "superbpe", its time grows with the square of a run of digits (minutes for 60,000). That
pre-tokenizer splits a run into groups of three from its end, so long runs are split there beforehand, with equal ids.
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from duologue.backends.llamacpp.library import LoadedModel  # before llama_cpp: it configures OpenMP

# isort: split
import llama_cpp

from duologue.backends.llamacpp.deep_stack import call_with_stack
from duologue.errors import UnsupportedModel, UsageError, require
from duologue.text.tokenizer import is_mark
from duologue.types import Token, well_formed

MAX_TEXT = 1 << 20
"""Characters of one text. More would fill no context, and might take more memory than there is."""

_SHALLOW = 500  # characters that are tokenised on any stack: 160 KiB at most
_STACK_PER_CHARACTER = 2048  # six times what was measured
_LONG_DIGITS = re.compile(r"[0-9]{600,}")
_DIGITS_AT_ONCE = 300  # a multiple of three
_NO_TOKEN = -1  # llama.cpp's id for a token that the vocabulary lacks


@final
class GgufTokenizer:
    """A `Tokenizer` over a model that llama.cpp has loaded. It owns nothing: the model must stay open."""

    def __init__(self, model: LoadedModel) -> None:
        """Raises `UsageError` if the model has no vocabulary, `UnsupportedModel` if llama.cpp cannot use it safely."""
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model.handle)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))  # the number of ids
        self._pre_tokenizer = model.metadata.get("tokenizer.ggml.pre")
        self._pieces: dict[Token, bytes] = {}
        require(self.vocab_size > 0, "the GGUF file has no vocabulary; use a file that includes its tokenizer")
        if reason := self._reason_to_abort():
            raise UnsupportedModel(
                f"llama.cpp ends the process on some texts with the vocabulary of {model.path.name}: {reason}; "
                "load the model with the torch backend"
            )

    @classmethod
    def from_file(cls, path: Path) -> "GgufTokenizer":
        """Read the vocabulary only. Its (little) memory is held until the process ends.

        Raises:
            ModelNotFound: there is no such file.
            BrokenModel: llama.cpp cannot read the file.
            UnsupportedModel: llama.cpp does not know the architecture, or cannot use the vocabulary safely.
        """
        return cls(LoadedModel(path, vocab_only=True))

    @property
    def vocab(self) -> Any:
        """llama.cpp's pointer to the vocabulary, which lives as long as this object."""
        return self._vocab

    @cached_property
    def chat_template(self) -> str | None:
        """The metadata's `tokenizer.chat_template`."""
        return self._model.metadata.get("tokenizer.chat_template") or None

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
        for token in range(self.vocab_size):
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
        return frozenset(token for token in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        """See `Tokenizer.encode`.

        Raises:
            UsageError: the text is longer than `MAX_TEXT`.
        """
        if len(text) > MAX_TEXT:
            raise UsageError(f"a text of {len(text)} characters is too long to tokenise; the limit is {MAX_TEXT}")
        text = well_formed(text)
        if len(text) <= _SHALLOW:
            return self._tokenize(text.encode(), special)
        parts = _split_digits(text) if self._pre_tokenizer == "superbpe" else [text]
        return call_with_stack(
            len(text) * _STACK_PER_CHARACTER,
            lambda: [token for part in parts for token in self._tokenize(part.encode(), special)],
        )

    def _tokenize(self, data: bytes, special: bool) -> list[Token]:
        """The ids of a text in UTF-8."""
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
        data = b"".join(self._bytes(token) for token in tokens if 0 <= token < self.vocab_size)
        if self._puts_space and tokens and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    @cached_property
    def _puts_space(self) -> bool:
        """Whether a space is put before each text, detected by a round trip."""
        return b"".join(map(self._bytes, self.encode("x"))) == b" x"

    def _reason_to_abort(self) -> str | None:
        """Why llama.cpp would fail an assertion or an unchecked lookup on some text, if it would."""
        if self._pre_tokenizer == "whitespace":
            return 'with the pre-tokenizer "whitespace", two adjacent spaces fail an assertion'
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_SPM:
            texts = {llama_cpp.llama_vocab_get_text(self._vocab, token) for token in range(self.vocab_size)}
            if not all(b"<0x%02X>" % byte in texts or bytes([byte]) in texts for byte in range(256)):
                return "it lacks tokens for single bytes, which unknown characters need"
        return None

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


def _split_digits(text: str) -> list[str]:
    """Parts of `text`, cut inside long runs of digits at multiples of three from the end of the run."""
    cuts = [0]
    for run in _LONG_DIGITS.finditer(text):
        cuts += sorted(range(run.end() - _DIGITS_AT_ONCE, run.start(), -_DIGITS_AT_ONCE))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
