"""Load on a server: clients on WebSockets, each of which is spoken to and speaks all the while.

Each client asks questions, hears the answers at `words_per_second`, and meanwhile says five more words of an utterance
every two seconds. The model judges them; answers are protected, so that what it thinks does not end them, and what
should be answered is answered afterwards. Answers have `answer` tokens at most. The *decision latency* runs from the
words sent to the decision (or refusal) received, both at the client; if there is none before the next words are sent,
it counts as if it came then. A client is *starved* when it does not hear on for a second while an answer is being
written.
"""

import asyncio
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from duologue.client import Talk, connect
from duologue.core.events import Committed, Decided, Finished, Heard, Refused, Released
from duologue.errors import RemoteError
from duologue.evaluation.people import words
from duologue.evaluation.quantiles import percentile
from duologue.evaluation.scale import MAX_P95_MS
from duologue.types import SLICE_PERIOD_S

STARVED_S = 1.0
_SLICES = 4  # of an utterance
_WORDS = 5  # of a slice
_UTTERANCES = 3  # between two questions
_QUESTIONS = (
    "tell me a long story about a lighthouse keeper",
    "explain how bread is made step by step",
    "what should I know before I visit the mountains",
    "describe a day in the life of a beekeeper",
    "how does a sailing boat move against the wind",
)


@dataclass(frozen=True, slots=True)
class LoadSetting:
    """What is to be measured."""

    clients: int
    seconds: float
    words_per_second: float = 4.0
    answer: int = 128  # most tokens of an answer: half a minute of speech
    seed: int = 0


@dataclass(slots=True)
class LoadOutcome:
    """What was measured, at the clients."""

    setting: LoadSetting
    decisions: list[float] = field(default_factory=list)  # milliseconds
    longest_waits: list[float] = field(default_factory=list)  # seconds, of each client, while an answer was written
    answers: int = 0
    failures: list[str] = field(default_factory=list)  # of conversations that broke off: why
    memory: list[int] = field(default_factory=list)  # bytes of the server at even intervals, if they could be read

    @property
    def starved(self) -> int:
        """Clients that did not hear on in time."""
        return sum(wait > STARVED_S for wait in self.longest_waits)

    @property
    def realtime(self) -> bool:
        """Whether everybody was served in time."""
        return percentile(self.decisions, 95) < MAX_P95_MS and not self.starved and not self.failures

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        decisions = self.decisions
        half = len(self.memory) // 2
        return {
            "clients": self.setting.clients,
            "seconds": self.setting.seconds,
            "answer": self.setting.answer,
            "decisions": len(decisions),
            "decision_ms": {f"p{p}": round(percentile(decisions, p), 1) for p in (50, 95)},
            "answers": self.answers,
            "longest_wait_s": round(max(self.longest_waits, default=0.0), 3),
            "starved": self.starved,
            "lost": len(self.failures),
            "failures": self.failures,
            "memory_mb": [round(size / 1e6, 1) for size in self.memory],
            "memory_growth": round(statistics.mean(self.memory[half:]) / statistics.mean(self.memory[:half]), 4)
            if half
            else None,
            "realtime": self.realtime,
        }


def begins_s(number: int, clients: int) -> float:
    """Seconds after which client `number` begins: neither questions nor slices are said in chorus."""
    return SLICE_PERIOD_S * (number * _UTTERANCES * _SLICES // clients + number / clients)


class _Caller:
    """One client."""

    def __init__(self, number: int, setting: LoadSetting, outcome: LoadOutcome) -> None:
        self.longest_wait = 0.0
        self._setting = setting
        self._outcome = outcome
        self._chance = random.Random(f"{setting.seed}/{number}")
        self._delay = begins_s(number, setting.clients)
        self._name = ""  # of the utterance
        self._slice = ""  # its words said last, until they are decided on
        self._sent_at = 0.0
        self._is_written = False  # whether an answer is being written, so that there is more to hear
        self._heard_at = 0.0

    async def call(self, url: str, token: str | None) -> None:
        """Talk until cancelled.

        Raises:
            RemoteError: the conversation broke off.
        """
        setting = self._setting
        settings = {"hearing": setting.words_per_second, "interruptible": False, "max_answer": setting.answer}
        async with await connect(url, token=token, settings=settings, retry=False) as talk:
            speaking = asyncio.create_task(self._speak(talk))
            try:
                async for event in talk.events():
                    self._take(event)
                raise RemoteError("the server ended the conversation")
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)

    async def _speak(self, talk: Talk) -> None:
        await asyncio.sleep(self._delay)
        number = 0
        while True:
            talk.hear(self._chance.choice(_QUESTIONS), utterance=f"q{number}", final=True)
            talk.respond()
            self._slice = ""  # words that have only just come are answered with it, undecided
            for _ in range(_UTTERANCES):
                number += 1
                await self._utter(talk, f"u{number}")

    async def _utter(self, talk: Talk, name: str) -> None:
        text = words(self._chance, _SLICES * _WORDS).split()
        self._name = name
        talk.hear("", utterance=name)
        for end in range(_WORDS, len(text) + 1, _WORDS):
            await asyncio.sleep(SLICE_PERIOD_S)
            self._give_up_waiting()
            self._slice, self._sent_at = " ".join(text[end - _WORDS : end]), self._now()
            talk.hear(" ".join(text[:end]), utterance=name, final=end == len(text))

    def _give_up_waiting(self) -> None:
        """A decision that has not come, or is on its way, counts as if it came now."""
        if self._slice:
            self._slice = ""
            self._outcome.decisions.append((self._now() - self._sent_at) * 1000)

    def _take(self, event: object) -> None:
        match event:
            case Decided(text=text) if text.endswith(self._slice):
                self._give_up_waiting()
            case Refused(what=name) if name == self._name:
                self._give_up_waiting()
            case Released():
                self._is_written, self._heard_at = True, self._now()
            case Heard() if self._is_written:
                self.longest_wait = max(self.longest_wait, self._now() - self._heard_at)
                self._heard_at = self._now()
            case Finished():
                self._is_written = False
            case Committed():
                self._outcome.answers += 1

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def load(
    url: str,
    setting: LoadSetting,
    *,
    token: str | None = None,
    memory: Callable[[], int | None] = lambda: None,
    told: Callable[[LoadOutcome], None] = lambda outcome: None,
) -> LoadOutcome:
    """Put the load on the server at `url`. `memory` reads its size in bytes; `told` is called twenty times on the way.

    Raises:
        RemoteError: nobody could connect.
    """
    outcome = LoadOutcome(setting)
    callers = [_Caller(number, setting, outcome) for number in range(setting.clients)]
    tasks = [asyncio.create_task(caller.call(url, token)) for caller in callers]
    try:
        for _ in range(20):
            await asyncio.wait(tasks, timeout=setting.seconds / 20, return_when=asyncio.ALL_COMPLETED)
            if (size := memory()) is not None:
                outcome.memory.append(size)
            told(outcome)
    finally:
        has_ended = [task.done() for task in tasks]
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    outcome.longest_waits = [caller.longest_wait for caller in callers]
    failures = [end for end, early in zip(ends, has_ended, strict=True) if early and isinstance(end, BaseException)]
    if len(failures) == len(tasks) and isinstance(failures[0], RemoteError):
        raise failures[0]
    outcome.failures = [f"{type(failure).__name__}: {failure}" for failure in failures]
    return outcome
