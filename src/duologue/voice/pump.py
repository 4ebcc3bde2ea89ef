"""Runs a spoken conversation in real time without devices: sound from an array, sound into an array."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.voice import Voice

BLOCK_S = 0.02
_REST_S = 1.0  # of silence at the end


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Both sides, aligned: `user`, `[n]`, at 16 kHz, and `assistant`, `[m]`, at the voice's rate.

    `late_s` is the longest delay of a block, in seconds.
    """

    user: Samples
    assistant: Samples
    late_s: float


async def converse(
    voice: Voice,
    user: Samples,
    *,
    is_over: Callable[[], bool],
    longest_s: float = 120.0,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Recording:
    """Play `user`, `[n]` at 16 kHz, to `voice` in real time, and record the answers.

    Silence follows the sound until `is_over` has held for a second, or for at most `longest_s`.

    Raises:
        DuologueError: the conversation failed.
    """
    clock = clock or asyncio.get_running_loop().time
    size, count = int(BLOCK_S * RATE), int(BLOCK_S * voice.config.rate)
    begin, num_quiet, late_s = clock(), 0, 0.0
    heard: list[Samples] = []
    said = [silence(count)]  # the output for one block is heard during the next
    least, most = -(-len(user) // size), int((len(user) / RATE + longest_s) / BLOCK_S)
    while len(heard) < least or (num_quiet * BLOCK_S < _REST_S and len(heard) < most):
        wait = begin + (len(heard) + 1) * BLOCK_S - clock()  # a block is complete at its last sample
        late_s = max(late_s, -wait)
        await sleep(max(0.0, wait))
        block = user[len(heard) * size : (len(heard) + 1) * size]
        block = np.concatenate([block, silence(size - len(block))])
        voice.push(block)
        heard.append(block)
        said.append(voice.pull(count))
        if voice.failure is not None:
            raise voice.failure
        num_quiet = num_quiet + 1 if voice.is_idle and is_over() else 0
    return Recording(np.concatenate(heard), np.concatenate(said)[: len(heard) * count], late_s)
