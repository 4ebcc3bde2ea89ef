"""When a probability becomes an action. `transitions` says what the actions are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from duologue.core.events import Decision
from duologue.core.transitions import Interruptible
from duologue.core.words import bare
from duologue.errors import require
from duologue.types import InputState


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How probable each state must be, calibrated for an adapter and a weight type.

    The state with the largest p / threshold is chosen: equal thresholds choose the most probable state.
    """

    process: float = 0.5
    incomplete: float = 0.5
    ignore: float = 0.5
    stop: float = 0.5

    def __post_init__(self) -> None:
        for state in InputState:
            require(0.0 < self.of(state) <= 1.0, f"threshold of {state} is {self.of(state)}; it must be in (0, 1]")

    def of(self, state: InputState) -> float:
        """The threshold of `state`."""
        return float(getattr(self, state.value))

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> "Thresholds":
        """Thresholds by the names of states, as in `adapter.json`. Raises `UsageError` for an unknown name."""
        unknown = set(values) - {state.value for state in InputState}
        require(not unknown, f"unknown states {sorted(unknown)} in thresholds; known: {[s.value for s in InputState]}")
        return cls(**{name: float(value) for name, value in values.items()})


ECHO_S = 2.0
"""`Policy.echo_s` where words come from a microphone, which may pick up the assistant's voice."""

RESUME_PHRASES = (
    "go on",
    "please go on",
    "go on please",
    "continue",
    "please continue",
    "carry on",
    "keep going",
    "go ahead",
    "resume",
    "sorry go on",
    "okay go on",
    "ok go on",
    "yes go on",
    "where were you",
    "继续",
    "请继续",
    "你继续",
    "继续吧",
    "继续说",
    "请继续说",
    "继续讲",
    "接着说",
    "你接着说",
    "接着讲",
    "说下去",
    "讲下去",
)
_PERMISSIONS = frozenset(("go ahead", "yes go on"))


_LEAST_P = 1e-6  # keeps odds finite


@dataclass(frozen=True, slots=True)
class Policy:
    """How eager the assistant is (choices 4, 6, 7 and 8). `eagerness` changes waits and thresholds together."""

    idle: Thresholds = Thresholds()  # while the assistant is silent
    speaking: Thresholds = Thresholds()  # while the user hears an answer
    eagerness: float = 0.0  # -1 patient … 1 eager: 1 halves the waits and the threshold of process, -1 doubles them
    settle_ms: float = 600.0  # a prepared answer is released after this time without new words
    p_sure: float = 0.97  # or at once, if process is at least this probable
    p_goes_on: float = 0.17  # with a timing pair, replaces both: the answer is released once the probability that the
    # speaker goes on has fallen to this value; eagerness e multiplies its odds by 16^e
    pause_ms: float = 1000.0  # mean length of a pause within a turn
    num_intervals: float = 1.2  # with a timing pair, words that have not ended wait for so many intervals at which they
    # were reported: a shorter silence tells nothing about the speaker
    longest_wait_ms: float = 2000.0  # the wait by the timing pair is never longer, whatever the eagerness
    needs_final: bool = False  # if set, only words that have ended are released by the timing pair
    period_s: float = 1.0  # length of a quiet period
    quiet_periods: int = 4  # after this many, an incomplete input is answered (silent) or dropped (speaking)
    reply_s: float = 6.0  # behind its question, held or ignored words are answered after this time; 0: no such rule
    answers_unfinished: bool = False  # if set, it is answered when speaking, too, if process beats ignore
    interruptible: Interruptible = Interruptible.YES  # of answers, unless `Session.protect` says otherwise
    resume_phrases: tuple[str, ...] = RESUME_PHRASES  # processed while an answer is suspended, they resume it
    echo_s: float = 0.0  # words are an echo if they repeat what was heard at most so many seconds before; 0: never
    cut_note: str = ""  # appended to a cut answer to tell the model that it was cut, for instance " —"

    def __post_init__(self) -> None:
        require(-1.0 <= self.eagerness <= 1.0, f"eagerness {self.eagerness} is not between -1 (patient) and 1 (eager)")
        require(
            min(self.settle_ms, self.pause_ms, self.longest_wait_ms) >= 0,
            "settle_ms, pause_ms and longest_wait_ms must not be negative",
        )
        require(self.num_intervals >= 0.0, f"num_intervals {self.num_intervals} must not be negative")
        require(self.reply_s >= 0.0, f"reply_s {self.reply_s} must not be negative; 0 switches the rule off")
        require(self.echo_s >= 0.0, f"echo_s {self.echo_s} must not be negative; 0 switches the echo guard off")
        require(0.0 < self.p_goes_on < 1.0, f"p_goes_on {self.p_goes_on} is not between 0 and 1")
        require(self.period_s > 0 and self.quiet_periods >= 1, "period_s must be positive, quiet_periods at least 1")
        require(self.p_sure > 0.0, f"p_sure {self.p_sure} must be positive; above 1 it never applies")

    @property
    def settle_s(self) -> float:
        """Seconds without new words after which a prepared answer is released, if nothing tells who goes on."""
        return self.settle_ms / 1000.0 * math.exp2(-self.eagerness)

    def wait_s(self, decision: Decision | None, *, final: bool, interval: float = 0.0) -> float:
        """Seconds without new words after which the answer to words is released, by the decision on them.

        A timing pair also rules words that have ended (`final`), since another sentence may follow. Those that have not
        were reported every `interval` seconds, so the next ones may still be on their way.
        """
        p_ends = None if decision is None else decision.p_ends
        if p_ends is not None and (final or not self.needs_final):
            reports_s = 0.0 if final else self.num_intervals * interval * math.exp2(-self.eagerness)
            return max(self._timed_wait_s(p_ends), min(reports_s, self.longest_wait_ms / 1000.0))
        is_sure = decision is not None and decision.state is InputState.PROCESS and decision.p >= self.p_sure
        return 0.0 if final or (is_sure and p_ends is None) else self.settle_s

    def _timed_wait_s(self, p_ends: float) -> float:
        """Seconds of silence after which the speaker goes on with a probability of at most `p_goes_on`.

        If the lengths of pauses are distributed exponentially, silence divides the odds of going on by e in every
        `pause_ms`.
        """
        p_ends = min(max(p_ends, _LEAST_P), 1.0 - _LEAST_P)
        limit = self.p_goes_on / (1.0 - self.p_goes_on) * math.exp2(4.0 * self.eagerness)
        wait = self.pause_ms / 1000.0 * math.log((1.0 - p_ends) / p_ends / limit)
        return min(max(wait, 0.0), self.longest_wait_ms / 1000.0)

    @property
    def patience_s(self) -> float:
        """Seconds without new words after which an incomplete input is answered or dropped."""
        return self.period_s * self.quiet_periods * math.exp2(-self.eagerness)

    def decide(
        self, states: tuple[InputState, ...], p: tuple[float, ...], *, speaking: bool, p_ends: float | None = None
    ) -> Decision:
        """Choose one of `states`, whose probabilities are `p`. `p_ends`: that the speaker's turn ends, if known."""
        thresholds = self.speaking if speaking else self.idle

        limits = {state: thresholds.of(state) for state in states}
        limits[InputState.PROCESS] = thresholds.process * math.exp2(-self.eagerness)
        best = max(range(len(states)), key=lambda i: p[i] / limits[states[i]])
        return Decision(states[best], p[best], tuple(zip(states, p, strict=True)), p_ends)

    def decide_unfinished(self, decision: Decision) -> InputState:
        """The state of words that stayed incomplete over an answer for too long."""
        others = [(state, p) for state, p in decision.probabilities if state is not InputState.INCOMPLETE]
        others.sort(key=lambda other: other[0] is not InputState.IGNORE)  # on a tie, the answer continues
        if not self.answers_unfinished or not others:
            return InputState.IGNORE
        states, p = zip(*others, strict=True)
        return self.decide(states, p, speaking=True).state

    def asks_to_resume(self, text: str, *, is_newest: bool) -> bool:
        """Whether `text` is one of `resume_phrases`, ignoring case and punctuation.

        Permission ("go ahead") is about what was said last: it resumes a cut answer only if that `is_newest`.
        """
        phrase = bare(text)
        return phrase in map(bare, self.resume_phrases) and (is_newest or phrase not in _PERMISSIONS)
