"""Takes a model's Jinja chat template apart, as text: what stands before, between and after turns.

The template is rendered with markers in place of what people say, and the text around the markers is read off. Nothing
is assumed about the model, and tokens play no part.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from typing import Any, final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from duologue.errors import TemplateError
from duologue.text.sandbox import LimitedEnvironment, LimitExceeded, within_limits
from duologue.text.splicing import Span
from duologue.types import Role, Turn

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
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.add_filter("tojson", _tojson)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = now.strftime
        try:
            self._template = within_limits(environment.from_string, source)
        except (jinja2.TemplateError, RecursionError) as error:
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
            raise TemplateError(f"the chat template refuses {_roles(turns)}: {error}") from error

    def _find_ways(self) -> tuple[bool, bool]:
        """Whether the template expects content in parts, and whether it requires a system turn."""
        for ways in product((False, True), (False, True)):
            self._as_parts, self._insists = ways
            try:
                if _USER in self._render([Turn(Role.USER, _USER)], reply=True):
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
            "enable_thinking": False,
            "tools": None,
            "documents": None,
            **self._special_text,
        }
        text: str = within_limits(self._template.render, values)
        return text


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _roles(turns: Sequence[Turn]) -> str:
    return "turns of " + ", ".join(turn.role.value for turn in turns)


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
    """

    begin: tuple[Span, ...]
    first_opener: tuple[Span, ...]  # with the system text, if the template folds it into the first user turn
    opener: str
    header: str
    close: str
    user_close: str | None  # None: no user turn may follow another
    again: str | None  # None: no answer may follow another
    lead: str  # white space before a finished answer that is not before one to be generated
    trim_user: Trim
    trim_assistant: Trim
    folds: bool  # the template has no system turn: we put the system text into the first user turn
    notes: tuple[str, ...]  # differences from what the template renders


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a dialogue without a system text."""

    head: str
    opener: str
    header: str
    close: str
    lead: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Start:
    """How a dialogue starts. The fields are those of `Skeleton`."""

    begin: tuple[Span, ...]
    first_opener: tuple[Span, ...]
    folds: bool = False
    notes: tuple[str, ...] = ()


def take_apart(renderer: Renderer, split: Callable[[str], Sequence[Span]], system: str | None) -> Skeleton:
    """Read a template's skeleton off its renderings, with `system` (None: the template's own default, if any).

    `split` splits text at special tokens, so that texts are compared by whole tokens.

    Raises:
        TemplateError: the turns cannot be told apart.
    """
    parts = _read_parts(renderer, split)
    start = _read_start(renderer, parts, system)
    return Skeleton(
        begin=start.begin,
        first_opener=start.first_opener,
        opener=parts.opener,
        header=parts.header,
        close=parts.close,
        user_close=_read_user_close(renderer, parts),
        again=_read_again(renderer, parts),
        lead=parts.lead,
        trim_user=_read_trim(renderer, Turn(Role.USER, _USER), []),
        trim_assistant=_read_trim(renderer, Turn(Role.ASSISTANT, _ASSISTANT), [Turn(Role.USER, _USER)]),
        folds=start.folds,
        notes=(*parts.notes, *start.notes),
    )


def _read_parts(renderer: Renderer, split: Callable[[str], Sequence[Span]]) -> _Parts:
    ask, tell, more = Turn(Role.USER, _USER), Turn(Role.ASSISTANT, _ASSISTANT), Turn(Role.USER, _USER2)
    whole = renderer.render([ask, tell, more], reply=True)
    head, joint, between, header = _around(whole, _USER, _ASSISTANT, _USER2)
    notes: list[str] = []
    lead = joint.removeprefix(header) if joint.startswith(header) else ""
    if lead.strip():
        header, lead = joint, ""  # the template has no generation prompt, or only a part of it
    elif joint != header + lead:
        notes.append(
            f"in the template, a finished answer follows {joint!r}; here, it follows {header!r}, as it was generated"
        )
    ended = _around(renderer.render([ask, tell], reply=False), _ASSISTANT)[-1]
    close, opener = _split_between(between, ended, head, split)
    return _Parts(head, opener, header, close, lead, tuple(notes))


def _around(text: str, *marks: str) -> list[str]:
    """The text before, between and after the markers."""
    parts = []
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


def _read_start(renderer: Renderer, parts: _Parts, system: str | None) -> _Start:
    """What stands before the first user turn."""
    bare = parts.head.removesuffix(parts.opener)
    begin: tuple[Span, ...] = (Span(bare),)
    opener: tuple[Span, ...] = (Span(parts.head[len(bare) :]),)
    if system is None:
        return _Start(begin, opener)
    turns = [Turn(Role.SYSTEM, _SYSTEM), Turn(Role.USER, _USER)]
    try:
        before, after, header = _around(renderer.render(turns, reply=True), _SYSTEM, _USER)
    except TemplateError:
        folded = _read_trim(renderer, turns[1], []).apply(system)
        said = (Span(folded, said=True), Span("\n\n")) if folded else ()
        return _Start(begin, (*opener, *said), folds=True)
    notes: tuple[str, ...] = ()
    if header != parts.header:
        notes = ("the template writes another header when there is a system text",)
    notes += _where_system_stays(renderer, turns)
    text = Span(_read_trim(renderer, turns[0], []).apply(system), said=True)
    if after.endswith(parts.opener):
        begin = (Span(before), text, Span(after.removesuffix(parts.opener)))
        return _Start(begin, (Span(parts.opener),), notes=notes)
    if not system:
        return _Start(begin, opener, notes=notes)
    start = len(bare) if before.startswith(bare) else 0
    return _Start((Span(before[:start]),), (Span(before[start:]), text, Span(after)), notes=notes)


def _where_system_stays(renderer: Renderer, turns: list[Turn]) -> tuple[str, ...]:
    """A note, if the system text does not stay at the start of a longer dialogue."""
    longer = [*turns, Turn(Role.ASSISTANT, _ASSISTANT), Turn(Role.USER, _USER2)]
    try:
        whole = renderer.render(longer, reply=True)
    except TemplateError:
        return ()
    if whole.find(_SYSTEM) < whole.find(_USER):
        return ()
    return ("the template moves the system text to the newest user turn; here, it stays in the first",)


def _read_user_close(renderer: Renderer, parts: _Parts) -> str | None:
    turns = [Turn(Role.USER, _USER), Turn(Role.USER, _USER2)]
    try:
        _, between, header = _around(renderer.render(turns, reply=True), _USER, _USER2)
    except TemplateError:
        return None
    if header != parts.header or not between.endswith(parts.opener):
        return None
    return between.removesuffix(parts.opener)


def _read_again(renderer: Renderer, parts: _Parts) -> str | None:
    turns = [
        Turn(Role.USER, _USER),
        Turn(Role.ASSISTANT, _ASSISTANT),
        Turn(Role.ASSISTANT, _ASSISTANT2),
        Turn(Role.USER, _USER2),
    ]
    try:
        _, joint, between, _, _ = _around(renderer.render(turns, reply=True), _USER, _ASSISTANT, _ASSISTANT2, _USER2)
        closed = _around(renderer.render(turns[:1], reply=False), _USER)[-1]
    except TemplateError:
        return None
    opener = between.removeprefix(parts.close)
    if not opener.strip() or not between.startswith(parts.close):
        return None
    if parts.header.startswith(closed) and joint == closed + opener:
        opener = parts.header.removeprefix(closed)  # as before an answer to be generated
    return parts.close + opener


def _read_trim(renderer: Renderer, turn: Turn, before: list[Turn]) -> Trim:
    """Which white space around the text of `turn` is removed, in a dialogue that continues after it."""
    follow = {
        Role.SYSTEM: [Turn(Role.USER, _USER)],
        Role.USER: [Turn(Role.ASSISTANT, _ASSISTANT), Turn(Role.USER, _USER2)],
        Role.ASSISTANT: [Turn(Role.USER, _USER2)],
    }[turn.role]
    padded = replace(turn, text=_PAD + turn.text + _PAD)
    try:
        start, end = _around(renderer.render([*before, turn, *follow], reply=True), turn.text)
        padded_start, padded_end = _around(renderer.render([*before, padded, *follow], reply=True), turn.text)
    except TemplateError:
        return Trim()
    return Trim(start=padded_start == start, end=padded_end == end)
