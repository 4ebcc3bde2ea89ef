"""What goes between turns when one was cut, and how many turns fit. Where turns lie is the template's to say."""

from collections.abc import Sequence

from duologue.text.template import Template
from duologue.types import Role, Token, Turn


def opening(template: Template, last: Role | None, *, cut_note: str = "") -> tuple[Token, ...]:
    """What stands between the live branch, on which `last` spoke last, and the opener of a user's turn.

    `cut_note` is written behind an assistant's turn that was cut.
    """
    joint = template.joint(last, Role.USER)
    return (*template.encode(cut_note), *joint) if cut_note and last is Role.ASSISTANT else joint


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
