"""A voice in real time for a client on a network: sound comes as it comes, and goes out at the rate of the ear."""

import asyncio
from collections.abc import Callable

from duologue.voice.pump import BLOCK_S
from duologue.voice.sound import RATE, Resampler, Samples, silence
from duologue.voice.voice import Voice

_MOST_LATE_S = 0.5  # sound that a client does not send in time is taken for silence
_MOST_EARLY_S = 2.0  # what comes faster waits in the network
_BETWEEN_S = 0.05  # of silence: more than the resampler keeps back
_MOST_MISSED = 5  # blocks that are made up for after a delay


class Pacer:
    """Drives `voice`; `give` gets every block of 20 ms, silence included. Sound that comes has the voice's own rate."""

    def __init__(self, voice: Voice, give: Callable[[Samples], None]) -> None:
        self._voice = voice
        self._give = give
        self._resampler = Resampler(voice.config.rate, RATE)
        self._skipped_s = 0.0  # sound that came sooner than it can have been said, and need not have been
        self._begin = asyncio.get_running_loop().time()

    async def hear(self, samples: Samples, *, most_early_s: float = _MOST_EARLY_S) -> None:
        """Sound came from the client. Waits if it comes faster than it can have been said."""
        size = self._voice.config.rate  # a second: others have their turn in between
        for at in range(0, len(samples), size):
            self._voice.push(self._resampler(samples[at : at + size]))
            await asyncio.sleep(0)
        early = self._early_s - most_early_s
        if early > 0:
            await asyncio.sleep(early)

    def flush(self) -> None:
        """What came was all, and the voice has it to the end; what comes next may be early again."""
        self._voice.push(self._resampler(silence(int(_BETWEEN_S * self._voice.config.rate))))
        self._skipped_s += max(0.0, self._early_s)

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
            late = -self._early_s
            if late > _MOST_LATE_S:
                self._voice.push(silence(int((late - _MOST_LATE_S / 2) * RATE)))
            self._give(self._voice.pull(count))
            if self._voice.failure is not None:
                raise self._voice.failure

    @property
    def _early_s(self) -> float:
        return self._voice.now - self._skipped_s - self._elapsed

    @property
    def _elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self._begin
