"""The folder in which converted model files are cached, and names for them that change when their source does."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from duologue.errors import UsageError


def cache_folder() -> Path:
    """The folder named by `DUOLOGUE_CACHE`, by default `~/.cache/duologue`.

    Raises:
        RuntimeError: there is no home directory.
    """
    return Path(os.environ.get("DUOLOGUE_CACHE") or Path.home() / ".cache" / "duologue")


def file_digest(path: Path, *, before: str = "", after: str = "") -> Any:
    """A SHA-256 over the identity of a file: path, size, time, first and last bytes, between `before` and `after`.

    The content is sampled because a file may be replaced by another of the same size and age.
    """
    stat = path.stat()
    digest = hashlib.sha256(f"{before}{path.resolve()} {stat.st_size} {stat.st_mtime_ns}{after}".encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        file.seek(max(0, stat.st_size - (1 << 20)))
        digest.update(file.read())
    return digest


def path_digest(path: Path, *, after: str = "") -> Any:
    """The same for a file, or for the names, sizes and times of the files in a folder."""
    if path.is_file():
        return file_digest(path, after=after)
    stats = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    text = f"{path.resolve()} {[(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]}{after}"
    return hashlib.sha256(text.encode())


def _make_folder(folder: Path) -> None:
    """Make `folder`, if it is missing.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache folder {folder} cannot be made: {error.strerror}; name another with DUOLOGUE_CACHE"
        ) from error


def cached_file(name: str, write: Callable[[Path], object]) -> Path:
    """The file `name` in the cache's folder for GGUF. If it is missing, `write` creates it at the path it is given.

    The file appears whole or not at all.
    """
    target = cache_folder() / "gguf" / name
    if not target.exists():
        _make_folder(target.parent)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            write(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def cached_folder(kind: str, name: str, write: Callable[[Path], object]) -> Path:
    """The folder `name` in the cache's folder `kind`. If it is missing, `write` creates it at the path it is given.

    The folder appears whole or not at all.
    """
    target = cache_folder() / kind / name
    if not target.exists():
        _make_folder(target.parent)
        part = target.with_name(f"{name}.{os.getpid()}.part")
        try:
            write(part)
            part.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target
