"""Answers that follow a JSON schema, by llama.cpp's own grammars."""

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from duologue.backends.llamacpp.library import last_messages  # before llama_cpp: it configures OpenMP
from duologue.backends.llamacpp.tokenizer import GgufTokenizer

# isort: split
import llama_cpp as ll
from llama_cpp.llama_grammar import json_schema_to_gbnf

from duologue.errors import EngineError, UsageError
from duologue.types import Token

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_PLAIN = "in plain JSON Schema: types, properties, required, items, enum, const, anyOf, minLength and the like"


@final
class JsonGrammar:
    """Allows only tokens that continue a JSON text of a schema, and the end of the text when it is complete.

    It serves one answer at a time, and follows it as it grows or is taken back.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: GgufTokenizer) -> None:
        """Raises `UsageError` if llama.cpp cannot express the schema."""
        self._tokenizer = tokenizer  # it keeps the vocabulary alive
        try:
            grammar = json_schema_to_gbnf(json.dumps(schema))
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as error:
            message = str(error) or type(error).__name__
            raise UsageError(
                f"this JSON schema cannot be turned into a grammar: {message}; write it {_PLAIN}"
            ) from error
        self._sampler = ll.llama_sampler_init_grammar(tokenizer.vocab, grammar.encode(), b"root")
        if not self._sampler:
            raise UsageError(f"llama.cpp refuses the grammar of this JSON schema: {last_messages()}")
        self._accepted: list[Token] = []

    def __del__(self) -> None:
        if getattr(self, "_sampler", None):
            ll.llama_sampler_free(self._sampler)

    def apply(self, tokens: Sequence[Token], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `Constraint.apply`. logits: [V].

        Raises:
            EngineError: no token may follow.
        """
        self._accept(tokens)
        candidates = np.zeros(len(logits), _CANDIDATE)
        candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
        data = candidates.ctypes.data_as(ctypes.POINTER(ll.llama_token_data))
        ll.llama_sampler_apply(self._sampler, ctypes.byref(ll.llama_token_data_array(data, len(logits), -1, False)))
        if not np.isfinite(candidates["logit"]).any():
            raise EngineError("the JSON schema allows no token of this model's vocabulary here")
        return candidates["logit"].copy()

    def _accept(self, tokens: Sequence[Token]) -> None:
        known = self._accepted
        if list(tokens[: len(known)]) != known:
            ll.llama_sampler_reset(self._sampler)
            known.clear()
        for token in tokens[len(known) :]:
            ll.llama_sampler_accept(self._sampler, token)
            known.append(token)
