"""Dialogues in slices as sequences to train time division on, exactly as a session of time division feeds them.

The loss is on what the assistant says: slices, and `<idle>`. The first token of a slice is a decision, whose right
answer depends on the situation. B windows, T tokens, N tokens that the assistant says.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from duologue.baselines.tdm import SLICE_TOKENS, slice_input
from duologue.data.duplex.timeline import DuplexDialogue
from duologue.text.template import Template
from duologue.training.finetune.examples import NO_LABEL
from duologue.training.tensors import padded
from duologue.types import Token

_SENTENCE_MARKS = tuple(".!?。！？")


class Situation(StrEnum):
    """What the assistant has to do in a slice."""

    WAIT = "wait"  # the user speaks, and has not finished
    ANSWER = "answer"  # the user has finished
    GO_ON = "go on"  # the user is silent, and the answer is not complete
    YIELD = "yield"  # the user speaks while the answer is not complete
    REST = "rest"  # the user is silent, and nothing is left to say

    @property
    def is_silent(self) -> bool:
        """Whether `<idle>` is right."""
        return self in (Situation.WAIT, Situation.YIELD, Situation.REST)


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive pairs of a dialogue, as many as fit into a sequence."""

    ids: "array[int]"
    said: "array[int]"  # positions in `ids` of what the assistant says
    decisions: tuple[tuple[int, Situation], ...]  # number in `said` of the first token of each slice

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)


def idle_tokens(template: Template) -> tuple[Token, ...]:
    """Ids of `<idle>`: those of its characters, so that the vocabulary stays as it is."""
    return template.encode("<idle>")


class WindowLayout:
    """Lays out dialogues with one template."""

    def __init__(self, template: Template, room: int, *, slice_tokens: int = SLICE_TOKENS) -> None:
        """`room` is the number of tokens of a window behind the beginning of the template."""
        self._template, self._room, self._slice_tokens = template, room, slice_tokens
        self.idle = idle_tokens(template)
        self.num_too_long = 0
        """Pairs that do not fit into a window."""
        self.num_cut = 0
        """Slices with too many tokens, because the dialogues were built for another tokenizer."""
        ends = [i for i, token in enumerate(template.close) if token in template.stop_tokens]
        self._end = template.close[: ends[0] + 1] if ends else ()
        self._silence = cache(lambda is_first: slice_input(template, "", self.idle, is_first=is_first))

    def windows(self, dialogue: DuplexDialogue) -> Iterator[Window]:
        """The windows of a dialogue, without overlap. A pair that does not fit alone is left out."""
        building = _Building(self._template)
        for number, (words, text) in enumerate(dialogue.output):
            said = self._said(dialogue, number)
            is_full = len(said) >= self._slice_tokens  # a session draws nothing behind a full slice
            ends = self._end if text is not None and not is_full and _is_complete(dialogue, number) else ()
            for _ in range(2):  # if it does not fit, in a new window
                opening, heard = self._heard(words, is_first=building.is_empty)
                if building.num_tokens + len(opening) + len(heard) + len(said) + len(ends) <= self._room:
                    building.add((*opening, *heard), said, ends, _situation(dialogue, number))
                    break
                if building.is_empty:
                    self.num_too_long += 1
                    break
                yield building.window()
                building = _Building(self._template)
        if not building.is_empty:
            yield building.window()

    def _heard(self, words: str | None, *, is_first: bool) -> tuple[Sequence[Token], Sequence[Token]]:
        if not words:
            return self._silence(is_first)
        return slice_input(self._template, words, self.idle, is_first=is_first)

    def _said(self, dialogue: DuplexDialogue, number: int) -> tuple[Token, ...]:
        text = dialogue.output[number][1]
        if text is None:
            return self.idle
        begins = not number or dialogue.output[number - 1][1] is None
        tokens = self._template.answer(text) if begins else self._template.encode(text)
        self.num_cut += len(tokens) > self._slice_tokens
        return tokens[: self._slice_tokens]


class _Building:
    """A window that grows."""

    def __init__(self, template: Template) -> None:
        self._ids: array[int] = array("i", template.begin)
        self._begin = len(self._ids)
        self._said: array[int] = array("i")
        self._decisions: list[tuple[int, Situation]] = []
        self._ends: Sequence[Token] = ()  # of the last slice, if it ends an answer

    @property
    def num_tokens(self) -> int:
        """Tokens behind the beginning of the template."""
        return len(self._ids) - self._begin

    @property
    def is_empty(self) -> bool:
        """Whether there is no pair."""
        return not self._decisions

    def add(self, heard: Sequence[Token], said: Sequence[Token], ends: Sequence[Token], situation: Situation) -> None:
        """Append a pair. `ends`: what the assistant says behind it, to end its answer."""
        self._label(len(self._ids), len(self._ends))  # what closes a turn begins with them
        self._ids.extend(heard)
        self._decisions.append((len(self._said), situation))
        self._label(len(self._ids), len(said))
        self._ids.extend(said)
        self._ends = ends

    def window(self) -> Window:
        """The window."""
        self._label(len(self._ids), len(self._ends))
        self._ids.extend(self._ends)
        return Window(self._ids, self._said, tuple(self._decisions))

    def _label(self, start: int, num: int) -> None:
        self._said.extend(range(start, start + num))


def _situation(dialogue: DuplexDialogue, number: int) -> Situation:
    """What the assistant has to do in pair `number`."""
    words, text = dialogue.output[number]
    if text is not None:
        return Situation.ANSWER if words is not None else Situation.GO_ON
    if words is None:
        return Situation.REST
    was_speaking = number > 0 and dialogue.output[number - 1][1] is not None
    return Situation.YIELD if was_speaking and not _is_whole(dialogue, number - 1) else Situation.WAIT


def _is_complete(dialogue: DuplexDialogue, number: int) -> bool:
    """Whether the answer ends with the slice of pair `number`, and was not cut there."""
    following = dialogue.output[number + 1 : number + 2]
    goes_on = bool(following) and following[0][1] is not None and following[0][0] is None
    return not goes_on and _is_whole(dialogue, number)


def _is_whole(dialogue: DuplexDialogue, number: int) -> bool:
    """Whether nothing of the answer is left behind pair `number`, in which the assistant speaks.

    A data set without a trace does not say. There, an answer is whole if silence follows it, or if it ends a sentence.
    """
    if dialogue.trace:
        where = dialogue.trace[2 * number + 1]
        return where is None or not dialogue.parts[where[0]].get("cut", False)
    following = dialogue.output[number + 1 : number + 2]
    text = dialogue.output[number][1] or ""
    return not following or following[0][0] is None or text.rstrip().endswith(_SENTENCE_MARKS)


@dataclass(frozen=True, slots=True)
class TdmBatch:
    """Windows as tensors, padded on the right."""

    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T], 1 where there is a token
    labels: Tensor  # [B, T], the next token; NO_LABEL where the assistant does not say it

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "TdmBatch":
        """A batch of windows."""
        ids, mask = padded([window.ids for window in windows])
        labels = torch.full_like(ids, NO_LABEL)
        for row, window in enumerate(windows):
            said = torch.tensor(window.said, dtype=torch.long)
            labels[row, said - 1] = ids[row, said]
        return cls(ids, mask, labels)

    def to(self, device: torch.device) -> "TdmBatch":
        """The same batch on `device`."""
        return TdmBatch(*(getattr(self, name).to(device) for name in self.__slots__))
