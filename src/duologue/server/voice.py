"""Voices of conversations on a network: their number is limited, and each runs in real time for a client."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from duologue.engine.handle import Handle
from duologue.errors import EngineFull, UsageError
from duologue.hearing.evidence import Features
from duologue.models.model import Model
from duologue.voice.engines.defaults import Engines
from duologue.voice.recording import BLOCK_S
from duologue.voice.sound import RATE, Resampler, Samples, silence
from duologue.voice.sounds import sounds_for
from duologue.voice.timeline import Row, Timeline
from duologue.voice.voice import SessionCommands, Voice, VoiceConfig

_MOST_LATE_S = 0.5  # sound that a client does not send in time is replaced by silence
_MOST_EARLY_S = 2.0  # sound that arrives earlier than this waits in the network
_BETWEEN_S = 0.05  # of silence: more than the resampler holds back
_MOST_MISSED = 5  # blocks that are caught up on after a delay
log = logging.getLogger("duologue.server")


class Voices:
    """The engines that all conversations by voice share, and the slots for such conversations."""

    def __init__(self, engines: Engines, most: int, model: Model | None = None) -> None:
        """`model`: what judges the words; it also hears them if it can."""
        self.engines = engines
        self._model = model
        self._most = most
        self._num = 0

    def enter(self) -> None:
        """Take a slot. Raises `EngineFull` if none is free."""
        if self._num >= self._most:
            raise EngineFull(f"all {self._most} voice slots are taken; try again later, or without voice")
        self._num += 1

    def sounds_for(self, handle: Handle) -> Callable[[str, Features], None] | None:
        """What a voice of the conversation behind `handle` tells beyond the words; None: words alone."""
        return None if self._model is None else sounds_for(handle, self._model)

    def leave(self) -> None:
        """Release a slot."""
        self._num -= 1


def needed(voices: Voices | None) -> Voices:
    """The voices of a server. Raises `UsageError` if it has none."""
    if voices is None:
        raise UsageError("this server has no voice; start it with --voice auto")
    return voices


class Pacer:
    """Drives `voice` in real time; `give` gets every block of 20 ms, silence included.

    Sound from the client has the rate of the voice's own sound.
    """

    def __init__(self, voice: Voice, give: Callable[[Samples], None]) -> None:
        self._voice = voice
        self._give = give
        self._resampler = Resampler(voice.config.rate, RATE)
        self._skipped_s = 0.0  # sound that arrived faster than real time, if that is allowed
        self._begin = asyncio.get_running_loop().time()

    async def hear(self, samples: Samples, *, most_early_s: float = _MOST_EARLY_S) -> None:
        """Take sound from the client (samples: [N]). Waits if it arrives faster than real time."""
        size = self._voice.config.rate  # a second: other tasks run in between
        for at in range(0, len(samples), size):
            self._voice.push(self._resampler(samples[at : at + size]))
            await asyncio.sleep(0)
        await asyncio.sleep(max(0.0, self._early_s - most_early_s))

    def flush(self) -> None:
        """Pass all sound received so far to the voice. The sound that follows may be early again."""
        self._voice.push(self._resampler(silence(int(_BETWEEN_S * self._voice.config.rate))))
        self._skipped_s += max(0.0, self._early_s)

    async def run(self) -> None:
        """Run until the conversation fails.

        Raises:
            DuologueError: it failed.
        """
        count, done = int(BLOCK_S * self._voice.config.rate), 0
        while True:
            await asyncio.sleep(max(0.0, done * BLOCK_S - self._elapsed))
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


class VoiceStream:
    """A voice for one conversation. It holds one of the server's slots until it fails, leaves or is closed.

    Args:
        commands: the conversation.
        note: receives the rows of the voice's timeline.
        give: receives every block of sound for the client.
        failed: is awaited once if the voice fails; its slot has been released by then.
        hear_sound: see `Voice`.

    Raises:
        EngineFull: no slot is free.
    """

    def __init__(
        self,
        commands: SessionCommands,
        voices: Voices,
        config: VoiceConfig,
        *,
        note: Callable[[Row], None],
        give: Callable[[Samples], None],
        failed: Callable[[Exception], Awaitable[None]],
        hear_sound: Callable[[str, Features], None] | None = None,
    ) -> None:
        self._voices = voices
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        engines = voices.engines
        self.voice = Voice(
            commands,
            engines.detector(),
            engines.recogniser,
            engines.synthesiser,
            config=config,
            timeline=Timeline(note, keeps=False),
            name=f"voice-{secrets.token_hex(3)}",
            hear_sound=hear_sound,
        )
        self.pacer = Pacer(self.voice, give)
        voices.enter()  # last, since nobody would leave if an engine failed here
        self.has_place = True

    def start(self, *beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Listen and speak from now on, and run `beside` for as long."""
        self._task = asyncio.create_task(self._run(beside), name="duologue-voice")

    def leave(self) -> None:
        """Release the slot. An utterance in progress ends."""
        if self.has_place:
            self.has_place = False
            self._voices.leave()
            self.voice.hang_up()

    async def aclose(self) -> None:
        """Close the voice."""
        self.leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, beside: tuple[Callable[[], Coroutine[Any, Any, None]], ...]) -> None:
        try:
            async with self.voice, asyncio.TaskGroup() as group:
                for make in (*beside, self.pacer.run):
                    group.create_task(make())
        except* Exception as errors:
            self.leave()
            await self._failed(errors.exceptions[0])
