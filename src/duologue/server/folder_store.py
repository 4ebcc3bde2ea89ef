"""Records in a folder, one file each, written at once: a killed server loses at most the last event."""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duologue.server.lease import Lease, wish_path
from duologue.server.record import lines_of, private
from duologue.server.resuming import read_state
from duologue.server.store import RecordedState, Recorder, RecordStore, Standing, checked_name, header
from duologue.types import Turn

log = logging.getLogger("duologue.server")


class FolderRecorder(Recorder):
    """Writes a file, whose lease it holds. A holder that has lost it writes to a file that is no longer the record."""

    def __init__(self, path: Path, lease: Lease, *, num_events: int, size: int) -> None:
        super().__init__(num_events=num_events, size=size)
        self.lease = lease
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size)
        os.lseek(self._fd, 0, os.SEEK_END)

    @classmethod
    def go_on(cls, path: Path, lease: Lease, state: RecordedState) -> "FolderRecorder":
        """Continue a record. Raises `OSError`.

        If the previous holder of the lease might still write, the record is replaced by a copy that it cannot reach.
        """
        if lease.is_takeover:
            copy = path.with_name(f".{path.stem}.copy")
            with path.open("rb") as old, open(copy, "wb", opener=private) as new:
                shutil.copyfileobj(old, new)
                new.truncate(state.size)
                os.fsync(new.fileno())
            copy.replace(path)
        return cls(path, lease, num_events=state.num_events, size=state.size)

    async def renew(self) -> Standing:
        """See `Recorder.renew`."""
        standing = await asyncio.to_thread(self.lease.renew)
        return Standing.HELD if standing is Standing.WANTED and self._fd is None else standing

    def stop(self) -> None:
        """See `Recorder.stop`."""
        if self._fd is not None:
            number, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # network storage may say only now that it failed
                os.close(number)

    def close(self) -> None:
        """See `Recorder.close`."""
        try:
            self.stop()
        finally:
            self.lease.release()

    async def _append(self, line: bytes) -> None:
        # Unbuffered: what was written survives the process, though perhaps not a crash of the machine.
        data = memoryview(line)
        while data and self._fd is not None:
            data = data[os.write(self._fd, data) :]


class FolderStore(RecordStore):
    """The folder, perhaps on network storage. Records expire `expiry_s` seconds after their last event."""

    def __init__(self, folder: Path, expiry_s: float) -> None:
        self._folder = folder
        self._expiry_s = expiry_s
        if folder.is_dir() and folder.stat().st_mode & 0o077:
            log.warning(
                "other users can read the folder of records, and resume conversations; chmod 700",
                extra={"folder": str(folder)},
            )

    async def create(self, name: str, *, model: str, settings: dict[str, Any], history: Sequence[Turn]) -> Recorder:
        """See `RecordStore.create`. The folder is created for its owner alone: names of conversations are secrets."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(name)
        recorder = FolderRecorder(path, Lease.acquire(path, is_new=True), num_events=0, size=0)
        try:
            await recorder._append(recorder._line(header(name, model, settings, history)))
        except BaseException:
            recorder.close()
            raise
        return recorder

    async def has(self, name: str) -> bool:
        """See `RecordStore.has`."""
        path = self._path(name)
        return path.is_file() and path.stat().st_mtime >= time.time() - self._expiry_s

    async def _take(self, name: str) -> tuple[RecordedState, Recorder]:
        return await asyncio.to_thread(_take, self._path(name))

    async def _ask(self, name: str, is_wanted: bool) -> None:
        wish = wish_path(self._path(name))
        await asyncio.to_thread(*((wish.touch, 0o600) if is_wanted else (wish.unlink, True)))

    def _path(self, name: str) -> Path:
        return self._folder / f"{checked_name(name)}.jsonl"


def _take(path: Path) -> tuple[RecordedState, Recorder]:
    lease = Lease.acquire(path)
    try:
        state = read_state(path.stem, lines_of(path), path)
        return state, FolderRecorder.go_on(path, lease, state)
    except BaseException:
        lease.give_up()
        raise
