"""A study's folder.

    study.json                      the form of the study, and its systems
    scripts/EXAMPLE.jsonl           what the user says, as for `duologue replay`
    records/SYSTEM/EXAMPLE.jsonl    what happened, as `duologue serve --record` writes it
    ballots.sqlite                  what people thought of it

A study in which people talk to the systems has neither scripts nor records.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from duologue.core.events import Event
from duologue.engine.replay import Script
from duologue.errors import BadData, UsageError
from duologue.models.opening import Progress
from duologue.server.record import read_record, write_record

VERSION = 1
TALK = "talk"
"""The name of the only example of a study in which people talk to the systems."""

_NAME = re.compile(r"\w[\w.-]{0,63}")


class Form(StrEnum):
    """What people do before they vote."""

    PAIRS = "pairs"  # they watch two recorded conversations
    TALK = "talk"  # they talk to both systems


@dataclass(frozen=True, slots=True)
class Study:
    """A study: its folder, its form, and what is known of its systems, by name, in the order of the report."""

    folder: Path
    form: Form
    systems: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """The study in `folder`.

        Raises:
            BadData: there is none, or its description is damaged.
        """
        path = folder / "study.json"
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if row["study"] != VERSION:
                raise BadData(f"{path} is a study of version {row['study']!r}; this program reads version {VERSION}")
            study = cls(
                folder, Form(row["form"]), {_checked(name): dict(row["systems"][name]) for name in row["systems"]}
            )
        except FileNotFoundError:
            raise BadData(f"{folder} is not a study; `duologue eval people make {folder}` makes one") from None
        except (OSError, ValueError, LookupError, TypeError, UsageError) as error:
            raise BadData(f"{path} is damaged: {error!r}") from error
        return study

    @classmethod
    def complete(cls, folder: Path) -> "Study":
        """The study in `folder`, ready for raters: two systems, and every record can be read.

        Raises:
            BadData: something is missing or damaged; the message says what to do.
        """
        study = cls.read(folder)
        for system in study.pair:
            if study.form is Form.TALK and not {"url", "kind"} <= study.systems[system].keys():
                raise BadData(f"{folder / 'study.json'} is damaged: {system} has no url and kind")
            for example in study.examples if study.form is Form.PAIRS else ():
                study.record(system, example)
        return study

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two systems.

        Raises:
            BadData: there are more or fewer.
        """
        names = tuple(self.systems)
        if len(names) != 2:
            have = ", ".join(names) or "none"
            raise BadData(f"a study compares two systems; {self.folder} has {len(names)} ({have})")
        return names

    @property
    def examples(self) -> tuple[str, ...]:
        """The names of the examples.

        Raises:
            BadData: there are none.
        """
        if self.form is Form.TALK:
            return (TALK,)
        names = tuple(sorted(path.stem for path in (self.folder / "scripts").glob("*.jsonl")))
        if not names:
            raise BadData(f"{self.folder} has no scripts/*.jsonl")
        return names

    @property
    def ballots(self) -> Path:
        """The database."""
        return self.folder / "ballots.sqlite"

    def script(self, example: str) -> Path:
        """What the user says in `example`."""
        return self.folder / "scripts" / f"{example}.jsonl"

    def record(self, system: str, example: str) -> tuple[Event, ...]:
        """What happened in `example` with `system`.

        Raises:
            BadData: the record is missing or damaged.
        """
        path = self.folder / "records" / system / f"{example}.jsonl"
        events = read_record(path).events
        if not events:
            raise BadData(f"{path} has no events; record the system again")
        return events

    def with_system(self, name: str, facts: Mapping[str, Any]) -> "Study":
        """The same study with another system, written to disk.

        Raises:
            UsageError: the name is not possible, or people have already voted.
            OSError: the file cannot be written.
        """
        if self.ballots.exists():
            raise UsageError(f"there are ballots in {self.folder}; make another study for other conversations")
        study = replace(self, systems={**self.systems, _checked(name): facts})
        study.write()
        return study

    def record_all(
        self,
        system: str,
        scripts: Mapping[str, Script],
        play: Callable[[Script], Iterable[Event]],
        facts: Mapping[str, Any],
        *,
        progress: Progress,
    ) -> "Study":
        """Record all `scripts`, by example, with `system`; `play` has the events of one. Returns the study with them.

        Raises:
            UsageError: see `with_system`.
            OSError: a file cannot be written.
        """
        folder = self.folder / "records" / _checked(system)
        folder.mkdir(parents=True, exist_ok=True)
        for number, (example, script) in enumerate(scripts.items()):
            progress(example, number / len(scripts))
            write_record(folder / f"{example}.jsonl", play(script), model=system)
        return self.with_system(system, facts)

    def write(self) -> None:
        """Write the description; a reader sees the old one or the new one. Raises `OSError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {"study": VERSION, "form": self.form, "systems": self.systems}
        new = self.folder / ".study.json"
        new.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(self.folder / "study.json")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a system: use letters, digits, - . and _")
    return name
