"""Conversations by voice without engines: loud samples are speech, and words are what a script says they are."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from duologue.core.config import SessionConfig
from duologue.core.events import Event
from duologue.core.policy import Policy
from duologue.core.transitions import Interruptible
from duologue.errors import EngineError
from duologue.hearing.evidence import Features
from duologue.types import InputState
from duologue.voice.engines.interfaces import Recognition, Speech
from duologue.voice.marks import estimated
from duologue.voice.policy import by_voice
from duologue.voice.sound import RATE, Samples
from duologue.voice.voice import Voice, VoiceConfig
from scripted import Talk, judged

STEP_S = 0.02
BEFORE_S = 0.27  # that an utterance begins before its speech
LETTER_S = 0.04  # that the synthesiser takes to say one
MICROPHONE_RATE = 48_000  # of a browser


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @functools.wraps(test)
    def run(*args: Any, **more: Any) -> None:
        asyncio.run(test(*args, **more))

    return run


def babble(seconds: float) -> Samples:
    """Loud enough, and not so steady that a browser takes it for noise."""
    chance = np.random.default_rng(3)
    parts = []
    while sum(map(len, parts)) < seconds * MICROPHONE_RATE:
        size = int(chance.uniform(0.06, 0.14) * MICROPHONE_RATE)
        t = np.arange(size) / MICROPHONE_RATE
        pitch = chance.uniform(110, 240)
        wave = sum(np.sin(2 * np.pi * pitch * k * t + k) / k for k in range(1, 20))
        parts.append((0.5 * wave / np.abs(wave).max() * np.hanning(size) ** 0.3).astype(np.float32))
    return np.concatenate(parts)[: int(seconds * MICROPHONE_RATE)]


class LoudnessDetector:
    """What is loud is speech."""

    frame = 512

    def __call__(self, samples: Samples) -> float:
        assert len(samples) == self.frame
        return float(np.abs(samples).max() > 0.1)


class ScriptedRecogniser:
    """The words of utterance number n are `scripts[n]`: what is known after so many seconds of speech."""

    def __init__(self, scripts: list[Mapping[float, str]], *, takes_s: float = 0.0, fails: bool = False) -> None:
        self._scripts = scripts
        self.takes_s = takes_s
        self.fails = fails
        self.num_begun = 0
        self.sounds = False  # whether it tells, as the only feature, the seconds that it has heard
        self.clock = Clock()

    def begin(self) -> "ScriptedRecognition":
        self.num_begun += 1
        return ScriptedRecognition(self, self._scripts[self.num_begun - 1])

    async def aclose(self) -> None:
        pass


class ScriptedRecognition(Recognition):
    def __init__(self, owner: ScriptedRecogniser, script: Mapping[float, str]) -> None:
        self._owner = owner
        self._script = script
        self.num_samples = 0

    @property
    def features(self) -> Features | None:
        return np.full((1, 1), self.num_samples / RATE, np.float32) if self._owner.sounds else None

    async def hear(self, samples: Samples, *, last: bool = False) -> str:
        if self._owner.fails:
            raise EngineError("it is deaf")
        self.num_samples += len(samples)
        known = [text for after, text in self._script.items() if self.num_samples >= (after + BEFORE_S) * RATE]
        await self._owner.clock.wait(self._owner.takes_s)
        return known[-1] if known else ""


class LoudSynthesiser:
    """Says every letter in 40 ms, as a constant between two ramps: all other ramps and cuts come from elsewhere."""

    rate = 24_000

    def __init__(self, *, takes_s: float = 0.0) -> None:
        self.texts: list[str] = []
        self.takes_s = takes_s
        self.clock = Clock()

    async def speak(self, text: str) -> Speech:
        self.texts.append(text)
        await self.clock.wait(self.takes_s)
        sound = np.full(int(len(text) * LETTER_S * self.rate), 0.5, np.float32)
        sound[:120], sound[-120:] = np.linspace(0, 0.5, 120), np.linspace(0.5, 0, 120)
        return estimated(text, sound, self.rate)

    async def aclose(self) -> None:
        pass


class Clock:
    """Time that a test lets go by."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    async def wait(self, seconds: float) -> None:
        if seconds > 0:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self.now + seconds, future))
            await future

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [item for item in self._waiting if item[0] <= self.now + 1e-9]
        self._waiting = [item for item in self._waiting if item not in due]
        for _, future in due:
            if not future.done():
                future.set_result(None)


class DirectHandle:
    """A scripted session that runs so many passes a step, in the thread of the test."""

    def __init__(self, talk: Talk, *, passes: int = 4) -> None:
        self.talk = talk
        self.session = talk.session
        self._passes = passes
        self._told: asyncio.Queue[Event] = asyncio.Queue()

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self._told.get()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> None:
        self._tell(self.talk.told(self.session.hear(text, utterance=utterance, final=final)))

    def heard(self, position: int, *, answer: int | None = None) -> None:
        self._tell(self.talk.told(self.session.heard(position, answer=answer)))

    @property
    def is_protected(self) -> bool:
        running = self.session.running
        return running is not None and running.interruptible is not Interruptible.YES

    def step(self, seconds: float) -> None:
        self._tell(self.talk.advance(seconds))
        self._tell(self.talk.tick(self._passes))

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            self._told.put_nowait(event)


class Spoken:
    """A conversation on a virtual clock: sound goes in and comes out in steps of 20 ms."""

    def __init__(
        self,
        scripts: list[Mapping[float, str]],
        answers: dict[str, str] | None = None,
        *,
        recognising_s: float = 0.0,
        speaking_s: float = 0.0,
        fails: bool = False,
        passes: int = 4,
        judge: Callable[[str], InputState | tuple[float, ...]] = judged,
        **config: Any,
    ) -> None:
        talk = Talk(answers, judge=judge, policy=by_voice(Policy()), config=SessionConfig(heard="reported"))
        self.handle = DirectHandle(talk, passes=passes)
        self.recogniser = ScriptedRecogniser(scripts, takes_s=recognising_s, fails=fails)
        self.synthesiser = LoudSynthesiser(takes_s=speaking_s)
        self.synthesiser.clock = self.recogniser.clock
        self.voice = Voice(
            self.handle, LoudnessDetector(), self.recogniser, self.synthesiser, config=VoiceConfig(**config)
        )
        self.out: list[Samples] = []

    async def __aenter__(self) -> "Spoken":
        await self.voice.__aenter__()
        self.voice.follow(self.handle.events())
        await self.hears(0.5, speech=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.voice.__aexit__(*error)
        self.handle.talk.engine.close()

    async def hears(self, seconds: float, *, speech: bool) -> Samples:
        """So much time goes by; returns what was said in it."""
        begin = len(self.out)
        for _ in range(round(seconds / STEP_S)):
            self.voice.push(np.full(int(STEP_S * RATE), 0.5 if speech else 0.0, np.float32))
            self.handle.step(STEP_S)
            self.recogniser.clock.advance(STEP_S)
            for _ in range(8):  # everything that can go on does
                await asyncio.sleep(0)
            self.out.append(self.voice.pull(int(STEP_S * self.voice.config.rate)))
            assert self.voice.failure is None
        return np.concatenate(self.out[begin:])

    def first(self, kind: str, **more: object) -> float:
        """When it happened first."""
        return self.times(kind, **more)[0]

    def times(self, kind: str, **more: object) -> list[float]:
        rows = self.voice.timeline.rows
        return [r["at"] for r in rows if r["type"] == kind and all(r.get(k) == v for k, v in more.items())]

    @property
    def kinds(self) -> list[str]:
        return [row["type"] for row in self.voice.timeline.rows]

    @property
    def history(self) -> list[tuple[str, str]]:
        return self.handle.talk.turns
