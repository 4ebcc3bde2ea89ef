"""Keeps the session's history the same as what the client sees: the items and the instructions."""

from collections.abc import Iterable

from duologue.core.compaction import newest_that_fit
from duologue.core.session import Session
from duologue.engine.handle import Handle
from duologue.errors import ContextOverflow
from duologue.models.model import Model
from duologue.server.fields import Rejection
from duologue.server.realtime.items import Item
from duologue.text.template import Template
from duologue.types import Role, Turn, well_formed


class History:
    """The session's history and system prompt. They are compared with the items and instructions before the session
    hears or answers something, and replaced only if they differ: a client may get to the same state in many steps.
    """

    def __init__(self, handle: Handle, model: Model, default: str) -> None:
        self.num_trimmed = 0  # turns that the session has left out for want of room
        self._handle = handle
        self._model = model
        self._default = default  # the server's instructions; empty: the model's own
        self._current = default  # the session's instructions

    @property
    def session(self) -> Session:
        """The session whose history it is."""
        assert isinstance(self._handle.session, Session), "conversations of the server have one"
        return self._handle.session

    def check(self, instructions: str) -> None:
        """Raise `Rejection` if `instructions` leave too little room for a conversation."""
        if instructions == self._current:
            return
        length, limit = len(self._template(instructions).begin), self.session.config.max_length // 4
        if length > limit:
            raise Rejection(
                f"the instructions take {length} tokens, and at most {limit} leave room for a conversation",
                code="string_above_max_length",
                param="instructions",
            )

    def check_turn(self, text: str) -> None:
        """Raise `Rejection` if `text` is too long for the user's turn."""
        limit = self.session.config.max_user_text
        if len(text) > 32 * limit or len(self.session.template.user(text, first=False)) > limit:
            raise Rejection(
                f"the words of one turn may have {limit} tokens in all; say them in parts",
                code="string_above_max_length",
                param="item.content",
            )

    def sync(self, instructions: str, items: list[Item], *, is_forced: bool = False) -> bool:
        """Set the session's history to `items` under `instructions`. Returns whether it had to be changed.

        If so, or with `is_forced`, a running answer and what was being heard have been given up.

        Raises:
            TemplateError: the model's chat template does not allow such a history.
        """
        wanted, has = turns(items), merged(self.session.history)
        if self.num_trimmed and has and wanted[len(wanted) - len(has) :] == has:
            wanted = has
        if not is_forced and instructions == self._current and wanted == has:
            return False
        template = self._template(instructions)
        try:
            self._handle.edit(wanted, template=template)
        except ContextOverflow:
            num_kept = self._num_fitting(wanted, template)
            self._handle.edit(wanted[len(wanted) - num_kept :], template=template)
            self.num_trimmed += len(wanted) - num_kept
        self._current = instructions
        return True

    def _template(self, instructions: str) -> Template:
        text = well_formed(instructions) or self._default
        return self._model.template.with_system(text) if text else self._model.template

    def _num_fitting(self, history: list[Turn], template: Template) -> int:
        """How many of the newest turns leave room for another one."""
        config = self.session.config
        budget = config.max_length - config.max_user_text - config.min_room - len(template.begin)
        return newest_that_fit(template, history, budget)


def turns(items: Iterable[Item]) -> list[Turn]:
    """The history that `items` are. System items belong to the user's turn: a model's template has no place for more
    than one system prompt."""
    return merged(
        Turn(Role.ASSISTANT, item.text) if item.role == "assistant" else Turn(Role.USER, item.text.strip())
        for item in items
    )


def merged(history: Iterable[Turn]) -> list[Turn]:
    """`history` without empty turns, successive turns of one side joined."""
    out: list[Turn] = []
    for turn in history:
        if not turn.text.strip():
            continue
        if out and out[-1].role is turn.role:
            before = out.pop().text
            joint = "" if before[-1].isspace() or turn.text[0].isspace() else " "
            turn = Turn(turn.role, before + joint + turn.text)
        out.append(turn)
    return out
