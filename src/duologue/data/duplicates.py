"""Samples that repeat or contradict another one.

The same words may occur in many contexts, and "yeah" may answer the assistant's question but mean nothing over its
speech. So words are duplicates only after the same context, and contradictions only in the same place: while the
assistant is idle, or while it speaks. The first label given to words in a place wins.

Texts are not kept, only their hashes.
"""

import hashlib
from collections.abc import Collection
from enum import StrEnum

from duologue.data import forms
from duologue.data.samples import Sample
from duologue.types import InputState

MIN_CONTENT_WORDS = 4
"""Texts with fewer content words are never near duplicates ("please stop", "can you stop")."""

_CONTENT_FUNCTION_WORDS = forms.word_set("what who where when why how which no don't doesn't can't won't without")
"""Function words that count as content: with another of them, it is another question."""


class DuplicateKind(StrEnum):
    """Why a sample is not kept."""

    EXACT = "exact duplicate"  # the same words after the same context
    NEAR = "near duplicate"  # the same content words, state and context; other order, function words or form
    CONFLICT = "another label"  # the same words have another state in this place, and neither accepts the other


class Duplicates:
    """Remembers the samples kept so far."""

    def __init__(self) -> None:
        self._labels: dict[bytes, tuple[InputState, Collection[InputState]]] = {}  # state and accepted states
        self._kept: set[bytes] = set()

    def claim(
        self, text: str, state: InputState, accept: Collection[InputState] = (), *, speaking: bool | None = None
    ) -> None:
        """Fix the label of words before any sample has them. A label that is already fixed stays.

        Args:
            speaking: in which place; None: in both.
        """
        for place in (False, True) if speaking is None else (speaking,):
            self._labels.setdefault(_key("label", place, forms.spoken(text)), (state, accept))

    def admit(self, sample: Sample) -> DuplicateKind | None:
        """Why `sample` must not be kept; None if it is kept, and remembered."""
        text = forms.spoken(sample.text)
        prefix = "\x1f".join([str(sample.system), *(f"{turn.role.value}\x1f{turn.text}" for turn in sample.context)])
        known_state, known_accept = self._labels.get(
            _key("label", sample.speaking, text), (sample.state, sample.accept)
        )
        if known_state not in sample.right and sample.state not in known_accept:
            return DuplicateKind.CONFLICT
        exact = _key("exact", sample.speaking, prefix, text)
        if exact in self._kept:
            return DuplicateKind.EXACT
        content = content_words(text)
        if len(content) >= MIN_CONTENT_WORDS:
            near = _key("near", sample.speaking, prefix, sample.state.value, *sorted(content))
            if near in self._kept:
                return DuplicateKind.NEAR
            self._kept.add(near)
        self._kept.add(exact)
        self.claim(text, sample.state, sample.accept, speaking=sample.speaking)
        return None


def content_words(spoken: str) -> frozenset[str]:
    """The words of a text in normal form that distinguish it from other texts."""
    return frozenset(spoken.split()) - (forms.FUNCTION_WORDS - _CONTENT_FUNCTION_WORDS)


def _key(*parts: object) -> bytes:
    return hashlib.blake2b("\x1e".join(map(str, parts)).encode(), digest_size=8).digest()
