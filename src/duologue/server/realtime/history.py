"""Keeps the session's history the same as what the client sees: the items and the instructions."""

from collections.abc import Iterable
from contextlib import suppress

from duologue.core.compaction import newest_that_fit
from duologue.core.config import MAX_CHARACTERS_PER_TOKEN
from duologue.core.prompt import Template
from duologue.core.session import Session
from duologue.engine.handle import Handle
from duologue.errors import ContextOverflow, UsageError
from duologue.models.model import Model
from duologue.server.fields import Rejection
from duologue.server.long_texts import PER_TURN, LongTexts
from duologue.server.realtime.items import Item
from duologue.text.words import needs_space
from duologue.types import Role, Token, Turn, well_formed


class History:
    """The session's history and system prompt.

    Before the session hears or answers something, they are compared with the items and the instructions, and replaced
    only if they differ, since a client may reach the same state in many steps.
    """

    def __init__(self, handle: Handle, model: Model, default: str, *, client: str, long_texts: LongTexts) -> None:
        self.num_trimmed = 0  # turns that the session has left out for lack of room
        self._handle = handle
        self._model = model
        self._client = client
        self._long_texts = long_texts
        self._default = default  # the server's instructions; empty: the model's own
        self._current = default  # the session's instructions
        self._newest_template: tuple[str, Template] | None = None  # and its instructions
        self._laid_out: tuple[list[Turn], Template, tuple[list[Turn], list[Token]]] | None = None  # see `prepare`

    @property
    def session(self) -> Session:
        """The session that the history belongs to."""
        assert isinstance(self._handle.session, Session), "conversations of the server have one"
        return self._handle.session

    async def prepare(self, instructions: str, items: list[Item]) -> None:
        """Tokenise in a thread what `check` and `sync` will need, if that takes long."""
        if len(instructions) > self._most_characters:
            return  # `check` will refuse it
        run = self._long_texts.run
        template = await run(self._client, len(instructions), self._template, instructions)
        wanted = self._missing(instructions, items)
        if wanted is not None:
            size = sum(len(turn.text) + PER_TURN for turn in wanted)
            with suppress(UsageError):  # `sync` will raise it
                laid_out = await run(self._client, size, self._fit, wanted, template)
                self._laid_out = wanted, template, laid_out

    def check(self, instructions: str) -> None:
        """Raise `Rejection` if `instructions` leave too little room for a conversation."""
        if instructions == self._current:
            return
        limit = self.session.config.max_length // 4
        is_longer = len(instructions) > self._most_characters
        if is_longer or len(self._template(instructions).begin) > limit:
            raise Rejection(
                f"instructions may have at most {limit} tokens; more leave too little room for a conversation",
                code="string_above_max_length",
                param="instructions",
            )

    def check_turn(self, text: str) -> None:
        """Raise `Rejection` if `text` is too long for the user's turn."""
        limit = self.session.config.max_user_text
        if len(text) > MAX_CHARACTERS_PER_TOKEN * limit or len(self.session.template.user(text, first=False)) > limit:
            raise Rejection(
                f"the words of one turn may have at most {limit} tokens in all; say them in parts",
                code="string_above_max_length",
                param="item.content",
            )

    def sync(self, instructions: str, items: list[Item], *, is_forced: bool = False) -> bool:
        """Set the session's history to `items` under `instructions`. Returns whether it had to change.

        If so, or with `is_forced`, a running answer and the words being heard are given up.

        Raises:
            TemplateError: the model's chat template does not allow such a history.
        """
        wanted = self._missing(instructions, items)
        if wanted is None and not is_forced:
            return False
        if wanted is None:
            wanted = merged(self.session.history)
        template = self._template(instructions)
        prepared, self._laid_out = self._laid_out, None
        if prepared is not None and prepared[:2] == (wanted, template):
            kept, laid_out = prepared[2]
        else:
            kept, laid_out = self._fit(wanted, template)
        self._handle.edit(kept, template=template, laid_out=laid_out)
        self.num_trimmed += len(wanted) - len(kept)
        self._current = instructions
        return True

    def _missing(self, instructions: str, items: list[Item]) -> list[Turn] | None:
        """The history that has to be set; None if it is right already."""
        wanted, has = turns(items), merged(self.session.history)
        if self.num_trimmed and has and wanted[len(wanted) - len(has) :] == has:
            wanted = has
        return None if instructions == self._current and wanted == has else wanted

    def _fit(self, history: list[Turn], template: Template) -> tuple[list[Turn], list[Token]]:
        """The newest turns that leave room for another one, and their ids."""
        try:
            return history, self.session.lay_out(history, template)
        except ContextOverflow:
            config = self.session.config
            budget = config.max_history - len(template.begin)
            kept = history[len(history) - newest_that_fit(template, history, budget) :]
            return kept, self.session.lay_out(kept, template)

    def _template(self, instructions: str) -> Template:
        if self._newest_template is None or self._newest_template[0] != instructions:
            text = well_formed(instructions) or self._default
            template = self._model.format.with_system(text) if text else self._model.format
            self._newest_template = instructions, template
        return self._newest_template[1]

    @property
    def _most_characters(self) -> int:
        return MAX_CHARACTERS_PER_TOKEN * self.session.config.max_length // 4


def turns(items: Iterable[Item]) -> list[Turn]:
    """The history that `items` stand for.

    System items become part of the user's turn, because chat templates allow only one system prompt."""
    return merged(
        Turn(Role.ASSISTANT, item.text) if item.role == "assistant" else Turn(Role.USER, item.words) for item in items
    )


def merged(history: Iterable[Turn]) -> list[Turn]:
    """`history` without empty turns, and with consecutive turns of the same side joined."""
    parts: list[tuple[Role, list[str]]] = []
    for turn in history:
        if not turn.text.strip():
            continue
        if not parts or parts[-1][0] is not turn.role:
            parts.append((turn.role, []))
        texts = parts[-1][1]
        has_space = texts and (texts[-1][-1].isspace() or turn.text[0].isspace())
        if texts and not has_space and needs_space(texts[-1], turn.text):
            texts.append(" ")
        texts.append(turn.text)
    return [Turn(role, "".join(texts)) for role, texts in parts]
