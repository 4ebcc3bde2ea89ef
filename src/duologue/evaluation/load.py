"""Puts load on a server: clients on WebSockets ask questions, hear the answers, and keep speaking meanwhile.

Each client asks questions and hears the answers at `words_per_second`; meanwhile it says five more words of an
utterance every two seconds. The model decides on them, but answers are protected: no decision ends one, and words to
answer are answered afterwards. Answers have at most `answer` tokens. The *decision latency* runs from
the words sent to the decision (or refusal) received, both at the client; if none arrives before the next words are
sent, it counts as arriving then. A client is *starved* when it hears nothing for a second while an answer is being
written.
"""

import asyncio
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from duologue.client import Talk, connect
from duologue.core.events import Committed, Decided, Finished, Heard, Refused, Released
from duologue.errors import RemoteError
from duologue.evaluation.quantiles import p50_p95, percentile
from duologue.evaluation.scale import MAX_P95_MS
from duologue.evaluation.simulated_user import SLICES, WORDS, utterances
from duologue.types import SLICE_PERIOD_S, Turn

STARVED_S = 1.0
_UTTERANCES = 3  # between two questions
_REPORTS = 20  # during a measurement
_QUESTIONS = (
    "tell me a long story about a lighthouse keeper",
    "explain how bread is made step by step",
    "what should I know before I visit the mountains",
    "describe a day in the life of a beekeeper",
    "how does a sailing boat move against the wind",
)


@dataclass(frozen=True, slots=True)
class LoadSetting:
    """What to measure."""

    clients: int
    seconds: float
    words_per_second: float = 4.0
    answer: int = 128  # most tokens of an answer: half a minute of speech
    seed: int = 0
    history: Sequence[Turn] = ()  # with which conversations begin
    warm_up: float = 0.0  # seconds before clients begin to speak, in which the server reads the histories


@dataclass(slots=True)
class LoadResult:
    """The results, measured at the clients."""

    setting: LoadSetting
    decisions: list[float] = field(default_factory=list)  # milliseconds
    longest_waits: list[float] = field(default_factory=list)  # seconds, per client, while an answer was written
    answers: int = 0
    failures: list[str] = field(default_factory=list)  # reasons of broken conversations
    memory: list[int] = field(default_factory=list)  # of the server in bytes, at even intervals, if it can be read

    @property
    def starved(self) -> int:
        """Clients that heard nothing for too long."""
        return sum(wait > STARVED_S for wait in self.longest_waits)

    @property
    def realtime(self) -> bool:
        """Whether every client was served in real time."""
        return percentile(self.decisions, 95) < MAX_P95_MS and not self.starved and not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        half = len(self.memory) // 2
        growth = statistics.mean(self.memory[half:]) / statistics.mean(self.memory[:half]) if half else None
        return {
            "clients": self.setting.clients,
            "seconds": self.setting.seconds,
            "answer": self.setting.answer,
            "decisions": len(self.decisions),
            "decision_ms": p50_p95(self.decisions, 1),
            "answers": self.answers,
            "longest_wait_s": round(max(self.longest_waits, default=0.0), 3),
            "starved": self.starved,
            "lost": len(self.failures),
            "failures": self.failures,
            "memory_mb": [round(size / 1e6, 1) for size in self.memory],
            "memory_growth": None if growth is None else round(growth, 4),
            "realtime": self.realtime,
        }


def starts_after_s(number: int, clients: int) -> float:
    """Seconds after which client `number` starts, so that questions and slices do not arrive simultaneously."""
    return SLICE_PERIOD_S * (number * _UTTERANCES * SLICES // clients + number / clients)


class _Client:
    """One client."""

    def __init__(self, number: int, setting: LoadSetting, result: LoadResult) -> None:
        self.longest_wait = 0.0
        self._setting = setting
        self._result = result
        self._chance = random.Random(f"{setting.seed}/{number}")
        self._delay = setting.warm_up + starts_after_s(number, setting.clients)
        self._utterance = ""
        self._slice = ""  # the latest words, until they are decided on
        self._sent_at = 0.0
        self._is_written = False  # whether an answer is being written, so that there is more to hear
        self._heard_at = 0.0

    async def run(self, url: str, token: str | None) -> None:
        """Talk until cancelled.

        Raises:
            RemoteError: the conversation broke off.
        """
        setting = self._setting
        settings = {"hearing": setting.words_per_second, "interruptible": False, "max_answer": setting.answer}
        history = setting.history
        async with await connect(url, token=token, history=history, settings=settings, retry=False) as talk:
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
        said = utterances(self._chance)
        for number in itertools.count():
            talk.hear(self._chance.choice(_QUESTIONS), utterance=f"q{number}", final=True)
            talk.respond()
            self._slice = ""  # words that have just arrived are answered with it, without a decision
            for name, text, is_whole in itertools.islice(said, _UTTERANCES * SLICES):
                if name != self._utterance:
                    self._utterance = name
                    talk.hear("", utterance=name)
                await asyncio.sleep(SLICE_PERIOD_S)
                self._stop_waiting()
                self._slice, self._sent_at = " ".join(text.split()[-WORDS:]), self._now()
                talk.hear(text, utterance=name, final=is_whole)

    def _stop_waiting(self) -> None:
        """Record the decision. If it is still missing, it counts as arriving now."""
        if self._slice:
            self._slice = ""
            self._result.decisions.append((self._now() - self._sent_at) * 1000)

    def _take(self, event: object) -> None:
        match event:
            case Decided(text=text) if text.endswith(self._slice):
                self._stop_waiting()
            case Refused(what=name) if name == self._utterance:
                self._stop_waiting()
            case Released():
                self._is_written, self._heard_at = True, self._now()
            case Heard() if self._is_written:
                self.longest_wait = max(self.longest_wait, self._now() - self._heard_at)
                self._heard_at = self._now()
            case Finished():
                self._is_written = False
            case Committed():
                self._result.answers += 1

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def measure(
    url: str,
    setting: LoadSetting,
    *,
    token: str | None = None,
    memory: Callable[[], int | None] = lambda: None,
    report: Callable[[LoadResult], None] = lambda result: None,
) -> LoadResult:
    """Put the load on the server at `url`.

    `memory` reads the server's size in bytes; `report` is called with the result so far, twenty times.

    Raises:
        RemoteError: no client could connect.
    """
    result = LoadResult(setting)
    clients = [_Client(number, setting, result) for number in range(setting.clients)]
    tasks = [asyncio.create_task(client.run(url, token)) for client in clients]
    try:
        if setting.warm_up:
            await asyncio.wait(tasks, timeout=setting.warm_up)
        for _ in range(_REPORTS):
            await asyncio.wait(tasks, timeout=setting.seconds / _REPORTS, return_when=asyncio.ALL_COMPLETED)
            if (size := memory()) is not None:
                result.memory.append(size)
            report(result)
    finally:
        has_ended = [task.done() for task in tasks]
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    result.longest_waits = [client.longest_wait for client in clients]
    failures = [end for end, early in zip(ends, has_ended, strict=True) if early and isinstance(end, BaseException)]
    if len(failures) == len(tasks) and isinstance(failures[0], RemoteError):
        raise failures[0]
    result.failures = [f"{type(failure).__name__}: {failure}" for failure in failures]
    return result
