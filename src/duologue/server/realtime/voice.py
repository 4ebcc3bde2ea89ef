"""Sound over `/v1/realtime`: appended sound is recognised as growing words, and answers are spoken."""

import base64
import binascii
import logging

import numpy as np

from duologue.core import events as e
from duologue.errors import BadData, UsageError
from duologue.server.fields import Rejection
from duologue.server.realtime.commands import Commands
from duologue.server.realtime.messages import EMPTY, ServerFault
from duologue.server.realtime.response import Response
from duologue.server.realtime.session import RealtimeSession
from duologue.server.voice import Voices, VoiceStream
from duologue.voice.sound import Samples, from_pcm16, silence, to_pcm16
from duologue.voice.timeline import Row
from duologue.voice.utterance import SpokenUtterance
from duologue.voice.voice import VoiceConfig

RATE = 24_000  # the protocol's
_LEAST_S = 0.1  # of sound that may be committed, by the protocol
_MOST_EARLY_S = 60.0  # a recording to be committed may arrive at once
_DELTA_S = 0.1  # of sound in an event
log = logging.getLogger("duologue.server")


class RealtimeVoice:
    """The voice of one session. It holds one of the server's slots until it is closed.

    Raises:
        EngineFull: no slot is free.
    """

    def __init__(self, session: RealtimeSession, commands: Commands, voices: Voices) -> None:
        self._session = session
        self._commands = commands
        self._waiting = silence(0)  # sound that has not been sent
        self._is_manual = session.config.turn_detection is None  # the client marks the ends of turns
        self._num_appended = 0  # samples since the last commit
        self._said: dict[str, str] = {}  # words since then, by utterance
        self._committed: dict[str, str] = {}  # words that were committed last
        self._ending: list[SpokenUtterance] = []  # their utterances, some of which may still be in recognition
        self._onset: str | None = None  # an utterance whose onset the client was told of
        self._why_deaf: str | None = None  # the recogniser failed, and there are no words since
        self._sounding: Response | None = None  # the one whose sound was sent last
        self._num_given = 0  # samples of it
        config = VoiceConfig(rate=RATE, latency_s=_DELTA_S, fades=False)
        self._stream = VoiceStream(self, voices, config, note=self._note, give=self._give, failed=self._mute)
        self._voice = self._stream.voice
        self._voice.yields = not self._is_manual
        session.handle.take_reports()
        session.go_on()
        for event in session.unheard:
            self._voice.take(event)
        self.aclose = self._stream.aclose
        self._stream.start()

    # ------------------------------------------------------------------ what the voice asks for

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        """See `Handle.hear`."""
        if not self._is_manual:
            self._grow(utterance, text, final)
        elif utterance in self._committed:
            self._committed[utterance] = text
        else:
            self._said[utterance] = text

    def _grow(self, utterance: str, text: str, final: bool) -> None:
        try:
            self._commands.grow(utterance, text, is_final=final, is_audio=True)
        except UsageError as error:  # more words than a turn may have; the speaker continues nevertheless
            if final:
                self._commands.forget(utterance)
                self._session.tell_error(error)
        if final and (why := self.pop_failure(text)) is not None:
            self._session.tell_failed(utterance, why)

    def pop_failure(self, words: str) -> str | None:
        """Why there are no words, if the recogniser failed. It is returned once."""
        why, self._why_deaf = self._why_deaf, None
        return None if words else why

    def heard(self, position: int, *, answer: int | None = None) -> None:
        """See `Handle.heard`."""
        if (response := self._sounding) is not None and response.number == answer:
            seconds = max(0.0, self._num_given / RATE - _DELTA_S)
            response.item.played.append((seconds, position - response.base))
        self._session.handle.heard(position, answer=answer)

    @property
    def is_protected(self) -> bool:
        """See `Handle.is_protected`."""
        return self._session.handle.is_protected

    # ------------------------------------------------------------------ what is asked of it

    async def append(self, audio: str) -> None:
        """Take sound in base64.

        Raises:
            Rejection: this is not sound.
            ServerFault: the voice has failed.
        """
        self._check()
        try:
            samples = from_pcm16(base64.b64decode(audio, validate=True))
        except (binascii.Error, BadData) as error:
            raise Rejection(f"audio must be 16-bit samples in base64: {error}", param="audio") from error
        self._num_appended += len(samples)
        early = {"most_early_s": _MOST_EARLY_S} if self._is_manual else {}
        await self._stream.pacer.hear(samples, **early)

    def take(self, event: e.Event) -> None:
        """Take an event of the session, after the session took it."""
        if isinstance(event, e.Suspended | e.Withdrawn | e.TakenBack | e.Edited):
            self._waiting = silence(0)
        if self._stream.has_place:
            self._voice.take(event)
        elif isinstance(event, e.Said):
            self._session.handle.hear_out()  # it is read as text

    def commit(self) -> None:
        """End the current utterance. The previous commit must be complete.

        Raises:
            Rejection: nothing was said.
            ServerFault: the voice has failed.
        """
        self._check()
        if self._is_manual and self._num_appended < _LEAST_S * RATE:
            has_ms = self._num_appended / RATE * 1000
            raise Rejection(f"there are {has_ms:.0f} ms of sound to commit, and at least 100 are needed", code=EMPTY)
        if not self._is_manual and not self._voice.is_hearing:
            raise Rejection("nobody is speaking: turn detection has committed what was said", code=EMPTY)
        self._stream.pacer.flush()
        self._ending = self._voice.end()
        self._committed, self._said, self._num_appended = self._said, {}, 0

    async def committed(self) -> str | None:
        """All words of the last commit, once they are known. With turn detection None: their utterance has ended."""
        for hearing in self._ending:
            await hearing.over.wait()
        return " ".join(text for text in self._committed.values() if text) if self._is_manual else None

    def clear(self) -> None:
        """Discard what was not committed. The last commit must be complete."""
        self._stream.pacer.flush()
        self._voice.hang_up(forgets=True)
        self._said, self._num_appended = {}, 0

    def adjust(self) -> None:
        """Apply the current configuration. What was said is discarded if the way to end a turn changes."""
        is_manual = self._session.config.turn_detection is None
        if is_manual != self._is_manual:
            self.clear()
            self._is_manual, self._voice.yields = is_manual, not is_manual

    def _check(self) -> None:
        if not self._stream.has_place:
            raise ServerFault("the voice has failed; connect again")

    async def _mute(self, error: Exception) -> None:
        """Continue the session in text, because the voice failed."""
        log.error("a voice failed", extra={"error": str(error)})
        self._session.tell_error(ServerFault(f"the voice failed: {error}"))
        self._commands.mute()
        self._session.handle.hear_out()

    def _give(self, samples: Samples) -> None:
        if samples.any():
            if self._sounding is not self._session.response:
                self._sounding, self._num_given = self._session.response, 0
            self._waiting = np.concatenate([self._waiting, samples])
            self._num_given += len(samples)
        if len(self._waiting) and (len(self._waiting) >= _DELTA_S * RATE or not samples.any()):
            sound, self._waiting = self._waiting, silence(0)
            if (response := self._session.response) is not None and response.is_audio:
                response.sound(base64.b64encode(to_pcm16(sound)).decode())

    def _note(self, row: Row) -> None:
        """Report the onset of speech at once while the assistant is silent, when a client plays nothing.

        Clients that mark the ends of turns themselves receive no such report."""
        if row["type"] == "recogniser_failed":
            self._why_deaf = row["message"]
        if self._is_manual:
            return
        if row["type"] == "speech_started" and self._session.response is None:
            self._onset, at_ms = row["utterance"], round(row["at"] * 1000)
            self._session.send("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=self._onset)
        elif row["type"] == "speech_ended" and self._onset == row["utterance"]:
            at_ms = round(row["spoken_to"] * 1000)
            self._session.send("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=row["utterance"])
            self._onset = None
