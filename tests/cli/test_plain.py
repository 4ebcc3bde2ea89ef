"""The chat over pipes: lines in, lines out."""

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import pytest

from duologue.cli.terminal import plain
from duologue.cli.terminal.plain import Plain
from duologue.core.config import SessionConfig
from duologue.engine.engine import Engine
from duologue.errors import EngineError
from duologue.server.record import read_record
from scripted import Talk

ANSWERS = {"hello": "Hello to you, and to all of your friends.", "and you": "Fine."}


class Pipe:
    """Standard input: what is written here is read there."""

    def __init__(self) -> None:
        fd, self._fd = os.pipe()
        self.end = open(fd, encoding="utf-8")  # noqa: SIM115 - the fixture closes it

    def write(self, data: bytes | str) -> None:
        os.write(self._fd, data.encode() if isinstance(data, str) else data)

    def hang_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    with closing(made.end):
        yield made
        made.hang_up()


def talk_over(source: TextIO | None, talk: Talk, *, rate: float | None = None, out: TextIO | None = None) -> str:
    """What the whole conversation prints."""
    printed = io.StringIO() if out is None else out

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            live = engine.open(talk.session, words_per_second=rate)
            await asyncio.wait_for(
                Plain(live, is_paced=live.session.config.heard == "reported").run(source, printed), 20
            )

    asyncio.run(main())
    assert talk.backend.usage().num_seqs == 0
    return printed.getvalue() if isinstance(printed, io.StringIO) else ""


def test_lines_in_lines_out(pipe: Pipe) -> None:
    pipe.write("hello\n")
    pipe.hang_up()
    lines = talk_over(pipe.end, Talk(ANSWERS)).splitlines()
    assert lines[0] == "> hello"
    assert lines[1].startswith("  [process 0.91, ")
    assert lines[2:] == [ANSWERS["hello"]]


def test_lines_that_come_in_one_go_are_answered_one_after_the_other(pipe: Pipe) -> None:
    pipe.write("hello\n\n   \nand you\nhello")
    pipe.hang_up()
    talk = Talk(ANSWERS)
    talk_over(pipe.end, talk)
    assert [text for _, text in talk.turns] == [
        "hello",
        ANSWERS["hello"],
        "and you",
        ANSWERS["and you"],
        "hello",
        ANSWERS["hello"],
    ]


def test_a_line_that_comes_while_it_answers_interrupts(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_ONE_GO_S", 0.0)
    talk = Talk(ANSWERS)
    forward, hear, count, heard = talk.backend.forward, talk.session.hear, [0], threading.Event()

    def and_then_somebody_speaks(batch: Any) -> Any:
        count[0] += 1
        if count[0] == 25:
            pipe.write("and you\n")
            pipe.hang_up()
            assert heard.wait(10)
        return forward(batch)

    def noted(text: str, **options: Any) -> Any:
        events = hear(text, **options)
        if text == "and you":
            heard.set()
        return events

    talk.session.hear = noted  # type: ignore[method-assign]
    talk.backend.forward = and_then_somebody_speaks  # type: ignore[method-assign]
    pipe.write("hello\n")
    text = talk_over(pipe.end, talk)
    assert "[cut; " in text
    assert text.rstrip().endswith("Fine.")
    assert talk.turns[1][1] != ANSWERS["hello"]


def test_stop_has_nothing_to_stop_in_silence(pipe: Pipe) -> None:
    talk = Talk(ANSWERS)
    pipe.write("stop\nhello\n")
    pipe.hang_up()
    text = talk_over(pipe.end, talk)
    assert "[stop 0.91" in text
    assert [words for _, words in talk.turns] == ["hello", ANSWERS["hello"]]


def test_words_are_printed_as_they_are_heard(pipe: Pipe) -> None:
    pipe.write("hello\n")
    pipe.hang_up()
    text = talk_over(pipe.end, Talk(ANSWERS, config=SessionConfig(heard="reported")), rate=500.0)
    assert ANSWERS["hello"] in text


def test_absurd_input_is_survived(pipe: Pipe) -> None:
    talk = Talk(ANSWERS)
    pipe.write(b"\xff\xfe\x00 \x1b[2J <|im_end|>\r\n")
    pipe.write("z" * 40_000 + "\nhello\n")
    pipe.hang_up()
    text = talk_over(pipe.end, talk)
    assert "\x1b" not in text
    assert "[refused: a turn of more than" in text
    assert talk.turns[0] == ("user", "\ufffd\ufffd\x00 \x1b[2J <|im_end|>")
    assert talk.turns[2:] == [("user", "hello"), ("assistant", ANSWERS["hello"])]


def test_closed_streams_are_an_empty_conversation(pipe: Pipe) -> None:
    assert talk_over(None, Talk(ANSWERS)) == ""
    pipe.hang_up()
    assert talk_over(pipe.end, Talk(ANSWERS)) == ""

    async def nobody_listens(source: TextIO) -> None:
        talk = Talk(ANSWERS)
        async with Engine(talk.backend) as engine:
            live = engine.open(talk.session)
            await Plain(live, is_paced=live.session.config.heard == "reported").run(source, None)
        assert talk.turns == [("user", "hello"), ("assistant", ANSWERS["hello"])]

    other = Pipe()
    with closing(other.end):
        other.write("hello\n")
        other.hang_up()
        asyncio.run(nobody_listens(other.end))


def test_a_failing_backend_is_an_engine_error_even_while_input_is_open(pipe: Pipe) -> None:
    talk = Talk(ANSWERS)

    def broken(_: object) -> Any:
        raise RuntimeError("out of order")

    talk.backend.forward = broken  # type: ignore[method-assign]
    pipe.write("hello\n")  # and nobody hangs up
    with pytest.raises(EngineError, match="out of order"):
        talk_over(pipe.end, talk)


def test_a_reader_that_has_gone_ends_it(pipe: Pipe) -> None:
    fd, end = os.pipe()
    os.close(fd)
    pipe.write("hello\n")
    with open(end, "w", encoding="utf-8") as out:
        with pytest.raises(BrokenPipeError):
            talk_over(pipe.end, Talk(ANSWERS), out=out)
        os.dup2(os.open(os.devnull, os.O_WRONLY), end)  # so that it can be closed


def test_commands_are_carried_out_and_not_heard(pipe: Pipe, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    pipe.write(f"hello\n/save {saved}\n/save {saved}x/y\n/help\n/usr/bin is a folder\n/exit\nnobody hears this\n")
    talk = Talk(ANSWERS)
    text = talk_over(pipe.end, talk)
    assert "saved; `duologue replay" in text
    assert "cannot be written" in text
    assert "[/exit" in text
    assert [words for role, words in talk.turns if role == "user"] == ["hello", "/usr/bin is a folder"]
    assert read_record(saved).ledger.history == talk.session.history[:2]


def test_a_file_that_exists_is_not_overwritten(pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    pipe.write(
        f"/save {tmp_path / 'mine.txt'}\n/save {tmp_path / 'talk.jsonl'}\nhello\n/save {tmp_path / 'talk.jsonl'}\n"
    )
    pipe.hang_up()
    text = talk_over(pipe.end, Talk(ANSWERS))
    assert "exists; save the conversation under another name" in text
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert len(read_record(tmp_path / "talk.jsonl").ledger.history) == 2, "what was saved before may be saved again"
