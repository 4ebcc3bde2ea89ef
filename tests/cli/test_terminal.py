"""The full-screen chat, driven by keys through a pipe, with a scripted model behind it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from scripted import Talk

pytest.importorskip("prompt_toolkit")
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from duologue.cli.terminal import screen as terminal
from duologue.cli.terminal.screen import KEYS, Terminal
from duologue.core.config import SessionConfig
from duologue.engine.engine import Engine
from duologue.errors import EngineError
from duologue.server.record import read_record

ESC, CTRL_C, CTRL_D, CTRL_G, CTRL_R, ENTER, PAGE_UP, PAGE_DOWN = (
    "\x1b",
    "\x03",
    "\x04",
    "\x07",
    "\x12",
    "\r",
    "\x1b[5~",
    "\x1b[6~",
)
ANSWERS = {"hello": "Hello to you, and to all your friends as well.", "and you": "Fine."}


class Screen:
    """A terminal of so many columns and lines, the keys that are pressed in it, and what was drawn."""

    def __init__(self, talk: Talk, keys: PipeInput, columns: int, rows: int) -> None:
        self.talk = talk
        self.keys = keys
        self.drawn = StringIO()
        self.engine = Engine(talk.backend)
        self.live = self.engine.open(talk.session)
        output = Vt100_Output(self.drawn, lambda: Size(rows=rows, columns=columns), term="xterm")
        self.drawn_anew = asyncio.Event()
        self.terminal = Terminal(self.live, "a model", input=keys, output=output)
        self.terminal._application.after_render += lambda _: self.drawn_anew.set()

    def press(self, keys: str) -> None:
        self.keys.send_text(keys)

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Wait until it is so; it is looked at whenever the screen is drawn."""
        for _ in range(600):
            if is_so():
                return
            self.drawn_anew.clear()
            with contextlib.suppress(TimeoutError):  # some things change without being drawn
                await asyncio.wait_for(self.drawn_anew.wait(), 0.05)
        raise AssertionError(f"it never came to that; the screen says:\n{self.text}")

    @property
    def text(self) -> str:
        return self.terminal.transcript.text(90)

    @property
    def kinds(self) -> list[str]:
        return self.talk.kinds()


def play(
    script: Callable[[Screen], Awaitable[None]],
    *,
    answers: dict[str, str] | None = None,
    columns: int = 90,
    rows: int = 24,
    talk: Talk | None = None,
) -> Screen:
    """Run `script` beside the terminal, which must have ended by itself when the script is over."""
    talk = talk or Talk(answers or ANSWERS)

    async def main() -> Screen:
        with create_pipe_input() as keys:
            screen = Screen(talk, keys, columns, rows)
            async with screen.engine:
                running = asyncio.create_task(screen.terminal.run())
                await screen.until(lambda: screen.terminal._application.is_running)
                try:
                    await asyncio.wait_for(script(screen), 60)
                    await asyncio.wait_for(running, 5)
                finally:
                    running.cancel()
            return screen

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PAUSE_S", 0.02)


def is_silent(screen: Screen) -> bool:
    session = screen.talk.session
    return session.running is None and session.input_text is None


def test_a_question_is_typed_and_answered() -> None:
    async def script(screen: Screen) -> None:
        screen.press("hello" + ENTER)
        await screen.until(lambda: "as well." in screen.text and is_silent(screen))
        # What is drawn are the differences from screen to screen, so only single words can be looked for.
        await screen.until(lambda: "process" in screen.drawn.getvalue() and "decided" in screen.drawn.getvalue())
        screen.press(CTRL_C)

    screen = play(script)
    assert screen.talk.turns == [("user", "hello"), ("assistant", ANSWERS["hello"])]
    assert "process 0.91" in screen.text


def test_a_pause_in_typing_is_a_partial() -> None:
    async def script(screen: Screen) -> None:
        screen.press("tell me about")
        await screen.until(lambda: "incomplete 0.91" in screen.text)
        await screen.until(lambda: "tell me about …" in screen.text)
        screen.press(" hello" + ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        screen.press(CTRL_C)

    screen = play(script)
    assert screen.talk.turns[0] == ("user", "tell me about hello")
    assert screen.text.count("tell me about") == 2, "once by the user, once in the answer: the words grew in place"


def test_typing_cuts_the_answer_and_go_on_resumes_it() -> None:
    async def script(screen: Screen) -> None:
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.running and screen.talk.session.running.num_heard > 5)
        screen.press(ESC)
        await screen.until(lambda: screen.talk.session.num_suspended and "cut here" in screen.text)
        screen.press(CTRL_R)
        await screen.until(lambda: "as well." in screen.text and is_silent(screen))
        screen.press(CTRL_C)

    screen = play(script, talk=slow(Talk(ANSWERS)))
    assert screen.talk.turns == [("user", "hello"), ("assistant", ANSWERS["hello"])]
    assert "cut here" not in screen.text


def slow(talk: Talk, seconds: float = 0.004) -> Talk:
    """The same with passes that take a while, so that there is time to interrupt."""
    import time

    forward = talk.backend.forward

    def late(batch: Any) -> Any:
        time.sleep(seconds)
        return forward(batch)

    talk.backend.forward = late  # type: ignore[method-assign]
    return talk


def test_keys_that_have_nothing_to_do_say_so_or_nothing() -> None:
    async def script(screen: Screen) -> None:
        screen.press(CTRL_R + ENTER + ENTER)
        await screen.until(lambda: "no answer is suspended" in screen.text)
        screen.press(ESC)
        screen.press(PAGE_UP + PAGE_DOWN)
        screen.press(CTRL_D)

    screen = play(script)
    assert screen.talk.turns == []
    assert screen.text.count("no answer") == 1


def test_escape_in_silence_takes_back_what_was_typed() -> None:
    async def script(screen: Screen) -> None:
        screen.press("tell me about the")
        await screen.until(lambda: "incomplete" in screen.text)
        screen.press(ESC)
        await screen.until(lambda: is_silent(screen))
        assert screen.terminal._input.text == ""
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        screen.press(CTRL_C)

    assert play(script).talk.turns[0] == ("user", "hello")


def test_answer_now() -> None:
    async def script(screen: Screen) -> None:
        screen.press("tell me about the")
        await screen.until(lambda: "incomplete" in screen.text)
        screen.press(CTRL_G)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        screen.press(CTRL_C)

    assert play(script).talk.turns[0] == ("user", "tell me about the")


def test_pasted_lines_are_one_utterance_as_they_are() -> None:
    async def script(screen: Screen) -> None:
        screen.press("\x1b[200~one\ntwo\n\tthree\x1b[201~")
        await screen.until(lambda: screen.terminal._input.text.count("\n") == 2)
        screen.press(ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        screen.press(CTRL_C)

    assert play(script).talk.turns[0] == ("user", "one\ntwo\n\tthree")


@pytest.mark.parametrize("marks", [("\x1b[200~", "\x1b[201~"), ("", "")])
def test_a_paste_is_heard_with_enter_only(marks: tuple[str, str]) -> None:
    """It keeps its lines, and cuts no answer by being pasted. Terminals that do not mark it send it as keys."""

    async def script(screen: Screen) -> None:
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.running and screen.talk.session.running.num_heard > 5)
        screen.press(marks[0] + "def f():\r    return 1\r\r    # tell me\r" + marks[1])
        await screen.until(lambda: screen.terminal._input.text.count("\n") == 4)
        await screen.until(lambda: "as well." in screen.text and is_silent(screen))
        assert screen.terminal._input.text == "def f():\n    return 1\n\n    # tell me\n"
        screen.press(ENTER)
        await screen.until(lambda: len(screen.talk.session.history) == 4 and is_silent(screen))
        screen.press(CTRL_C)

    screen = play(script, talk=slow(Talk(ANSWERS)))
    assert screen.talk.turns[:3] == [
        ("user", "hello"),
        ("assistant", ANSWERS["hello"]),
        ("user", "def f():\n    return 1\n\n    # tell me"),
    ]
    assert "Suspended" not in screen.kinds
    assert "def f():\n" in screen.text
    assert "    return 1" in screen.text.replace("  │", "")


def test_up_brings_back_what_was_typed_and_sends_it_with_enter_only() -> None:
    async def script(screen: Screen) -> None:
        for number, text in enumerate(("hello", "and you"), 1):
            screen.press(text + ENTER)
            await screen.until(lambda num=2 * number: len(screen.talk.session.history) == num and is_silent(screen))
        screen.press("\x1b[A")
        await screen.until(lambda: screen.terminal._input.text == "and you")
        screen.press("\x1b[A")
        await screen.until(lambda: screen.terminal._input.text == "hello")
        await asyncio.sleep(3 * terminal.PAUSE_S)
        assert is_silent(screen)
        screen.press(ENTER)
        await screen.until(lambda: len(screen.talk.session.history) == 6 and is_silent(screen))
        screen.press(CTRL_D)

    assert [turn[1] for turn in play(script).talk.turns if turn[0] == "user"] == ["hello", "and you", "hello"]


def test_ctrl_c_stops_the_answer_first() -> None:
    async def script(screen: Screen) -> None:
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.running and screen.talk.session.running.num_heard > 5)
        screen.press(CTRL_C)
        await screen.until(lambda: screen.talk.session.num_suspended == 1)
        assert screen.terminal._application.is_running
        screen.press("/resume" + ENTER)
        await screen.until(lambda: "as well." in screen.text and is_silent(screen))
        screen.press(CTRL_C)

    screen = play(script, talk=slow(Talk(ANSWERS)))
    assert screen.talk.turns == [("user", "hello"), ("assistant", ANSWERS["hello"])]


def test_commands_are_not_heard(tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"

    async def script(screen: Screen) -> None:
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        for command, note in {
            "/help": "/eagerness E",
            "/model": "a model",
            f"/save {saved}": "duologue replay",
            "/eagerness 2": "from -1 (patient) to 1",
            "/nonsense": "there is no command /nonsense",
        }.items():
            screen.press(command)
            await screen.until(lambda text=command: screen.terminal._input.text == text)
            await asyncio.sleep(2 * terminal.PAUSE_S)
            screen.press(ENTER)
            await screen.until(lambda text=note: text in screen.text.replace("\n        ", " "))
            await screen.until(lambda: not screen.terminal._input.text)  # also of one that was refused
        screen.press("/etc/hosts is a file" + ENTER)
        await screen.until(lambda: len(screen.talk.session.history) == 4 and is_silent(screen))
        turns.extend(screen.talk.turns)
        screen.press("/new" + ENTER)
        await screen.until(lambda: not screen.talk.session.history)
        screen.press("/exit" + ENTER)

    turns: list[tuple[str, str]] = []
    play(script)
    assert [text for role, text in turns if role == "user"] == ["hello", "/etc/hosts is a file"]
    recorded = read_record(saved)
    assert [(turn.role.value, turn.text) for turn in recorded.ledger.history] == turns[:2]


def test_a_hundred_thousand_words_are_refused_and_the_conversation_goes_on() -> None:
    async def script(screen: Screen) -> None:
        screen.terminal._input.insert_text("word " * 100_000)  # a paste; the pipe of the keys would not hold it
        await screen.until(lambda: "say it in parts" in screen.text)
        screen.press(ENTER)
        await screen.until(lambda: screen.terminal._input.text == "")
        screen.press("hello" + ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        screen.press(CTRL_C)

    screen = play(script)
    assert screen.talk.turns == [("user", "hello"), ("assistant", ANSWERS["hello"])]
    assert len(screen.text.splitlines()) < 60


@pytest.mark.parametrize("when", ["at once", "while typing", "while it answers"])
def test_quitting_at_any_moment(when: str) -> None:
    async def script(screen: Screen) -> None:
        if when == "while typing":
            screen.press("hel")
            await screen.until(lambda: screen.terminal._input.text == "hel")
        elif when == "while it answers":
            screen.press("hello" + ENTER)
            await screen.until(lambda: screen.talk.session.running is not None)
            screen.press(CTRL_C)  # stops the answer
            await screen.until(lambda: screen.talk.session.running is None)
        screen.press(CTRL_C)

    screen = play(script, talk=slow(Talk(ANSWERS)))
    assert screen.talk.backend.usage().num_seqs == 0


def test_ctrl_d_deletes_in_a_line_and_quits_in_an_empty_one() -> None:
    async def script(screen: Screen) -> None:
        screen.press("hello\x01" + CTRL_D)  # to the beginning of the line, then delete
        await screen.until(lambda: screen.terminal._input.text == "ello")
        screen.press(ESC + CTRL_D)
        screen.press(CTRL_D)

    play(script)


def test_a_failing_backend_ends_it_with_the_error_and_keeps_the_conversation() -> None:
    talk = Talk(ANSWERS)
    forward, left = talk.backend.forward, [20]

    def broken(batch: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of order")
        return forward(batch)

    talk.backend.forward = broken  # type: ignore[method-assign]
    kept: list[Screen] = []

    async def script(screen: Screen) -> None:
        kept.append(screen)
        screen.press("hello" + ENTER)
        await screen.until(lambda: not screen.terminal._application.is_running)

    with pytest.raises(EngineError, match="out of order"):
        play(script, talk=talk)
    assert "hello" in kept[0].text


@pytest.mark.parametrize(("columns", "rows"), [(20, 6), (40, 12), (60, 8), (110, 32), (200, 60)])
def test_it_fits_windows_of_any_size(columns: int, rows: int) -> None:
    async def script(screen: Screen) -> None:
        screen.press("hello, 日本 🙂" + ENTER)
        await screen.until(lambda: screen.talk.session.history and is_silent(screen))
        for shown in (screen.terminal._status(), *screen.terminal.lines(columns, rows - 3)):
            for line in "".join(part[1] for part in shown).split("\n"):
                assert terminal.width_of(line) <= columns
        screen.press(CTRL_C)

    screen = play(script, columns=columns, rows=rows)
    assert "Window too small" not in screen.drawn.getvalue()


def test_the_keys_are_shown_as_far_as_they_fit() -> None:
    talk = Talk(ANSWERS)
    shown = []
    for columns in (20, 40, 60, 90, 120):

        class Output(DummyOutput):
            def get_size(self, columns: int = columns) -> Size:
                return Size(rows=20, columns=columns)

        async def status() -> str:
            screen = Terminal(Engine(talk.backend).open(talk.session), "a model", output=Output())
            return "".join(part[1] for part in screen._status()).split("\n")[1].strip()

        shown.append(asyncio.run(status()))
    assert shown[0] in KEYS
    assert all("^C quit" in line for line in shown)
    assert [len(line) for line in shown] == sorted(len(line) for line in shown)
    assert shown[-1] == f"a model · {KEYS[0]}"


def test_one_can_look_back() -> None:
    answers = {str(i): "A line.\n" * 3 + f"That was {i}." for i in range(6)}

    async def script(screen: Screen) -> None:
        for i in range(6):
            screen.press(str(i) + ENTER)
            await screen.until(lambda num=2 * i + 2: len(screen.talk.session.history) == num and is_silent(screen))
        newest = screen.terminal.lines(90, 9)
        screen.press(PAGE_UP)
        await screen.until(lambda: screen.terminal._back)
        assert screen.terminal.lines(90, 9) != newest
        for _ in range(50):
            screen.press(PAGE_UP)
        first = lambda: "".join(part for _, part in screen.terminal.lines(90, 9)[0]).split()[1]  # noqa: E731
        await screen.until(lambda: first() == "0")  # the beginning
        assert len(screen.terminal.lines(90, 9)) == 9
        screen.press("x")
        await screen.until(lambda: not screen.terminal._back)
        screen.press(CTRL_C)

    play(script, answers=answers, rows=12, talk=Talk(answers, config=SessionConfig()))
