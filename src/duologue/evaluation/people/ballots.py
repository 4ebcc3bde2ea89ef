"""The ballots of a study, in SQLite.

A rater sees every example once, in an order and with sides that are drawn and stored when the rater joins. A ballot
is a rater's votes on one example. It may arrive in parts and more than once: a vote on a criterion replaces the one
before, so nothing counts twice. Every call is a transaction of its own on a connection of its own; SQLite's lock lets
one of them write at a time, whichever thread or process it is in.
"""

import random
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from duologue.errors import BadData, UsageError
from duologue.evaluation.people.criteria import Criterion, Vote

_APPLICATION = 0x4475_6F42  # "DuoB", in the header of the file
_WAIT_S = 20.0  # for another writer
_SCHEMA = """
CREATE TABLE rater (
  id TEXT PRIMARY KEY,
  judge TEXT,          -- the name of a model, or NULL for a person
  joined TEXT NOT NULL
);
CREATE TABLE ballot (
  rater TEXT NOT NULL REFERENCES rater,
  example TEXT NOT NULL,
  position INTEGER NOT NULL,
  a TEXT NOT NULL,     -- the systems on the two sides
  b TEXT NOT NULL,
  PRIMARY KEY (rater, example)
);
CREATE TABLE vote (
  rater TEXT NOT NULL,
  example TEXT NOT NULL,
  criterion TEXT NOT NULL,
  vote TEXT NOT NULL CHECK (vote IN ('a', 'tie', 'b')),
  at TEXT NOT NULL,
  PRIMARY KEY (rater, example, criterion),
  FOREIGN KEY (rater, example) REFERENCES ballot
);
"""


@dataclass(frozen=True, slots=True)
class Ballot:
    """What one rater thinks of one example, so far."""

    rater: str
    example: str
    a: str  # the system on the left
    b: str
    votes: Mapping[Criterion, Vote]
    judge: str | None = None  # the name of a model; None: a person

    @property
    def is_complete(self) -> bool:
        """Whether there is a vote on every criterion."""
        return len(self.votes) == len(Criterion)


class Ballots:
    """The database of a study."""

    def __init__(self, path: Path) -> None:
        """Open `path`, or create it.

        Raises:
            BadData: it is something else, or cannot be opened.
        """
        self._path = path
        with self._transaction() as db:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            if application == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif application != _APPLICATION:
                raise BadData(f"{path} is a database, but not of ballots")

    def join(
        self, examples: Sequence[str], systems: tuple[str, str], *, chance: random.Random, judge: str | None = None
    ) -> str:
        """A new rater, by an id that cannot be guessed; or the judge of that name, who may have begun before.

        The order of the examples is random; in half of them, rounded either way, the first system is on the left.
        """
        order = list(examples)
        chance.shuffle(order)
        both = [systems, systems[::-1]]
        chance.shuffle(both)
        sides = [both[i % 2] for i in range(len(order))]
        chance.shuffle(sides)
        rater = secrets.token_urlsafe(16) if judge is None else f"judge {judge}"
        with self._transaction() as db:
            if not db.execute("SELECT 1 FROM rater WHERE id = ?", (rater,)).fetchone():
                db.execute("INSERT INTO rater VALUES (?, ?, ?)", (rater, judge, _now()))
                rows = [(rater, name, i, *side) for i, (name, side) in enumerate(zip(order, sides, strict=True))]
                db.executemany("INSERT INTO ballot VALUES (?, ?, ?, ?, ?)", rows)
        return rater

    def of(self, rater: str, *, judge: str | None = None) -> list[Ballot]:
        """The ballots of a person, or of a judge of that name, in their order; complete or not.

        Raises:
            UsageError: there is no such rater.
        """
        with self._transaction() as db:
            return self._of(db, rater, judge)

    def all(self) -> list[Ballot]:
        """All ballots with at least one vote."""
        with self._transaction() as db:
            return [ballot for ballot in self._select(db) if ballot.votes]

    def cast(self, rater: str, example: str, votes: Mapping[str, str], *, judge: str | None = None) -> Ballot:
        """Write `votes`, by criterion; those on other criteria stay. Returns the whole ballot.

        Raises:
            UsageError: there is no such rater (see `of`), example, criterion or vote. Nothing is written then.
        """
        for known, given, what in ((Criterion, votes.keys(), "criterion"), (Vote, votes.values(), "vote")):
            if unknown := [one for one in given if one not in list(known)]:
                raise UsageError(f"unknown {what} {unknown[0]!r:.40}; there are {', '.join(known)}")
        with self._transaction() as db:
            if example not in {ballot.example for ballot in self._of(db, rater, judge)}:
                raise UsageError(f"this rater has no ballot on {example!r:.80}")
            rows = [(rater, example, criterion, vote, _now()) for criterion, vote in votes.items()]
            db.executemany("INSERT OR REPLACE INTO vote VALUES (?, ?, ?, ?, ?)", rows)
            return next(ballot for ballot in self._of(db, rater, judge) if ballot.example == example)

    def _of(self, db: sqlite3.Connection, rater: str, judge: str | None) -> list[Ballot]:
        found = self._select(db, "WHERE rater.id = ? AND rater.judge IS ?", rater, judge)
        if not found:
            raise UsageError("there is no such rater; begin again")
        return found

    @staticmethod
    def _select(db: sqlite3.Connection, where: str = "", *values: str | None) -> list[Ballot]:
        rows = db.execute(
            "SELECT ballot.rater, ballot.example, a, b, judge, criterion, vote FROM ballot "
            "JOIN rater ON rater.id = ballot.rater LEFT JOIN vote USING (rater, example) "
            f"{where} ORDER BY rater.joined, ballot.rater, position",
            values,
        )
        found: dict[tuple[str, str], Ballot] = {}
        votes: dict[tuple[str, str], dict[Criterion, Vote]] = {}
        for rater, example, a, b, judge, criterion, vote in rows:
            cast = votes.setdefault((rater, example), {})
            found.setdefault((rater, example), Ballot(rater, example, a, b, cast, judge))
            if criterion is not None:
                cast[Criterion(criterion)] = Vote(vote)
        return list(found.values())

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Committed at the end, or undone by an error."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)) as db:
                db.execute("PRAGMA foreign_keys = ON")
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    db.rollback()
                    raise
                db.commit()
        except sqlite3.DatabaseError as error:
            raise BadData(f"the ballots in {self._path} cannot be used: {error}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
