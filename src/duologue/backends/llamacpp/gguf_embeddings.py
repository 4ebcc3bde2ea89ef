"""Reads rows of the embedding matrix of a GGUF file, bit for bit as llama.cpp does in a pass over tokens.

A `llama_decode` takes either ids or embedding rows. Where a pass has rows, its tokens are fed as rows as well.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from duologue.backends.llamacpp.gguf_facts import INPUT, input_scale
from duologue.backends.llamacpp.gguf_header import GgufHeader
from duologue.backends.llamacpp.gguf_one_pass import ARCHITECTURE as ONE_PASS
from duologue.errors import BrokenModel, UnsupportedModel, refuse
from duologue.types import Token, VirtualId

FloatArray = npt.NDArray[np.float32]

_SCALES_TOKENS_ONLY = ("gemma3",)
"""Architectures in which llama.cpp scales the embeddings of ids, but takes rows as they are."""

_EXACT = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
"""Types that the `gguf` package dequantises to the same bits as llama.cpp."""


@final
class EmbeddingMatrix:
    """The rows that stand for tokens, of width D. It maps the file and reads only what is asked for.

    Raises:
        UnsupportedModel: llama.cpp cannot be fed rows for this file, or not exactly as tokens.
        BrokenModel: the file is too short.
    """

    def __init__(self, path: Path, header: GgufHeader) -> None:
        if len(header.shapes.get(INPUT, ())) != 2:
            raise UnsupportedModel(f"{path.name} has no matrix of embeddings")
        architecture = str(header.values.get("general.architecture"))
        self.width, num_rows = header.shapes[INPUT]
        scale = input_scale(header.values, architecture, self.width, path)
        self._kind = GGMLQuantizationType(header.kinds[INPUT])
        refuse(
            [
                (
                    architecture == ONE_PASS,
                    f"{path.name} is a one-pass file, and llama.cpp runs these on token ids only; load the model with "
                    "the same adapter, of which probes then take a pass of their own",
                ),
                (
                    scale != 1.0 and architecture not in _SCALES_TOKENS_ONLY,
                    f"llama.cpp scales embedding rows of {path.name} ({architecture}) as it does those of tokens, "
                    "which rows of an encoder are not meant for; load it with the torch backend",
                ),
                (
                    self._kind.name not in _EXACT,
                    f"{path.name} has embeddings of type {self._kind.name}, which cannot be fed as rows exactly; load "
                    f"it with weights of type {', '.join(_EXACT[1:])}",
                ),
            ],
            UnsupportedModel,
        )
        self._scale = np.float32(scale)
        block, size = GGML_QUANT_SIZES[self._kind]
        shape = (num_rows, self.width // block * size)
        try:
            self._data = np.memmap(path, np.uint8, "r", header.offsets[INPUT], shape)
        except (OSError, ValueError, OverflowError) as error:
            raise BrokenModel(f"{path} ends before its embeddings ({error})") from error

    def rows(self, tokens: Sequence[Token]) -> FloatArray:
        """What is fed in place of `tokens`, which may be virtual ids: [N, D]."""
        ids = [0 if isinstance(token, VirtualId) else token for token in tokens]
        found = dequantize(self._data[ids], self._kind).astype(np.float32, copy=False) * self._scale
        for index, token in enumerate(tokens):
            if isinstance(token, VirtualId):
                found[index] = np.frombuffer(token.row, dtype=np.float32)
        return np.ascontiguousarray(found)
