"""Restores the state of a recorded conversation. For long records this is slow, so it runs in a thread."""

from collections.abc import Iterable

from duologue.core.compaction import newest_that_fit
from duologue.core.config import MAX_CHARACTERS_PER_TOKEN
from duologue.core.history import Ledger
from duologue.core.session import Session
from duologue.errors import BadData, ContextOverflow
from duologue.server.record import RecordReader
from duologue.server.store import RecordedState
from duologue.types import Role, Token, Turn


def read_state(session: str, lines: Iterable[bytes], where: object) -> RecordedState:
    """Read a record in one pass, without keeping its events. `where` is for messages.

    Raises:
        BadData: it is damaged, or a copy of another session's record.
    """
    reader, now = RecordReader(lines, where), 0.0
    if reader.session != session:
        raise BadData(f"{where} is a copy of the record of another session")
    ledger = Ledger(reader.history)
    for event in reader:
        ledger(event)
        now = event.at
    unheard = [] if ledger.unheard is None else [ledger.unheard]  # the next server answers it
    return RecordedState(
        reader.settings,
        ledger.history,
        [*unheard, *ledger.unanswered.values()],
        now,
        reader.num_events,
        reader.size,
        reader.taken,
    )


def fit(session: Session, history: list[Turn]) -> tuple[list[Turn], list[Token]]:
    """The newest turns of `history` that leave room for another one, and their ids."""
    template, config = session.template, session.config
    turns = _newest(history, MAX_CHARACTERS_PER_TOKEN * config.max_length, config.max_length // 2)
    kept = newest_that_fit(template, turns, config.max_history - len(template.begin))
    while True:
        turns = turns[len(turns) - kept :]
        try:
            return turns, session.lay_out(turns)
        except ContextOverflow:
            kept = next((len(turns) - i for i, turn in enumerate(turns) if i and turn.role is Role.USER), 0)


def _newest(history: list[Turn], num_characters: int, num_turns: int) -> list[Turn]:
    """The newest turns within both limits, so that turns that cannot fit are not tokenised."""
    start = len(history)
    while start and num_turns and (num_characters := num_characters - len(history[start - 1].text)) >= 0:
        start, num_turns = start - 1, num_turns - 1
    return history[start:]
