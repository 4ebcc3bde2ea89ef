"""Leases on records: each record has one writer, even if servers on several machines share a folder.

A lease is a file beside the record, `.NAME.EPOCH.lease`. It is valid while its holder is alive and keeps renewing its
modification time, which is compared with the storage's own clock. To take over an expired lease, a server creates the
file of the next epoch; the storage lets only one of several contenders succeed. A holder that loses its lease while it
is suspended finds its file gone at the next renewal. Until then it writes to a file that is no longer the record,
because a takeover replaces the record by a copy (see `FolderRecorder.go_on`). A server that wants a record creates
`.NAME.wanted`; the holder releases its lease when it sees that.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from duologue.server.store import LEASE_S, RecordHeld, Standing


class Lease:
    """The right to write one record, until it is released or lost; see `acquire`."""

    def __init__(self, path: Path, content: str, *, wish: Path, is_takeover: bool) -> None:
        self.path = path
        self._content = content  # no other lease has the same, not even one of the same epoch after a release
        self._wish = wish
        self.is_takeover = is_takeover  # the previous holder did not release it

    @classmethod
    def acquire(cls, record: Path, *, is_new: bool = False) -> "Lease":
        """Acquire the lease on `record`. `is_new`: nobody else can know the name.

        Raises:
            RecordHeld: another server holds it.
            OSError: the storage failed.
        """
        epoch, before = (0, None) if is_new else _newest(record)
        if before is not None and _is_valid(before):
            raise RecordHeld(f"another server holds this conversation; try again in {LEASE_S:.0f} seconds")
        path = _path(record, epoch + 1)
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise RecordHeld("another server has just taken over this conversation") from error
        content = json.dumps({**_identity(os.getpid()), "lease": os.urandom(8).hex()})
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(content)
        if before is not None:
            try:
                before.unlink()
            except FileNotFoundError as error:  # its epoch is over: another server was faster
                path.unlink(missing_ok=True)
                raise RecordHeld("another server has just taken over this conversation") from error
        wish = wish_path(record)
        wish.unlink(missing_ok=True)
        return cls(path, content, wish=wish, is_takeover=before is not None)

    def renew(self) -> Standing:
        """Renew the lease if it is still held."""
        try:
            if self.path.read_text(encoding="utf-8") != self._content:
                return Standing.LOST
            os.utime(self.path)
            return Standing.WANTED if self._wish.exists() else Standing.HELD
        except FileNotFoundError:
            return Standing.LOST
        except OSError:
            return Standing.HELD  # the storage is temporarily unavailable

    def release(self) -> None:
        """Release the lease, unless it was lost."""
        with contextlib.suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self._content:
                self.path.unlink()

    def give_up(self) -> None:
        """Release the lease before anything was done to keep the previous holder from writing: the next one must."""
        if not self.is_takeover:
            self.release()
            return
        with contextlib.suppress(OSError):
            if self.path.read_text(encoding="utf-8") == self._content:
                os.utime(self.path, (0, 0))  # expired


def wish_path(record: Path) -> Path:
    """The file by which a server asks the holder for `record`."""
    return record.with_name(f".{record.stem}.wanted")


def _path(record: Path, epoch: int) -> Path:
    return record.with_name(f".{record.stem}.{epoch}.lease")


def _newest(record: Path) -> tuple[int, Path | None]:
    """The newest epoch, and its lease if there is one."""
    begin = f".{record.stem}."
    epochs = [
        int(part)
        for entry in os.scandir(record.parent)
        if entry.name.startswith(begin)
        and entry.name.endswith(".lease")
        and (part := entry.name.removeprefix(begin).removesuffix(".lease")).isdecimal()
    ]
    newest = max(epochs, default=0)
    return newest, _path(record, newest) if newest else None


def _is_valid(lease: Path) -> bool:
    try:
        holder = json.loads(lease.read_text(encoding="utf-8"))
        age = _storage_time(lease.parent) - lease.stat().st_mtime
    except FileNotFoundError:
        return False
    except ValueError:
        holder, age = {}, _storage_time(lease.parent) - lease.stat().st_mtime  # it is still being written
    return age < LEASE_S and not _is_dead(holder)


def _storage_time(folder: Path) -> float:
    """The time by the storage's clock, since the clocks of machines may differ."""
    probe = folder / f".{os.getpid()}-{os.urandom(6).hex()}.probe"
    try:
        number = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(number).st_mtime
        finally:
            os.close(number)
    finally:
        probe.unlink(missing_ok=True)


def _is_dead(holder: Any) -> bool:
    """Whether a lease was held by a process of this machine that has ended."""
    if not isinstance(holder, dict) or not isinstance(holder.get("pid"), int):
        return False
    here = _identity(holder["pid"])
    return bool(here["machine"] == holder.get("machine") and here["began"] != holder.get("began"))


def _identity(pid: int) -> dict[str, Any]:
    """Identifies a process uniquely, also after a reboot and across containers."""
    machine, began = [socket.gethostname()], ""
    with contextlib.suppress(OSError):
        machine += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    with contextlib.suppress(OSError):
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    if len(machine) == 1:  # not on Linux
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            began = "alive"
    return {"machine": " ".join(machine), "pid": pid, "began": began}
