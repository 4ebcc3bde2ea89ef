"""How turns lie in a sequence: which ids go between them. The one place that knows; training reads it too."""

from collections.abc import Iterable, Sequence

from duologue.errors import TemplateError
from duologue.template import Template
from duologue.types import Role, Token, Turn


def opening(template: Template, last: Role | None, *, cut_note: str = "") -> tuple[Token, ...]:
    """What stands between the live branch and the opener of a user's turn.

    `last` is who spoke last, None at the beginning. `cut_note` is written behind an assistant's turn that was cut.
    """
    if last is None:
        return ()
    if last is Role.USER:
        return template.user_close
    return (*template.encode(cut_note), *template.close) if cut_note else template.close


def user_turn(template: Template, text: str, last: Role | None, *, cut_note: str = "") -> tuple[Token, ...]:
    """A user's turn behind a branch on which `last` spoke last, without its closer."""
    return (*opening(template, last, cut_note=cut_note), *template.user(text, first=last is None))


def assistant_opener(template: Template, last: Role | None) -> tuple[Token, ...]:
    """What makes the assistant speak behind a branch on which `last` spoke last.

    Raises:
        TemplateError: the template does not let the assistant speak there.
    """
    if last is Role.USER:
        return template.header
    if last is Role.ASSISTANT and template.again is not None:
        return template.again
    size = len(template.user_close)
    if last is None and template.again is not None and template.header[:size] == template.user_close:
        return template.header[size:]
    raise TemplateError("this model's chat template wants a user turn before every answer; let the user speak first")


def lay_out(template: Template, turns: Iterable[Turn], last: Role | None = None) -> list[Token]:
    """Ids of `turns` behind a branch on which `last` spoke last, up to the last word: no closer, no header.

    Raises:
        TemplateError: two turns follow each other in a way that the template does not allow.
    """
    ids: list[Token] = []
    for turn in turns:
        if turn.role is Role.USER:
            ids += user_turn(template, turn.text, last)
        elif turn.role is Role.ASSISTANT:
            ids += (*assistant_opener(template, last), *template.answer(turn.text))
        else:
            raise TemplateError("a system turn belongs to the template: Template.with_system(text)")
        last = turn.role
    return ids


def newest_that_fit(template: Template, turns: Sequence[Turn], budget: int) -> int:
    """How many of the newest `turns` fit into `budget` tokens, counted in whole exchanges that a user begins."""
    fitting, used = 0, 0
    for i in range(len(turns) - 1, -1, -1):
        used += len(template.encode(turns[i].text)) + len(template.header) + len(template.close)
        if used > budget:
            break
        if turns[i].role is Role.USER:
            fitting = len(turns) - i
    return fitting
