"""A spoken conversation without devices: frames in, frames out, a session in between.

The input is the clock. Everything runs in the event loop's thread; slow operations are awaited.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from duologue.core import events as e
from duologue.core.words import words_in
from duologue.errors import DuologueError, UsageError
from duologue.hearing.evidence import Features
from duologue.types import InputState
from duologue.voice.engines.interfaces import Recogniser, SpeechDetector, Synthesiser
from duologue.voice.player import Player
from duologue.voice.segmenter import Segmenter, Sensitivity
from duologue.voice.sound import RATE, Samples, silence
from duologue.voice.synthesis import AnswerSynthesis
from duologue.voice.timeline import Timeline
from duologue.voice.utterance import SpokenUtterance


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
        hear_sound: Callable[[str, Features], None] | None = None,
    ) -> None:
        """`hear_sound` receives how an utterance sounds, with its name, right after its words (None: words alone)."""
        self.config = config or VoiceConfig()
        self.timeline = timeline or Timeline()
        self.player = Player(self.config.rate, fades=self.config.fades)
        self._commands = commands
        self._detector = detector
        self._recogniser = recogniser
        self._segmenter = Segmenter(self.config.sensitivity)
        self._synthesis = AnswerSynthesis(synthesiser, self.player, self._note)
        self._name = name
        self._hear_sound = hear_sound
        self._rest = silence(0)  # pushed, but less than a frame
        self._num_in = 0
        self._before: deque[Samples] = deque(maxlen=max(1, round(self.config.before_s * RATE / detector.frame)))
        self._current: SpokenUtterance | None = None  # the utterance being spoken
        self._open: dict[str, SpokenUtterance] = {}  # by name: it, and those which are ending
        self._num_utterances = 0
        self._unjudged: SpokenUtterance | None = None  # the last one that ended before its last words were judged
        self._back_at: float | None = None
        self._late: deque[tuple[int, int, int]] = deque()  # heard after so many output samples: answer, position
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_sounding = False
        self.yields = True  # whether the answer is ducked, paused and held back while the user speaks
        self.failure: DuologueError | None = None  # set if the conversation cannot continue

    async def __aenter__(self) -> "Voice":
        self._start(self._synthesis.run())
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
        for utterance in tuple(self._open.values()):
            if forgets:
                utterance.text = ""
            self._finish(utterance)
        self._detect_anew()

    def end(self) -> list[SpokenUtterance]:
        """End the utterance under way without waiting for silence; later sound begins another one.

        Returns the utterances whose last words are still being recognised.
        """
        self.push(silence(-len(self._rest) % self._detector.frame))  # completes the last frame
        if self._current is not None:
            self._end(self._current)
        self._detect_anew()
        return list(self._open.values())

    def _detect_anew(self) -> None:
        self._current = None
        self._before.clear()
        self._segmenter = Segmenter(self.config.sensitivity)  # continued speech begins a new utterance

    @property
    def is_hearing(self) -> bool:
        """Whether the user is speaking."""
        return self._current is not None

    @property
    def now(self) -> float:
        """Seconds of input so far."""
        return (self._num_in + len(self._rest)) / RATE

    @property
    def is_idle(self) -> bool:
        """Whether nobody speaks, nothing is being recognised, and nothing is left to play."""
        return not self._open and not self._synthesis.is_busy and not self.player.is_playing

    # ------------------------------------------------------------------ listening

    def push(self, samples: Samples) -> None:
        """Add input, `[n]` at 16 kHz, of any length."""
        self._rest = np.concatenate([self._rest, samples])
        size = self._detector.frame
        while len(self._rest) >= size:
            frame, self._rest = self._rest[:size], self._rest[size:]
            self._num_in += size
            self._listen(frame)
        self._synthesis.feed()
        if self._back_at is not None and self.now >= self._back_at:
            self._come_back("quiet")
        elif self.player.is_paused and self._commands.is_protected:
            self._come_back("protected")
        elif not self.player.is_paused:
            for utterance in self._open.values():
                if utterance.spoken_s >= self.config.yield_s:
                    self._yields_to(utterance)

    def _yields_to(self, utterance: SpokenUtterance) -> bool:
        """Pause the answer for unfinished words, if it may be interrupted, until it is decided whether to cut it.

        Returns whether it is paused for them.
        """
        is_asked = utterance.state is InputState.INCOMPLETE and self.yields and self._synthesis.is_under_way
        if not is_asked or self._commands.is_protected:
            return False
        self._back_at = None
        if not self.player.is_paused:
            self.player.pause(True)
            self._note("yielded", utterance=utterance.name)
        return True

    def _listen(self, frame: Samples) -> None:
        begins = self._segmenter.push(self._detector(frame))
        utterance = self._current
        if utterance is None:
            self._before.append(frame)
            if begins:
                self._begin()
            return
        utterance.add(frame, is_speech=self._segmenter.is_speech)
        quiet_s = self._segmenter.num_quiet * len(frame) / RATE
        if quiet_s >= self._end_s(utterance):
            self._end(utterance)
        elif self._is_due(utterance, quiet_s):
            self._recognise(utterance)

    def _begin(self) -> None:
        """Speech begins: open the input channel and duck the answer."""
        self._num_utterances += 1
        name = f"{self._name}-{self._num_utterances}"
        self._current = self._open[name] = SpokenUtterance(name, self._recogniser.begin(), list(self._before), self.now)
        self._before.clear()
        self._unjudged = None
        self._note("speech_started", utterance=name)
        self._command("", self._current, final=False)
        if not self.yields:
            return
        self._back_at = None
        self._synthesis.is_interrupted = True
        if self.player.is_playing and not self.player.is_ducked:
            self.player.duck(True)
            self._note("ducked", utterance=name)

    def _is_due(self, utterance: SpokenUtterance, quiet_s: float) -> bool:
        """Whether to recognise its words now: enough sound is new, or the last word may have been spoken."""
        if utterance.is_recognising or utterance.new_s <= 0:
            return False
        least_s = self.config.partial_s if utterance.num_recognised else self.config.before_s + self.config.first_s
        is_paused = quiet_s >= self.config.pause_s and not utterance.is_covered
        return is_paused or (self._segmenter.is_speech and utterance.new_s >= least_s)

    def _end_s(self, utterance: SpokenUtterance) -> float:
        """Seconds of silence that end it: few if all its words are known and judged complete."""
        if not utterance.is_covered:
            return self.config.end_s
        if not utterance.text:
            return self.config.no_words_end_s
        return self.config.end_s if utterance.state in (None, InputState.INCOMPLETE) else self.config.sure_end_s

    def _end(self, utterance: SpokenUtterance) -> None:
        self._current = None
        self._before.clear()
        utterance.is_ending = True
        spoken_to = self.now - (utterance.num_samples - utterance.voiced_to) / RATE  # the end of its last speech
        self._note("speech_ended", utterance=utterance.name, spoken_to=round(spoken_to, 4))
        if not utterance.is_recognising:
            self._conclude(utterance)

    def _conclude(self, utterance: SpokenUtterance) -> None:
        """Speech has ended: finish the utterance if its words are known, else recognise the last ones."""
        if utterance.is_covered:
            self._finish(utterance)
        else:
            self._recognise(utterance)

    def _recognise(self, utterance: SpokenUtterance) -> None:
        utterance.is_recognising = True
        self._start(self._recognised(utterance))

    async def _recognised(self, utterance: SpokenUtterance) -> None:
        to, began, loop = utterance.num_samples, self.now, asyncio.get_running_loop()
        before = loop.time()
        try:
            text = words_in(await utterance.recognition.hear(utterance.take(), last=utterance.is_ending))
        except DuologueError as error:
            self._note("recogniser_failed", message=str(error))
            text = utterance.text
        utterance.is_recognising = False
        if utterance.over.is_set():
            return  # the call ended meanwhile
        took = round(loop.time() - before, 4)
        utterance.num_recognised = to
        self._note(
            "recognised", utterance=utterance.name, text=text, began=round(began, 4), took=took, heard_s=to / RATE
        )
        if text != utterance.text:
            utterance.text, utterance.state, utterance.is_dropped = text, None, False
            if text:
                self._command(text, utterance, final=False)
        self._tell_sound(utterance)
        if utterance.is_ending:
            self._conclude(utterance)

    def _finish(self, utterance: SpokenUtterance) -> None:
        """All its words are known, and no more will follow."""
        if utterance.over.is_set():
            return
        utterance.over.set()
        del self._open[utterance.name]
        self._command(utterance.text, utterance, final=True)
        if not self._open:
            self._synthesis.is_interrupted = False
            self._unjudged = utterance if utterance.state is None else None
            if utterance.is_dropped:
                self._come_back("dropped")
            elif not self._yields_to(utterance) and self.player.is_subdued:
                self._back_at = self.now + self.config.back_s

    def _command(self, text: str, utterance: SpokenUtterance, *, final: bool) -> None:
        try:
            self._commands.hear(text, utterance=utterance.name, final=final)
        except DuologueError as error:
            self.failure = error

    def _tell_sound(self, utterance: SpokenUtterance) -> None:
        """Pass on how the words of `utterance` sound. What they are judged by can change though they stay the same."""
        features = utterance.recognition.features
        if self._hear_sound is None or features is None or not utterance.text:
            return
        try:
            self._hear_sound(utterance.name, features)
        except DuologueError as error:
            self.failure = error

    # ------------------------------------------------------------------ events of the session

    async def _follow(self, events: AsyncIterator[e.Event]) -> None:
        async for event in events:
            self.take(event)

    def take(self, event: e.Event) -> None:
        """Take the next event of the session."""
        row = e.as_dict(event)
        at = row.pop("at")  # on the engine's clock; the rows are on the input's
        if (heard_at := row.pop("heard_at", None)) is not None:
            row["latency"] = round(at - heard_at, 4)
        self._note(row.pop("type"), **row)
        match event:
            case e.Said(answer=answer, start=start, text=text):
                self._synthesis.say(answer, start, text)
            case e.Finished(answer=answer):
                self._synthesis.finish(answer)
            case e.Suspended() | e.Withdrawn() | e.TakenBack() | e.Edited():
                self._fall_silent()
            case e.Decided(text=text, decision=decision):
                for utterance in self._open.values():
                    utterance.judged(text, decision.state)
                if (ended := self._unjudged) is not None:
                    ended.judged(text, decision.state)
                    if ended.state is not None:
                        self._unjudged = None
                        self._yields_to(ended)
            case e.Dropped(utterance=name):
                self._dropped(name)
            case _:
                pass

    def _dropped(self, name: str) -> None:
        """The words of an utterance have no consequence: the answer continues as before."""
        if name in self._open:
            self._open[name].is_dropped = True
        if all(utterance.is_dropped for utterance in self._open.values()):
            self._synthesis.is_interrupted = False
            if not self.player.is_paused or all(utterance.is_surely_ignored for utterance in self._open.values()):
                self._come_back("dropped")

    def _fall_silent(self) -> None:
        was_playing = self.player.is_playing
        self._synthesis.forget()
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
        self._synthesis.feed()
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
