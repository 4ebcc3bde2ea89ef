"""Runs a conversation by voice in real time without devices: sound from an array, sound into an array."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.voice import Voice

BLOCK_S = 0.02
_REST_S = 1.0  # of silence, after all has been said


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Both sides on one clock. `user` has 16 kHz, `assistant` the rate of the voice. `late_s`: the worst delay."""

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
    """Let `voice` hear `user`, 16 kHz, as if it were said now, and record what it says.

    When the sound has ended, silence follows until `is_over` for a second, but at most `longest_s`.

    Raises:
        DuologueError: the conversation failed.
    """
    clock = clock or asyncio.get_running_loop().time
    size, count = int(BLOCK_S * RATE), int(BLOCK_S * voice.config.rate)
    begin, num_quiet, late_s = clock(), 0, 0.0
    heard: list[Samples] = []
    said = [silence(count)]  # what is given out when a block has come is heard while the next one comes
    least, most = -(-len(user) // size), int((len(user) / RATE + longest_s) / BLOCK_S)
    while len(heard) < least or (num_quiet * BLOCK_S < _REST_S and len(heard) < most):
        wait = begin + (len(heard) + 1) * BLOCK_S - clock()  # a block is there when its last sample is
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
