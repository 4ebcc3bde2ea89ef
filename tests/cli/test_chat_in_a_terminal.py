"""`duologue chat` as a user has it: the command in a pseudo-terminal, with the default model."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from duologue.errors import ModelNotFound
from duologue.models.catalogue import DEFAULT, find
from duologue.server.record import read_record

PASTED = "Explain this code:\n\ndef double(numbers):\n    for n in numbers:\n        yield 2 * n"
_PATIENCE_S = 240.0  # for a machine that does other things


class Terminal:
    """A command on a terminal of 100 columns and 40 lines."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        environ = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True
        )
        os.close(slave)
        self.output = ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str, *, since: int = 0) -> int:
        """Read until `text` was printed behind position `since`; returns where the output ends."""
        end = time.monotonic() + _PATIENCE_S
        while text not in self.output[since:]:
            assert time.monotonic() < end, f"{text!r} never came:\n{self.output[-3000:]}"
            if not self._read():
                raise AssertionError(f"it ended before {text!r}:\n{self.output[-3000:]}")
        return len(self.output)

    def rest(self) -> int:
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait(_PATIENCE_S)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 1.0)[0]:
            return True
        with contextlib.suppress(OSError):  # the other side was closed
            data = os.read(self._master, 1 << 16)
            self.output += data.decode("utf-8", "replace")
            return bool(data)
        return False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def chat() -> Iterator[Terminal]:
    pytest.importorskip("prompt_toolkit")
    pytest.importorskip("torch")
    try:
        find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    terminal = Terminal(
        sys.executable, "-m", "duologue", "chat", "--max-answer", "200", "--rate", "3", "--context", "1024"
    )
    with contextlib.closing(terminal):
        yield terminal


@pytest.mark.smollm2
def test_a_paste_an_answer_that_is_stopped_and_a_conversation_that_is_saved(chat: Terminal, tmp_path: Path) -> None:
    saved = tmp_path / "talk.jsonl"
    chat.until("type at any moment")
    chat.press(f"\x1b[200~{PASTED}\x1b[201~")
    end = chat.until("yield")
    chat.press("\r")
    end = chat.until("speaking", since=end)
    chat.press("\x03")
    chat.until("cut", since=end)
    chat.press(f"/save {saved}\r")
    chat.until("saved")
    assert chat.process.poll() is None, "the first Ctrl-C stopped the answer only"
    chat.press("\x04")
    assert chat.rest() == 0
    recorded = read_record(saved)
    (asked, answered) = recorded.ledger.history
    assert asked.text == PASTED
    assert answered.text
    assert [type(event).__name__ for event in recorded.events].count("Decided") == 1, "it was judged with Enter only"
    final = chat.output.rpartition("\x1b[?1049l")[2]  # what stays when the full screen has vanished
    assert "        yield" in final
    replayed = subprocess.run(
        [sys.executable, "-m", "duologue", "replay", str(saved)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "def double" in replayed.stdout
    assert "[cut" in replayed.stdout
