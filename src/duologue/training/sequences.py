"""A sample as sequences to train on: words and probe, for the state; words and response, for what is said.

Two sequences, not one: the probe is rolled back when an input is promoted, so a response must neither see it nor stand
one position further on. One sequence with a mask that hides the probe would say the same, but only to attention that
takes such a mask: not to sliding windows, fused kernels or recurrent layers. The price is that words with a response
are fed twice. Probes and states of earlier turns do not appear at all, for the same reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from duologue.data.samples import Sample
from duologue.errors import UsageError
from duologue.text.template import Template
from duologue.training.layout import Layout, Layouts
from duologue.types import InputState, Role, Token


@dataclass(frozen=True, slots=True)
class Example:
    """A sample in tokens."""

    sample: Sample
    heard: tuple[Token, ...]  # everything committed, the user's opener and words; the probe follows
    reply: tuple[Token, ...] = ()  # the same, the header, the response and its end; empty where there is no response
    num_response: int = 0  # how many tokens at the end of `reply` the assistant says

    @property
    def length(self) -> int:
        """Tokens of the longer sequence, the probe included."""
        return max(len(self.heard) + 1, len(self.reply))


@dataclass(frozen=True, slots=True)
class Shortened:
    """How many samples were too long for the length of a sequence, and lost …"""

    contexts: int  # … their oldest turns
    texts: int  # … all their turns and the beginning of the words
    responses: int  # … the end of the response

    @property
    def any(self) -> bool:
        """Whether something was lost."""
        return bool(self.contexts or self.texts or self.responses)

    def __str__(self) -> str:
        return (
            f"shortened: {self.contexts} lost old turns, {self.texts} the beginning of the words, "
            f"{self.responses} the end of the response"
        )


def lay_out(samples: Sequence[Sample], template: Template, max_length: int) -> tuple[list[Example], Shortened]:
    """Every sample in tokens, no sequence longer than `max_length`, and what had to be left out for that.

    A response may take half of the length before turns are dropped for it.

    Raises:
        UsageError: not even one word fits behind the system prompt.
    """
    layouts = Layouts(template)
    end = _end(template)
    examples, contexts, texts, responses = [], 0, 0, 0
    for sample in samples:
        layout, lost = _fit(layouts, sample, max_length - 1)
        heard = _ids(layout)
        response = template.answer(sample.response) if sample.state is InputState.PROCESS else ()
        if not response:
            examples.append(Example(sample, heard))
        else:
            said = (*response, *end)
            room = max_length - len(template.header) - min(len(said), max_length // 2)
            layout, lost_more = _fit(layouts, sample, room)
            before = (*_ids(layout), *template.header)
            kept = said[: max_length - len(before)]
            examples.append(Example(sample, heard, (*before, *kept), len(kept)))
            responses += len(kept) < len(said)
            lost = max(lost, lost_more)
        contexts += lost == _TURNS
        texts += lost == _WORDS
    return examples, Shortened(contexts, texts, responses)


_NOTHING, _TURNS, _WORDS = range(3)


def lay_out_heard(samples: Sequence[Sample], template: Template, room: int | None) -> tuple[list[Layout], Shortened]:
    """What is heard of every sample in tokens, at most `room` of them (None: any number), and what was left out.

    Raises:
        UsageError: not even one word fits behind the system prompt.
    """
    layouts = Layouts(template)
    if room is None:
        return [layouts.of(sample) for sample in samples], Shortened(0, 0, 0)
    found, lost = zip(*(_fit(layouts, sample, room) for sample in samples), strict=True)
    return list(found), Shortened(lost.count(_TURNS), lost.count(_WORDS), 0)


def _fit(layouts: Layouts, sample: Sample, room: int) -> tuple[Layout, int]:
    """As much of the sample's end as fits into `room`, and what was lost."""
    layout = layouts.of(sample)
    if layout.length <= room:
        return layout, _NOTHING
    # A dialogue starts with the user in every template.
    starts = [i for i, turn in enumerate(sample.context) if i and turn.role is Role.USER]
    for start in (*starts, len(sample.context)) if sample.context else ():
        layout = layouts.of(replace(sample, context=sample.context[start:]))
        if layout.length <= room:
            return layout, _TURNS
    return _fit_words(layouts, replace(sample, context=()), room), _WORDS


def _fit_words(layouts: Layouts, sample: Sample, room: int) -> Layout:
    """The last words that fit, found by halving; not every language has spaces, so characters are counted."""
    low, high = 0, len(sample.text) - 1  # the last character at least
    while low < high:
        middle = (low + high) // 2
        if layouts.of(replace(sample, text=sample.text[middle:])).length <= room:
            high = middle
        else:
            low = middle + 1
    cut = sample.text[low:]
    whole_words = cut.partition(" ")[2]
    layout = layouts.of(replace(sample, text=whole_words if whole_words.strip() else cut))
    if layout.length > room:
        raise UsageError(
            f"a sequence of {room} tokens has no room for a single word behind the system prompt and the opener "
            f"({layout.length} tokens); allow longer ones (max_length)"
        )
    return layout


def _ids(layout: Layout) -> tuple[Token, ...]:
    return (*layout.context, *layout.text)


def _end(template: Template) -> tuple[Token, ...]:
    """How the assistant ends its turn, up to the token at which a session stops drawing."""
    ends = [i for i, token in enumerate(template.close) if token in template.stop_tokens]
    return template.close[: ends[0] + 1] if ends else ()
