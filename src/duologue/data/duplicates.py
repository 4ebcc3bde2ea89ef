"""Samples that repeat another one, or that contradict it.

The same words may rightly be heard in many contexts, and "yeah" may answer the assistant's question and mean nothing
over its speech. So words repeat each other only behind the same context, and contradict each other only within one
place, which is an idle assistant or a speaking one. The first label given to words in a place wins.

Nothing of a text is kept but hashes, three words of eight bytes for a sample.
"""

import hashlib
from array import array
from collections.abc import Collection
from enum import StrEnum

from duologue.data import forms
from duologue.data.samples import Sample
from duologue.types import InputState

MIN_CONTENT_WORDS = 4
"""With fewer content words, texts that share them are different things to say ("please stop", "can you stop")."""

_QUESTIONS_AND_NEGATIONS = "what who where when why how which no don't doesn't can't won't without"
_TURNS_MEANING = frozenset(_QUESTIONS_AND_NEGATIONS.split())
"""Function words that count as content: with another of them it is another question."""

_STATES = tuple(InputState)
_EMPTY, _LOW_BITS = 0, 8


class Repeated(StrEnum):
    """Why a sample is not kept."""

    EXACT = "exact duplicate"  # the same words behind the same context
    NEAR = "near duplicate"  # the same content words, state and context; other order, function words or form
    CONFLICT = "another label"  # the same words have another state in this place, and neither accepts the other


class Duplicates:
    """What has been kept so far."""

    def __init__(self) -> None:
        self._table = _Table()

    def claim(
        self, text: str, state: InputState, accept: Collection[InputState] = (), *, speaking: bool | None = None
    ) -> None:
        """Fix the label of words before any sample has them, so that a source wins whose samples come later.

        Args:
            speaking: in which place; None is both. A label that is fixed already stays.
        """
        for place in (False, True) if speaking is None else (speaking,):
            self._table.add(_key("label", place, forms.spoken(text)), _pack(state, accept))

    def admit(self, sample: Sample) -> Repeated | None:
        """Why `sample` is not to be kept; None if it is, and from then on it counts as kept."""
        text = forms.spoken(sample.text)
        prefix = "\x1f".join([str(sample.system), *(f"{turn.role.value}\x1f{turn.text}" for turn in sample.context)])
        label = _key("label", sample.speaking, text)
        exact = _key("exact", sample.speaking, prefix, text)
        content = content_words(text)
        near = _key("near", sample.speaking, prefix, sample.state.value, *sorted(content))
        known = self._table.get(label)
        if known is not None and not _agree(known, sample):
            return Repeated.CONFLICT
        if self._table.get(exact) is not None:
            return Repeated.EXACT
        if len(content) >= MIN_CONTENT_WORDS:
            if self._table.get(near) is not None:
                return Repeated.NEAR
            self._table.add(near, 0)
        self._table.add(exact, 0)
        self._table.add(label, _pack(sample.state, sample.accept))
        return None


def content_words(spoken: str) -> frozenset[str]:
    """The words of a text in normal form that make it this text and not another."""
    return frozenset(word for word in spoken.split() if word not in forms.FUNCTION_WORDS or word in _TURNS_MEANING)


def _key(*parts: object) -> int:
    """A hash that leaves the low bits free."""
    data = "\x1e".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> _LOW_BITS << _LOW_BITS


def _pack(state: InputState, accept: Collection[InputState]) -> int:
    """State and accepted states in eight bits."""
    return _STATES.index(state) << 4 | sum(1 << _STATES.index(other) for other in set(accept))


def _agree(known: int, sample: Sample) -> bool:
    """Whether a packed label and that of a sample are the same, or one accepts the other."""
    state, accepted = _STATES[known >> 4], known & 15
    return sample.state is state or state in sample.accept or bool(accepted >> _STATES.index(sample.state) & 1)


class _Table:
    """Keys to values of eight bits, both in one word of an open hash table; a dict would take ten times the room."""

    def __init__(self) -> None:
        self._words = array("Q", [_EMPTY]) * 1024
        self._num = 0

    def get(self, key: int) -> int | None:
        """The value of a key, or None."""
        word = self._words[self._find(key)]
        return None if word == _EMPTY else word % (1 << _LOW_BITS)

    def add(self, key: int, value: int) -> None:
        """Enter a key that is not there yet; otherwise nothing happens."""
        at = self._find(key)
        if self._words[at] != _EMPTY:
            return
        self._words[at] = key | value
        self._num += 1
        if 2 * self._num > len(self._words):
            old, self._words = self._words, array("Q", [_EMPTY]) * (4 * len(self._words))
            for word in old:
                if word != _EMPTY:
                    self._words[self._find(word)] = word

    def _find(self, key: int) -> int:
        """Where a key is or would be entered."""
        size, key = len(self._words), key >> _LOW_BITS
        at = key % size
        while (word := self._words[at]) != _EMPTY and word >> _LOW_BITS != key:
            at = (at + 1) % size
        return at
