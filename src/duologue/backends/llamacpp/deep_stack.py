"""Runs a function on a thread whose stack is large enough for the recursion of a C library."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from duologue.errors import EngineError

Result = TypeVar("Result")

_MIB = 1 << 20
_lock = threading.Lock()  # the stack size of new threads is a setting of the process


def call_with_stack(num_bytes: int, function: Callable[[], Result]) -> Result:
    """The result of `function`, run on a new thread with at least `num_bytes` of stack.

    The stack is reserved address space: it takes memory only as far as it is used, and all of that is released at the
    end. Exceptions of `function` are raised here.

    Raises:
        EngineError: the system refused a stack of that size.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="deep-stack", daemon=True)
    with _lock:
        try:
            before = threading.stack_size(-(-num_bytes // _MIB) * _MIB)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise EngineError(f"the system provides no stack of {num_bytes // _MIB} MiB: {error}") from error
    thread.join()
    return outcome.result()
