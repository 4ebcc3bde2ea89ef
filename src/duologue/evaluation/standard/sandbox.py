"""Runs Python that a model wrote, in a process that can do no harm: Linux namespaces, through util-linux.

The process has no network, sees no file but the system's programs and Python's standard library (read-only) and an
empty folder in memory, and no other process. Its time, memory, number of processes and files are limited, and whatever
it started ends with it. Where this cannot be set up, nothing runs.
"""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from duologue.errors import UsageError

SECONDS = 5
"""Time that a program may take, after Python has started; four times as long if it ignores the alarm."""
_SETUP_SECONDS = 60  # more than any machine needs to start the process
_MEMORY = 1 << 29  # bytes of one process
_PROCESSES = 8
_FILE = 1 << 20  # bytes of a file, and of what is printed
_FOLDER = "16m"  # all files together
_NOBODY = "65534"
_TOOLS = ("unshare", "setpriv", "prlimit", "pivot_root", "mount", "timeout")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")

_RUNNER = f"""
import os, signal, sys
passed, _, code = sys.stdin.read().partition(chr(10))
told, nowhere = os.dup(1), os.open("/dev/null", os.O_WRONLY)
os.dup2(nowhere, 1), os.dup2(nowhere, 2)
signal.alarm({SECONDS})
exec(compile(code, "answer", "exec"), {{"__name__": "answer"}})
os.write(told, passed.encode())
"""
"""Code that ends the process itself has not passed: only its end is answered with the word on the first line."""


def passes(code: str) -> bool:
    """Whether `code`, a program with its tests, runs to its end within the limits.

    Raises:
        UsageError: this machine cannot isolate a process.
    """
    require()
    return _run(code)


def require() -> None:
    """Raise `UsageError` unless this machine can isolate a process."""
    global _is_usable
    if _is_usable is None:
        missing = [tool for tool in _TOOLS if shutil.which(tool, path=_path()) is None]
        _is_usable = sys.platform == "linux" and not missing and _run("assert 1 + 1 == 2")
    if not _is_usable:
        raise UsageError(
            "code that a model wrote runs in an isolated process only, and this machine cannot make one: it needs "
            f"Linux, {', '.join(_TOOLS)} (util-linux, coreutils), and the right to create namespaces; leave out "
            "humaneval and mbpp"
        )


_is_usable: bool | None = None


def _run(code: str) -> bool:
    word = secrets.token_hex(16)
    is_root = os.geteuid() == 0
    unshare = ["unshare", "--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "--kill-child"]
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryFile() as told:
        try:
            subprocess.run(
                [*unshare, *([] if is_root else ["--map-root-user"]), "--", "sh", "-c", _script(root, is_root=is_root)],
                input=f"{word}\n{code}".encode(),
                stdout=told,
                stderr=subprocess.DEVNULL,
                env={"PATH": _path(), "LANG": "C.UTF-8"},
                timeout=4 * SECONDS + _SETUP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        told.seek(0)
        return told.read(len(word) + 1) == word.encode()


def _script(root: str, *, is_root: bool) -> str:
    """Shell commands that make `root` the root directory, give up all rights, and run Python on standard input."""
    here = shlex.quote(root)
    lines = ["set -e", "mount --make-rprivate /", f"mount -t tmpfs -o size={_FOLDER},mode=755 sandbox {here}"]
    for path in _shown():
        target = shlex.quote(root + path)
        if os.path.islink(path):
            lines.append(f"ln -s {shlex.quote(os.readlink(path))} {target}")
        else:
            lines.append(f"mkdir -p {target}; mount --bind {shlex.quote(path)} {target}")
            lines.append(f"mount -o remount,bind,ro {target}")
    lines += [
        f"mkdir {here}/dev {here}/tmp {here}/old {here}/proc; chmod 1777 {here}/tmp",
        f"touch {here}/dev/null; mount --bind /dev/null {here}/dev/null",
        f"mount -t proc proc {here}/proc",  # umount reads it
        f"cd {here}; pivot_root . old; cd /; umount -l /old; umount -l /proc; cd /tmp",
    ]
    as_nobody = ["--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups"] if is_root else []
    limits = [f"--cpu={SECONDS}", f"--as={_MEMORY}", f"--nproc={_PROCESSES}", f"--fsize={_FILE}", "--core=0"]
    command = [
        *("prlimit", *limits, "setpriv", *as_nobody, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *("timeout", "--signal=KILL", str(4 * SECONDS), _python(), "-I", "-S", "-c", _RUNNER),
    ]
    return "\n".join([*lines, "exec " + shlex.join(command)])


def _shown() -> list[str]:
    """What the process sees: the system's programs and libraries, and this Python."""
    shown = [path for path in _SYSTEM if os.path.exists(path)]
    prefix = sys.base_prefix
    return shown if any(Path(prefix).is_relative_to(path) for path in shown) else [*shown, prefix]


def _python() -> str:
    """This Python without the packages of an environment."""
    return os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
