"""Runs a spoken conversation in real time without devices, from an array into an array, and writes both sides."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duologue.errors import MissingDependency
from duologue.voice.picture import draw
from duologue.voice.sound import RATE, Samples, resampled, silence, write_wav
from duologue.voice.timeline import Row
from duologue.voice.voice import Voice

BLOCK_S = 0.02
_REST_S = 1.0  # of silence at the end


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Both sides, aligned: `user`, `[n]`, at 16 kHz, and `assistant`, `[m]`, at `rate`.

    `late_s` is the longest delay of a block, in seconds.
    """

    user: Samples
    assistant: Samples
    rate: int
    late_s: float = 0.0

    def write(self, path: Path, rows: Sequence[Row]) -> list[Path]:
        """Write a stereo WAV file and, beside it, the events `rows` as JSON and as a picture.

        Without matplotlib there is no picture, and a note on standard error says so.

        Returns the paths.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        table, picture = path.with_suffix(".json"), path.with_suffix(".png")
        write_wav(path, [resampled(self.user, RATE, self.rate), self.assistant], self.rate)
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
        table.write_text(f'{{"rate": {self.rate}, "timeline": [\n  {lines}\n]}}\n', encoding="utf-8")
        try:
            draw(picture, (self.user, RATE), (self.assistant, self.rate), rows)
        except MissingDependency as error:
            print(f"no picture: {error}", file=sys.stderr)
            return [path, table]
        return [path, table, picture]


async def converse(
    voice: Voice,
    user: Samples,
    *,
    is_over: Callable[[], bool],
    longest_s: float = 120.0,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ends_when_cancelled: bool = False,
) -> Recording:
    """Play `user`, `[n]` at 16 kHz, to `voice` in real time, and record the answers.

    Silence follows the sound until `is_over` has held for a second, or for at most `longest_s`. With
    `ends_when_cancelled`, a cancellation ends the conversation, and what there is of it is returned.

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
        try:
            await sleep(max(0.0, wait))
        except asyncio.CancelledError:
            if not ends_when_cancelled:
                raise
            break
        block = user[len(heard) * size : (len(heard) + 1) * size]
        block = np.concatenate([block, silence(size - len(block))])
        voice.push(block)
        heard.append(block)
        said.append(voice.pull(count))
        if voice.failure is not None:
            raise voice.failure
        num_quiet = num_quiet + 1 if voice.is_idle and is_over() else 0
    both = np.concatenate([silence(0), *heard]), np.concatenate(said)[: len(heard) * count]
    return Recording(*both, voice.config.rate, late_s)
