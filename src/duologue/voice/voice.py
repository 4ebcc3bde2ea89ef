"""A spoken conversation without devices: frames in, frames out, a session in between.

The input is the clock. Everything runs in the event loop's thread; slow operations are awaited.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from duologue.core import events as e
from duologue.errors import DuologueError, UsageError
from duologue.types import InputState
from duologue.voice.engines.interfaces import Recogniser, SpeechDetector, Synthesiser
from duologue.voice.hearing import Hearing
from duologue.voice.player import Player
from duologue.voice.segmenter import Segmenter, Sensitivity
from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.speaking import Speaking
from duologue.voice.timeline import Timeline


@dataclass(frozen=True, slots=True)
class VoiceConfig:
    """Settings of a spoken conversation. Times are in seconds."""

    rate: int = 24_000  # samples per second of the output
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    before_s: float = 0.27  # of sound before the detection of speech that belong to it
    first_s: float = 0.33  # of sound needed before recognition; less yields parts of words
    partial_s: float = 0.25  # of new sound before words are recognised again
    pause_s: float = 0.13  # of silence after which the last words are recognised at once
    end_s: float = 0.9  # of silence that end an utterance
    sure_end_s: float = 0.25  # the same if all its words are recognised and judged complete
    no_words_end_s: float = 0.5  # the same if no words were recognised
    yield_s: float = 1.0  # of speech over an answer that pause it, if the words may be meant for it; inf: never
    back_s: float = 1.0  # after an utterance without consequence, until the answer returns to full volume
    latency_s: float = 0.0  # from the output of a sample to the ear
    fades: bool = True  # cuts fade out; False if the receiver drops unplayed sound and fades it itself

    def __post_init__(self) -> None:
        if self.rate < 8000 or not 0 < self.sure_end_s <= self.end_s or min(self.before_s, self.partial_s) < 0:
            raise UsageError("rate must be at least 8000, 0 < sure_end_s <= end_s, and no time may be negative")


class SessionCommands(Protocol):
    """The commands that a voice gives to a session; `Handle` is one."""

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None: ...
    def heard(self, position: int, *, answer: int | None = None) -> None: ...
    @property
    def is_protected(self) -> bool: ...


class Voice:
    """Listens and speaks for one conversation.

        async with Voice(handle, detector, recogniser, synthesiser) as voice:
            voice.follow(handle.events())
            ...
            voice.push(samples)          # from the microphone, at 16 kHz, whenever it delivers
            samples = voice.pull(480)    # for the loudspeaker, whenever it requests

    The session behind `commands` must have `SessionConfig(heard="reported")`, and its policy should be `by_voice`. The
    caller owns the engines.
    """

    def __init__(
        self,
        commands: SessionCommands,
        detector: SpeechDetector,
        recogniser: Recogniser,
        synthesiser: Synthesiser,
        *,
        config: VoiceConfig | None = None,
        timeline: Timeline | None = None,
        name: str = "voice",
    ) -> None:
        self.config = config or VoiceConfig()
        self.timeline = timeline or Timeline()
        self.player = Player(self.config.rate, fades=self.config.fades)
        self._commands = commands
        self._detector = detector
        self._recogniser = recogniser
        self._segmenter = Segmenter(self.config.sensitivity)
        self._speaking = Speaking(synthesiser, self.player, self._note)
        self._name = name
        self._rest = silence(0)  # pushed, but less than a frame
        self._num_in = 0
        self._before: deque[Samples] = deque(maxlen=max(1, round(self.config.before_s * RATE / detector.frame)))
        self._hearing: Hearing | None = None  # the utterance being spoken
        self._open: dict[str, Hearing] = {}  # by name: it, and those which are ending
        self._num_heard = 0
        self._unjudged: Hearing | None = None  # the last one that ended before its last words were judged
        self._back_at: float | None = None
        self._late: deque[tuple[int, int, int]] = deque()  # heard after so many output samples: answer, position
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_sounding = False
        self.yields = True  # whether the answer is ducked, paused and held back while the user speaks
        self.failure: DuologueError | None = None  # set if the conversation cannot continue

    async def __aenter__(self) -> "Voice":
        self._start(self._speaking.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def follow(self, events: AsyncIterator[e.Event]) -> None:
        """Take the session's events from `events`, until they end."""
        self._start(self._follow(events))

    def hang_up(self, *, forgets: bool = False) -> None:
        """End the utterances under way as they are; with `forgets`, discard them."""
        for hearing in tuple(self._open.values()):
            if forgets:
                hearing.text = ""
            self._finish(hearing)
        self._hear_anew()

    def end(self) -> list[Hearing]:
        """End the utterance under way without waiting for silence; later sound begins another one.

        Returns the utterances whose last words are still being recognised.
        """
        self.push(silence(-len(self._rest) % self._detector.frame))  # completes the last frame
        if self._hearing is not None:
            self._end(self._hearing)
        self._hear_anew()
        return list(self._open.values())

    def _hear_anew(self) -> None:
        self._hearing = None
        self._before.clear()
        self._segmenter = Segmenter(self.config.sensitivity)  # continued speech begins a new utterance

    @property
    def is_hearing(self) -> bool:
        """Whether the user is speaking."""
        return self._hearing is not None

    @property
    def now(self) -> float:
        """Seconds of input so far."""
        return (self._num_in + len(self._rest)) / RATE

    @property
    def is_idle(self) -> bool:
        """Whether nobody speaks, nothing is being recognised, and nothing is left to play."""
        return not self._open and not self._speaking.is_busy and not self.player.is_playing

    # ------------------------------------------------------------------ listening

    def push(self, samples: Samples) -> None:
        """Add input, `[n]` at 16 kHz, of any length."""
        self._rest = np.concatenate([self._rest, samples])
        size = self._detector.frame
        while len(self._rest) >= size:
            frame, self._rest = self._rest[:size], self._rest[size:]
            self._num_in += size
            self._listen(frame)
        self._speaking.feed()
        if self._back_at is not None and self.now >= self._back_at:
            self._come_back("quiet")
        elif self.player.is_paused and self._commands.is_protected:
            self._come_back("protected")
        elif not self.player.is_paused:
            self._yield_if_asked()

    def _yield_if_asked(self) -> None:
        """Pause the answer if the user keeps speaking, until it is decided whether to cut it."""
        speakers = (hearing for hearing in self._open.values() if hearing.spoken_s >= self.config.yield_s)
        speaker = next((hearing for hearing in speakers if hearing.state is InputState.INCOMPLETE), None)
        if speaker is not None and self._may_yield:
            self._yield_to(speaker)

    @property
    def _may_yield(self) -> bool:
        return self.yields and self._speaking.is_under_way and not self._commands.is_protected

    def _yield_to(self, hearing: Hearing) -> None:
        self.player.pause(True)
        self._note("yielded", utterance=hearing.name)

    def _listen(self, frame: Samples) -> None:
        begins = self._segmenter.push(self._detector(frame))
        hearing = self._hearing
        if hearing is None:
            self._before.append(frame)
            if begins:
                self._begin()
            return
        hearing.add(frame, is_speech=self._segmenter.is_speech)
        quiet_s = self._segmenter.num_quiet * len(frame) / RATE
        if quiet_s >= self._end_s(hearing):
            self._end(hearing)
        elif self._is_due(hearing, quiet_s):
            self._recognise(hearing)

    def _begin(self) -> None:
        """Speech begins: open the input channel and duck the answer."""
        self._num_heard += 1
        name = f"{self._name}-{self._num_heard}"
        self._hearing = self._open[name] = Hearing(name, self._recogniser.begin(), self._before, self.now)
        self._before.clear()
        self._unjudged = None
        self._note("speech_started", utterance=name)
        self._command("", self._hearing, final=False)
        if not self.yields:
            return
        self._back_at = None
        self._speaking.is_interrupted = True
        if self.player.is_playing and not self.player.is_ducked:
            self.player.duck(True)
            self._note("ducked", utterance=name)

    def _is_due(self, hearing: Hearing, quiet_s: float) -> bool:
        """Whether to recognise its words now: enough sound is new, or the last word may have been spoken."""
        if hearing.is_recognising or hearing.new_s <= 0:
            return False
        least_s = self.config.partial_s if hearing.num_recognised else self.config.before_s + self.config.first_s
        is_paused = quiet_s >= self.config.pause_s and not hearing.is_covered
        return is_paused or (self._segmenter.is_speech and hearing.new_s >= least_s)

    def _end_s(self, hearing: Hearing) -> float:
        """Seconds of silence that end it: few if all its words are known and judged complete."""
        if not hearing.is_covered:
            return self.config.end_s
        if not hearing.text:
            return self.config.no_words_end_s
        return self.config.end_s if hearing.state in (None, InputState.INCOMPLETE) else self.config.sure_end_s

    def _end(self, hearing: Hearing) -> None:
        self._hearing = None
        self._before.clear()
        hearing.is_ending = True
        self._note("speech_ended", utterance=hearing.name, spoken_to=self._spoken_to(hearing))
        if hearing.is_recognising:
            return
        if hearing.is_covered:
            self._finish(hearing)
        else:
            self._recognise(hearing)

    def _spoken_to(self, hearing: Hearing) -> float:
        """The end of its last speech, on the input's clock."""
        return round(self.now - (hearing.num_samples - hearing.voiced_to) / RATE, 4)

    def _recognise(self, hearing: Hearing) -> None:
        hearing.is_recognising = True
        self._start(self._recognised(hearing))

    async def _recognised(self, hearing: Hearing) -> None:
        to, began, loop = hearing.num_samples, self.now, asyncio.get_running_loop()
        before = loop.time()
        try:
            text = await hearing.recognition.hear(hearing.take(), last=hearing.is_ending)
        except DuologueError as error:
            self._note("recogniser_failed", message=str(error))
            text = hearing.text
        hearing.is_recognising = False
        if hearing.over.is_set():
            return  # the call ended meanwhile
        took = round(loop.time() - before, 4)
        hearing.num_recognised = to
        self._note("recognised", utterance=hearing.name, text=text, began=round(began, 4), took=took, heard_s=to / RATE)
        if text != hearing.text:
            hearing.text, hearing.state, hearing.is_dropped = text, None, False
            if text:
                self._command(text, hearing, final=False)
        if hearing.is_ending and hearing.is_covered:
            self._finish(hearing)
        elif hearing.is_ending:
            loop.call_soon(self._recognise, hearing)

    def _finish(self, hearing: Hearing) -> None:
        """All its words are known, and no more will follow."""
        if hearing.over.is_set():
            return
        hearing.over.set()
        del self._open[hearing.name]
        self._command(hearing.text, hearing, final=True)
        if not self._open:
            self._speaking.is_interrupted = False
            self._unjudged = hearing if hearing.state is None else None
            if hearing.is_dropped:
                self._come_back("dropped")
            elif not self._yields_at_the_end(hearing) and self.player.is_subdued:
                self._back_at = self.now + self.config.back_s

    def _yields_at_the_end(self, hearing: Hearing) -> bool:
        """Pause the answer after words that ended unfinished, unless it is paused. Returns whether it yields."""
        if hearing.state is not InputState.INCOMPLETE or not self._may_yield:
            return False
        self._back_at = None
        if not self.player.is_paused:  # the utterance was too short
            self._yield_to(hearing)
        return True

    def _command(self, text: str, hearing: Hearing, *, final: bool) -> None:
        try:
            self._commands.hear(text, utterance=hearing.name, final=final)
        except DuologueError as error:
            self.failure = error

    # ------------------------------------------------------------------ events of the session

    async def _follow(self, events: AsyncIterator[e.Event]) -> None:
        try:
            async for event in events:
                self.take(event)
        except DuologueError as error:
            self.failure = error

    def take(self, event: e.Event) -> None:
        """Take the next event of the session."""
        row = e.as_dict(event)
        at = row.pop("at")  # on the engine's clock; the rows are on the input's
        if (heard_at := row.pop("heard_at", None)) is not None:
            row["latency"] = round(at - heard_at, 4)
        self._note(row.pop("type"), **row)
        match event:
            case e.Said(answer=answer, start=start, text=text):
                self._speaking.say(answer, start, text)
            case e.Finished(answer=answer):
                self._speaking.finish(answer)
            case e.Suspended() | e.Withdrawn() | e.TakenBack() | e.Edited():
                self._fall_silent()
            case e.Decided(text=text, decision=decision):
                for hearing in self._open.values():
                    hearing.judged(text, decision.state)
                if self._unjudged is not None:
                    self._judged_at_last(self._unjudged, text, decision.state)
            case e.Dropped(utterance=utterance):
                self._dropped(utterance)
            case _:
                pass

    def _judged_at_last(self, hearing: Hearing, text: str, state: InputState) -> None:
        """The last words of an utterance are judged after it ended."""
        hearing.judged(text, state)
        if hearing.state is not None:
            self._unjudged = None
            self._yields_at_the_end(hearing)

    def _dropped(self, utterance: str) -> None:
        """The words have no consequence: the answer continues as before."""
        if utterance in self._open:
            self._open[utterance].is_dropped = True
        if all(hearing.is_dropped for hearing in self._open.values()):
            self._speaking.is_interrupted = False
            if not self.player.is_paused or all(hearing.is_surely_ignored for hearing in self._open.values()):
                self._come_back("dropped")

    def _fall_silent(self) -> None:
        was_playing = self.player.is_playing
        self._speaking.forget()
        self._late.clear()
        if was_playing:
            self._note("cut")

    def _come_back(self, why: str) -> None:
        self._back_at = None
        if self.player.is_subdued:
            self.player.duck(False)
            self.player.pause(False)
            self._note("came_back", why=why)

    # ------------------------------------------------------------------ speaking

    def pull(self, count: int) -> Samples:
        """The next `count` samples of output, `[count]` at `config.rate`."""
        is_playing = self.player.is_playing
        if is_playing != self._is_sounding:
            self._is_sounding = is_playing
            self._note("sound_begins" if is_playing else "sound_ends")
        samples, heard = self.player.pull(count)
        self._speaking.feed()
        due = self.player.num_out + int(self.config.latency_s * self.config.rate)
        self._late.extend((due, item.answer, item.position) for item in heard)
        while self._late and self._late[0][0] <= self.player.num_out:
            _, answer, position = self._late.popleft()
            with contextlib.suppress(UsageError):  # the answer was rolled back meanwhile
                self._commands.heard(position, answer=answer)
        return samples

    def _note(self, kind: str, **more: object) -> None:
        self.timeline.add(self.now, kind, **more)

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failure = (
                error if isinstance(error, DuologueError) else DuologueError(f"{type(error).__name__}: {error}")
            )
