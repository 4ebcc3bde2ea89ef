"""Takes a model's Jinja chat template apart, as text: what stands before, between and after turns.

The template is rendered with markers in place of what people say, and the text around the markers is read off. Nothing
is assumed about the model, and tokens play no part.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import product
from typing import final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from duologue.errors import TemplateError
from duologue.text.sandbox import LimitedEnvironment, LimitExceeded, within_limits
from duologue.text.splicing import Span
from duologue.text.thoughts import open_thought
from duologue.types import Role, ThoughtMarks, Turn

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For models without a chat template."""

# Letters and digits only, which no template trims, splits or escapes. None is part of another.
_SYSTEM, _USER, _USER2, _ASSISTANT, _ASSISTANT2 = (f"Qz{n}mark{n}zQ" for n in range(5))
_PAD = " \n "
_TOLD, _ASK, _MORE = Turn(Role.SYSTEM, _SYSTEM), Turn(Role.USER, _USER), Turn(Role.USER, _USER2)
_TELL = Turn(Role.ASSISTANT, _ASSISTANT)
_DIALOGUE = (_ASK, _TELL, _MORE)
_NO_THOUGHT = {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0}
"""What templates of reasoning models call the choice to answer without a thought."""


class _Generation(jinja2.ext.Extension):  # type: ignore[misc]
    """`{% generation %}`, in which some templates wrap the assistant's words: its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        body: list[jinja2.nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


@final
class Renderer:
    """Renders whole dialogues with the chat template."""

    def __init__(self, source: str, special_text: Mapping[str, str], now: datetime) -> None:
        """`now` is the time for templates that write the date."""
        environment = LimitedEnvironment(
            {"tojson": partial(json.dumps, ensure_ascii=False)},
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.globals.update(raise_exception=_raise, strftime_now=now.strftime)
        try:
            self._template = within_limits(environment.from_string, source)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise TemplateError(f"the chat template is not valid Jinja: {error}") from error
        self._special_text = dict(special_text)
        self._as_parts, self._insists = self._find_ways()

    def render(self, turns: Sequence[Turn], *, reply: bool) -> str:
        """The dialogue as text; with `reply`, up to where the assistant's answer starts.

        Raises:
            TemplateError: the template refuses these turns.
        """
        # Templates are programs from elsewhere: whatever they raise, they cannot render these turns.
        try:
            return self._render(turns, reply)
        except Exception as error:
            roles = ", ".join(turn.role.value for turn in turns)
            raise TemplateError(f"the chat template refuses turns of {roles}: {error}") from error

    def _find_ways(self) -> tuple[bool, bool]:
        """Whether the template expects content in parts, and whether it requires a system turn."""
        for ways in product((False, True), (False, True)):
            self._as_parts, self._insists = ways
            try:
                if _USER in self._render([_ASK], reply=True):
                    return ways
            except LimitExceeded as error:
                raise TemplateError(f"the chat template cannot be used: {error}") from error
            except Exception:  # as in `render`
                continue
        return False, False

    def _render(self, turns: Sequence[Turn], reply: bool) -> str:
        if self._insists and turns[0].role is not Role.SYSTEM:
            turns = [Turn(Role.SYSTEM, ""), *turns]
        messages = [
            {
                "role": turn.role.value,
                "content": [{"type": "text", "text": turn.text}] if self._as_parts else turn.text,
            }
            for turn in turns
        ]
        values = {
            "messages": messages,
            "add_generation_prompt": reply,
            "tools": None,
            "documents": None,
            **_NO_THOUGHT,
            **self._special_text,
        }
        text: str = within_limits(self._template.render, values)
        return text


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@dataclass(frozen=True, slots=True)
class Trim:
    """Which white space around a text the template removes."""

    start: bool = False
    end: bool = False

    def apply(self, text: str) -> str:
        """`text` as the template writes it."""
        text = text.lstrip() if self.start else text
        return text.rstrip() if self.end else text


@dataclass(frozen=True, slots=True)
class Skeleton:
    """All text of a dialogue that nobody says.

    begin, first_opener, user, header, answer, close, opener, user, header, answer, close, …

    Before an answer of the history, `told` takes the place of `header`: they differ if the header opens a thought.
    """

    begin: tuple[Span, ...]
    first_opener: tuple[Span, ...]  # with the system text, if the template folds it into the first user turn
    opener: str
    header: str
    told: str
    close: str
    lead: str  # white space before a finished answer that is not before one to be generated
    notes: tuple[str, ...]  # differences from what the template renders
    thought: ThoughtMarks | None = None  # that the header opens, as the template has no way to answer without one
    folds: bool = False  # the template has no system turn: we put the system text into the first user turn
    user_close: str | None = None  # None: no user turn may follow another
    again: str | None = None  # None: no answer may follow another
    trim_user: Trim = Trim()
    trim_assistant: Trim = Trim()


def take_apart(renderer: Renderer, split: Callable[[str], Sequence[Span]], system: str | None) -> Skeleton:
    """Read a template's skeleton off its renderings, with `system` (None: the template's own default, if any).

    `split` splits text at special tokens, so that texts are compared by whole tokens.

    Raises:
        TemplateError: the turns cannot be told apart.
    """
    bare = _read_bare(renderer, split)
    return replace(
        bare if system is None else _with_system(renderer, bare, system),
        user_close=_read_user_close(renderer, bare),
        again=_read_again(renderer, bare),
        trim_user=_read_trim(renderer, _DIALOGUE, 0),
        trim_assistant=_read_trim(renderer, _DIALOGUE, 1),
    )


def _read_bare(renderer: Renderer, split: Callable[[str], Sequence[Span]]) -> Skeleton:
    """What a dialogue without a system text tells of the skeleton."""
    head, joint, between, header = _gaps(renderer, _DIALOGUE)
    lead = joint.removeprefix(header) if joint.startswith(header) else ""
    if lead.strip():
        header, lead = joint, ""  # the template has no generation prompt, or only a part of it
    thought, told = open_thought(header), header
    if thought is not None:
        told, lead = joint if header.startswith(joint) else header[: header.rindex(thought.opener)], ""
    notes = _told_otherwise(joint, told + lead)
    ended = _gaps(renderer, _DIALOGUE[:2], reply=False)[-1]
    close, opener = _split_between(between, ended, head, split)
    begin = head.removesuffix(opener)
    opening = (Span(head[len(begin) :]),)
    return Skeleton((Span(begin),), opening, opener, header, told, close, lead, notes, thought)


def _told_otherwise(joint: str, told: str) -> tuple[str, ...]:
    """A note, if the template puts `joint` before an answer of the history, and we put `told`."""
    if joint == told:
        return ()
    return (f"in the template, a finished answer follows {joint!r}; here, it follows {told!r}, as it was generated",)


def _gaps(renderer: Renderer, turns: Sequence[Turn], *, reply: bool = True) -> list[str]:
    """The text before, between and after the words of `turns`, which are markers."""
    text = renderer.render(turns, reply=reply)
    parts, marks = [], [turn.text.strip() for turn in turns]
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text or any(other in before for other in marks):
            raise TemplateError(
                "the chat template drops, repeats or moves the words of turns, so turns cannot be told apart; "
                "pass another one as chat_template="
            )
        parts.append(before)
    return [*parts, text]


def _split_between(between: str, ended: str, head: str, split: Callable[[str], Sequence[Span]]) -> tuple[str, str]:
    """Split the text between an answer and the next user's words into the answer's closer and the user's opener.

    `ended` follows an answer at the end of a dialogue: the closer, and in some templates an end marker that does not
    occur within a dialogue.
    """
    if between.startswith(ended):
        close = ended
    else:
        close = ""
        for here, there in zip(split(between), split(ended), strict=False):
            if here != there:
                break
            close += here.text
    opener = between[len(close) :]
    # If a template trims its end, the last line break seems to belong to the opener; it belongs to the closer.
    while opener[:1].isspace() and not head.endswith(opener):
        close, opener = close + opener[0], opener[1:]
    if not opener:
        raise TemplateError(
            "the chat template puts nothing before a user's words, so turns cannot be told apart; "
            "pass another one as chat_template="
        )
    return close, opener


def _with_system(renderer: Renderer, bare: Skeleton, system: str) -> Skeleton:
    """`bare` with a system text before the first user turn, or in it."""
    turns = (_TOLD, _ASK)
    try:
        before, after, header = _gaps(renderer, turns)
    except TemplateError:
        folded = _read_trim(renderer, _DIALOGUE, 0).apply(system)
        said = (Span(folded, said=True), Span("\n\n")) if folded else ()
        return replace(bare, first_opener=(*bare.first_opener, *said), folds=True)
    notes = bare.notes
    if header != bare.header:
        notes += ("the template writes another header when there is a system text",)
    bare = replace(bare, notes=notes + _where_system_stays(renderer))
    text = Span(_read_trim(renderer, turns, 0).apply(system), said=True)
    if after.endswith(bare.opener):
        begin = (Span(before), text, Span(after.removesuffix(bare.opener)))
        return replace(bare, begin=begin, first_opener=(Span(bare.opener),))
    if not system:
        return bare
    start = len(bare.begin[0].text) if before.startswith(bare.begin[0].text) else 0
    return replace(bare, begin=(Span(before[:start]),), first_opener=(Span(before[start:]), text, Span(after)))


def _where_system_stays(renderer: Renderer) -> tuple[str, ...]:
    """A note, if the system text does not stay at the start of a longer dialogue."""
    try:
        whole = renderer.render([_TOLD, *_DIALOGUE], reply=True)
    except TemplateError:
        return ()
    if whole.find(_SYSTEM) < whole.find(_USER):
        return ()
    return ("the template moves the system text to the newest user turn; here, it stays in the first",)


def _read_user_close(renderer: Renderer, bare: Skeleton) -> str | None:
    try:
        _, between, header = _gaps(renderer, (_ASK, _MORE))
    except TemplateError:
        return None
    is_alike = header == bare.header and between.endswith(bare.opener)
    return between.removesuffix(bare.opener) if is_alike else None


def _read_again(renderer: Renderer, bare: Skeleton) -> str | None:
    try:
        _, joint, between, _, _ = _gaps(renderer, (_ASK, _TELL, Turn(Role.ASSISTANT, _ASSISTANT2), _MORE))
        closed = _gaps(renderer, (_ASK,), reply=False)[-1]
    except TemplateError:
        return None
    opener = between.removeprefix(bare.close)
    if not opener.strip() or not between.startswith(bare.close):
        return None
    if bare.told.startswith(closed) and joint == closed + opener:
        opener = bare.told.removeprefix(closed)  # as before any other answer
    return bare.close + opener


def _read_trim(renderer: Renderer, turns: Sequence[Turn], index: int) -> Trim:
    """Which white space around the text of `turns[index]` is removed. Its dialogue goes on after it."""
    padded = [replace(turn, text=_PAD + turn.text + _PAD) if turn is turns[index] else turn for turn in turns]
    try:
        plain, spaced = _gaps(renderer, turns), _gaps(renderer, padded)
    except TemplateError:
        return Trim()
    return Trim(start=spaced[index] == plain[index], end=spaced[index + 1] == plain[index + 1])
