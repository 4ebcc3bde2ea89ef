"""A server for a measurement, in a process of its own that is started, waited for, and ended."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from duologue.errors import EngineError

_START_TIMEOUT_S = 300.0  # the model is loaded meanwhile


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that accepts requests."""

    url: str
    pid: int

    def memory(self) -> int | None:
        """Resident bytes; None if the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return None
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server_process(flags: Sequence[str]) -> Iterator[ServerProcess]:
    """Run `duologue serve` with `flags` on a free port of loopback until the block ends or this program is terminated.

    Raises:
        EngineError: the server does not start.
    """
    if threading.current_thread() is threading.main_thread():  # no other thread may set a signal handler
        signal.signal(signal.SIGTERM, _interrupt)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "duologue", "serve", *flags, "--port", str(port), "--drain", "0"]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log) as process:
        server = ServerProcess(f"http://127.0.0.1:{port}", process.pid)
        try:
            _wait(server.url, process, log)
            yield server
        finally:
            process.terminate()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: TextIO) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().strip().splitlines() or ["it printed nothing"]
            raise EngineError(f"the server did not start: {lines[-1]}")
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise EngineError(f"the server did not start within {_START_TIMEOUT_S:.0f} s")


def _interrupt(*_: object) -> None:
    """End as with Ctrl-C, even if the shell that started us ignores it."""
    raise KeyboardInterrupt
