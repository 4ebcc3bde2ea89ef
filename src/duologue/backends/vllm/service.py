"""One AsyncLLM of vLLM, in a thread with an event loop of its own."""

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar, final

from duologue.errors import DuologueError, EngineError
from duologue.types import Token

_T = TypeVar("_T")
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork would not have
}
"""What vLLM reads from the environment, unless it is set there."""


@final
class Service:
    """Generates with the model in a folder.

    `submit` and `call` may be used in any thread; `generate` runs in the service's own.

    Raises:
        EngineError: vLLM does not start; its own message is in it.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        """`options` are arguments of vLLM's `AsyncEngineArgs`."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="duologue-vllm", daemon=True)
        self._thread.start()
        self._llm: Any = None
        try:
            self._llm = self.submit(_open(folder, options)).result()
        except BaseException as error:
            self.close()
            if isinstance(error, DuologueError) or not isinstance(error, Exception):
                raise
            raise EngineError(f"vLLM does not start with {folder}: {_reason(error)}") from error

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return int(self._llm.vllm_config.cache_config.num_gpu_blocks)

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return int(self._llm.vllm_config.cache_config.block_size)

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Run `work` in the service's loop. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, act: Callable[..., object], *args: object) -> None:
        """Call `act` in the service's loop, soon."""
        self._loop.call_soon_threadsafe(act, *args)

    async def generate(
        self, tokens: tuple[Token, ...], params: Mapping[str, Any], *, priority: int, streams: bool = False
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs behind `tokens`, as they come or, unless it `streams`, at the end. Closing this aborts it.

        Args:
            params: arguments of `SamplingParams`.
            priority: a request with a lower number goes first.

        Raises:
            EngineError: vLLM failed.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY
        sampling, name = SamplingParams(output_kind=kind, **params), f"duologue-{next(self._numbers)}"
        try:
            async with aclosing(
                self._llm.generate(tokens_input(list(tokens)), sampling, name, priority=priority)
            ) as outputs:
                async for output in outputs:
                    yield output
        except Exception as error:
            raise EngineError(f"vLLM failed: {_reason(error)}") from error

    def close(self) -> None:
        """End vLLM and the thread. Can be repeated."""
        if self._thread.is_alive():
            self.submit(self._end()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open(folder: Path, options: Mapping[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), disable_log_stats=True, **options))


def _reason(error: Exception) -> str:
    """The first line of what vLLM says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
