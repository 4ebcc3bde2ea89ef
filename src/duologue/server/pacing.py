"""A voice in real time for a client on a network: sound comes as it comes, and goes out at the rate of the ear."""

import asyncio
from collections.abc import Callable

from duologue.voice.pump import BLOCK_S
from duologue.voice.sound import RATE, Resampler, Samples, silence
from duologue.voice.voice import Voice

_MOST_LATE_S = 0.5  # sound that a client does not send in time is taken for silence
_MOST_EARLY_S = 2.0  # what comes faster waits in the network
_MOST_MISSED = 5  # blocks that are made up for after a delay


class Pacer:
    """Drives `voice`; `give` gets every block of 20 ms, silence included. Sound that comes has the voice's own rate."""

    def __init__(self, voice: Voice, give: Callable[[Samples], None]) -> None:
        self._voice = voice
        self._give = give
        self._resampler = Resampler(voice.config.rate, RATE)
        self._begin = asyncio.get_running_loop().time()

    async def hear(self, samples: Samples) -> None:
        """Sound came from the client. Waits if it comes faster than it can have been said."""
        self._voice.push(self._resampler(samples))
        early = self._voice.now - self._elapsed - _MOST_EARLY_S
        if early > 0:
            await asyncio.sleep(early)

    async def run(self) -> None:
        """Until the conversation fails.

        Raises:
            DuologueError: it did.
        """
        count, done = int(BLOCK_S * self._voice.config.rate), 0
        while True:
            wait = done * BLOCK_S - self._elapsed
            await asyncio.sleep(max(0.0, wait))
            done = max(done + 1, int(self._elapsed / BLOCK_S) - _MOST_MISSED)
            late = self._elapsed - self._voice.now
            if late > _MOST_LATE_S:
                self._voice.push(silence(int((late - _MOST_LATE_S / 2) * RATE)))
            self._give(self._voice.pull(count))
            if self._voice.failure is not None:
                raise self._voice.failure

    @property
    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._begin
