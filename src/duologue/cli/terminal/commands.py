"""What can be typed into the chat besides words: commands that begin with a slash."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, final

from duologue.core.events import Event
from duologue.errors import UsageError
from duologue.server.record import write_record
from duologue.types import Turn

if TYPE_CHECKING:
    from duologue.client import Talk
    from duologue.engine.handle import Handle

_COMMAND = re.compile(r"/([a-z]*)(?:[ \t]+(.*))?")


@dataclass(frozen=True, slots=True)
class About:
    """What the chat knows of its conversation."""

    title: str  # the model, its weights and its adapter
    history: tuple[Turn, ...] = ()  # at the start
    set_eagerness: Callable[[float], object] | None = None


@dataclass(frozen=True, slots=True)
class _Command:
    help: str
    run: Callable[["Commands", str], str | None]
    argument: str = ""


@final
class Commands:
    """Carries out commands, and keeps the events of the conversation so that it can be saved."""

    def __init__(self, talk: "Handle | Talk", about: About) -> None:
        self.is_over = False  # the user wants to leave
        self._talk = talk
        self._about = about
        self._events: list[Event] = []
        self._saved: set[Path] = set()  # files that may be written again

    def tell(self, event: Event) -> None:
        """Keep an event of the conversation."""
        self._events.append(event)

    def knows(self, text: str) -> bool:
        """Whether `text` is a command that exists."""
        found = _COMMAND.fullmatch(text.strip())
        return found is not None and found[1] in _COMMANDS

    def run(self, text: str) -> str | None:
        """Carry out the command in `text`. Returns what to tell the user, if anything.

        Raises:
            UsageError: there is no such command, or it cannot be carried out.
        """
        found = _COMMAND.fullmatch(text.strip())
        if found is None or found[1] not in _COMMANDS:
            raise UsageError(f"there is no command {text.split()[0]}; /help lists them")
        return _COMMANDS[found[1]].run(self, (found[2] or "").strip())

    def _help(self, _: str) -> str:
        shown = {f"/{name} {one.argument}".strip(): one.help for name, one in _COMMANDS.items()}
        width = max(map(len, shown))
        return "\n".join(f"{usage.ljust(width)}  {text}" for usage, text in shown.items())

    def _save(self, name: str) -> str:
        path = Path(name or f"duologue-{datetime.now():%Y%m%d-%H%M%S}.jsonl").expanduser()
        if path.exists() and path not in self._saved:
            raise UsageError(f"{path} exists; save the conversation under another name")
        try:
            write_record(path, self._events, model=self._about.title, history=self._about.history)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        self._saved.add(path)
        return f"saved; `duologue replay {path}` shows it again"

    def _model(self, _: str) -> str:
        return (
            f"{self._about.title}\n"
            "Another model: duologue chat -m NAME. `duologue models` lists those that are installed."
        )

    def _eagerness(self, value: str) -> str:
        try:
            eagerness = float(value)
        except ValueError:
            eagerness = float("nan")
        if not -1 <= eagerness <= 1:
            raise UsageError("/eagerness takes a number from -1 (patient) to 1 (eager)")
        if self._about.set_eagerness is None:
            raise UsageError("this conversation has no eagerness")
        self._about.set_eagerness(eagerness)
        return f"eagerness {eagerness:g}"

    def _new(self, _: str) -> str:
        self._talk.edit(())
        return "a new conversation"

    def _stop(self, _: str) -> None:
        self._talk.stop()

    def _resume(self, _: str) -> None:
        self._talk.resume()

    def _answer(self, _: str) -> None:
        self._talk.respond()

    def _exit(self, _: str) -> None:
        self.is_over = True


def is_command(text: str) -> bool:
    """Whether `text` looks like a command. Paths and other words behind a slash do not."""
    return _COMMAND.fullmatch(text.strip()) is not None


_COMMANDS: Mapping[str, _Command] = {
    "help": _Command("list the commands", Commands._help),
    "save": _Command("write the conversation to a file, which `duologue replay` shows", Commands._save, "[FILE]"),
    "model": _Command("say which model and adapter this is", Commands._model),
    "eagerness": _Command("set how readily it answers, from -1 (patient) to 1 (eager)", Commands._eagerness, "E"),
    "new": _Command("forget the conversation, and begin a new one", Commands._new),
    "stop": _Command("stop the answer", Commands._stop),
    "resume": _Command("continue the answer that was stopped last", Commands._resume),
    "answer": _Command("answer now what has been typed or asked", Commands._answer),
    "exit": _Command("leave", Commands._exit),
    "quit": _Command("leave", Commands._exit),
}
