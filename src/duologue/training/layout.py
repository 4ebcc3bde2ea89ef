"""A sample as token ids, exactly as a session feeds it: the committed turns, then the user's opener and words.

The probe that follows is not part of a layout. `Template.lay_out` decides where ids go, for sessions and training
alike. Samples longer than a model or a sequence allows lose their oldest turns first, then their first words.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache

from duologue.data.samples import Sample
from duologue.errors import UsageError
from duologue.text.template import Template
from duologue.types import Role, Token, VirtualId, well_formed


@dataclass(frozen=True, slots=True)
class Layout:
    """The token ids of a sample. Samples with the same `context` share its KV."""

    context: tuple[Token, ...]  # everything committed, up to the opener of the user's turn
    text: tuple[Token, ...]  # opener and words
    evidence: tuple[VirtualId, ...] = ()  # soft tokens in front of the probe: how the words sound

    @property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens before the probe."""
        return self.context + self.text

    @property
    def length(self) -> int:
        """Number of tokens before the probe."""
        return len(self.context) + len(self.text)


class Layouts:
    """Lays out samples with one template and its variants for other system prompts."""

    def __init__(self, template: Template) -> None:
        self._template = cache(lambda system: template if system is None else template.with_system(system))

    def of(self, sample: Sample) -> Layout:
        """The token ids of `sample`. A running answer ends where the user has heard it, as in a fork."""
        template = self._template(sample.system)
        last = sample.context[-1].role if sample.context else None
        context = (*template.begin, *template.lay_out(sample.context), *template.joint(last, Role.USER))
        return Layout(context, template.user(well_formed(sample.text).strip(), first=last is None))


class Lost(IntEnum):
    """What a sample has lost; a higher value includes the lower ones."""

    NOTHING = 0
    TURNS = 1  # the oldest turns
    WORDS = 2  # all turns and the first words


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many samples of a set were truncated, by what they lost."""

    contexts: int  # the oldest turns
    texts: int  # all turns and the first words
    responses: int  # the end of the response

    @property
    def any(self) -> bool:
        """Whether anything was lost."""
        return bool(self.contexts or self.texts or self.responses)

    def __str__(self) -> str:
        return (
            f"{self.contexts} lost their oldest turns, {self.texts} their first words, "
            f"{self.responses} the end of the response"
        )


def lay_out_within(samples: Sequence[Sample], template: Template, room: int | None) -> tuple[list[Layout], Truncation]:
    """The layouts of all samples, with at most `room` tokens each (None: no limit), and what was truncated.

    Raises:
        UsageError: not even one word fits after the system prompt.
    """
    layouts = Layouts(template)
    found, lost = zip(*(fit(layouts, sample, room) for sample in samples), strict=True)
    return list(found), Truncation(lost.count(Lost.TURNS), lost.count(Lost.WORDS), 0)


def fit(layouts: Layouts, sample: Sample, room: int | None) -> tuple[Layout, Lost]:
    """As much of the end of the sample as fits into `room` tokens (None: no limit), and what was lost.

    Raises:
        UsageError: not even one word fits after the system prompt.
    """
    layout = layouts.of(sample)
    if room is None or layout.length <= room:
        return layout, Lost.NOTHING
    # A dialogue starts with the user in every template.
    starts = [i for i, turn in enumerate(sample.context) if i and turn.role is Role.USER]
    for start in (*starts, len(sample.context)) if sample.context else ():
        layout = layouts.of(replace(sample, context=sample.context[start:]))
        if layout.length <= room:
            return layout, Lost.TURNS
    return _fit_words(layouts, replace(sample, context=()), room), Lost.WORDS


def _fit_words(layouts: Layouts, sample: Sample, room: int) -> Layout:
    """The last words that fit, found by bisection over characters: not every language separates words by spaces."""

    def fits(start: int) -> bool:
        return layouts.of(replace(sample, text=sample.text[start:])).length <= room

    starts = range(len(sample.text) - 1)  # none of them fits: the last character is kept
    cut = sample.text[bisect_left(starts, True, key=fits) :]
    whole_words = cut.partition(" ")[2]
    layout = layouts.of(replace(sample, text=whole_words if whole_words.strip() else cut))
    if layout.length > room:
        raise UsageError(
            f"a sequence of {room} tokens has no room for a single word after the system prompt and the opener "
            f"({layout.length} tokens); allow longer sequences (max_length)"
        )
    return layout
