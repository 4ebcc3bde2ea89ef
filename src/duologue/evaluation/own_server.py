"""A server of one's own for a measurement: a process that is started, waited for, and ended."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from duologue.errors import EngineError

_PATIENCE_S = 300.0  # for the model to be loaded


@dataclass(frozen=True, slots=True)
class OwnServer:
    """One that runs."""

    url: str
    pid: int

    def memory(self) -> int | None:
        """Bytes that it has in memory, where the system tells."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def own_server(flags: Sequence[str]) -> Iterator[OwnServer]:
    """`duologue serve` with `flags`, on a free port of loopback. It ends with this program, also if that is terminated.

    Raises:
        EngineError: it does not start.
    """
    if threading.current_thread() is threading.main_thread():  # no other may
        signal.signal(signal.SIGTERM, _interrupt)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "duologue", "serve", *flags, "--port", str(port), "--drain", "0"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        server = OwnServer(f"http://127.0.0.1:{port}", process.pid)
        try:
            _wait(server.url, process, log)
            yield server
        finally:
            process.terminate()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: TextIO) -> None:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            said = log.read().strip().splitlines() or ["it said nothing"]
            raise EngineError(f"the server did not start: {said[-1]}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise EngineError("the server did not start in time")


def _interrupt(*_: object) -> None:
    """As Ctrl-C; but also where the shell that started us ignores that."""
    raise KeyboardInterrupt
