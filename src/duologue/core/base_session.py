"""The interface that engines drive: words and commands in, `plan` and `take` around each forward pass, events out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import TypeAlias

from duologue.core.answer import Answer
from duologue.core.backend import Extend, Step
from duologue.core.cache import CacheOperations, Plan
from duologue.core.config import SessionConfig
from duologue.core.events import Event, EventLog, Received, Refused
from duologue.core.prompt import Probe, Template
from duologue.core.words import words_in
from duologue.errors import UsageError, require
from duologue.types import Seq, Turn, VirtualId, well_formed

_EXCERPT = 80  # characters of a refused text that an event carries


class Phase(StrEnum):
    """What is going on; `trace` adds up costs by phase."""

    SILENCE = "silence"
    LISTENING = "listening"
    SPEAKING = "speaking"
    OVERLAP = "overlap"


class BaseSession(ABC):
    """A conversation as an engine sees it: `Session`, and the baselines that it is compared with."""

    def __init__(self, template: Template, probe: Probe, config: SessionConfig | None) -> None:
        self.template = template
        self.probe = probe
        self.config = config or SessionConfig()
        self._log = EventLog()
        self._cache = CacheOperations(self.config.chunk)

    # ------------------------------------------------------------------ what can be seen

    @property
    def now(self) -> float:
        """The session's time in seconds."""
        return self._log.now

    @property
    def most_entries(self) -> int:
        """KV entries of the backend that the conversation may grow to, not counting what can be given up."""
        return self.config.max_length

    @property
    def phase(self) -> Phase:
        """What the next pass is for."""
        if self.running is not None:
            return Phase.OVERLAP if self._is_listening else Phase.SPEAKING
        return Phase.LISTENING if self._is_listening else Phase.SILENCE

    @property
    @abstractmethod
    def _is_listening(self) -> bool:
        """Whether the next pass reads words of the user that have not been judged."""

    @property
    @abstractmethod
    def history(self) -> list[Turn]:
        """What was said to the assistant, and what was heard of it, as far back as the context reaches."""

    @property
    @abstractmethod
    def running(self) -> Answer | None:
        """The running answer, to be read: its id, its text, what has been heard of it."""

    @property
    @abstractmethod
    def num_answers(self) -> int:
        """Answers that have begun so far; their ids count from 0."""

    @property
    @abstractmethod
    def input_text(self) -> str | None:
        """The words that have been neither answered nor dropped; None while there are none."""

    @property
    @abstractmethod
    def backlog(self) -> int:
        """About how many tokens wait to be fed, excluding those in flight and those of the other two backlogs."""

    @property
    def compaction_backlog(self) -> int:
        """Tokens of a compaction in progress that nothing waits for, since the old context still has room."""
        return 0

    @property
    def deferrable_backlog(self) -> int:
        """Tokens of an answer that is well ahead of its listener. They can wait for a pass that runs anyway."""
        return 0

    @property
    @abstractmethod
    def next_deadline(self) -> float | None:
        """Session time at which `advance` will change something, if nothing else happens before."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens unless words, reports of hearing or commands come."""
        waiting = self.backlog or self.deferrable_backlog or self.compaction_backlog
        return not waiting and not self._cache.is_in_flight and self.next_deadline is None

    # ------------------------------------------------------------------ input and commands

    def advance(self, now: float) -> list[Event]:
        """Set the time to `now` (seconds, never decreasing). The first wait that has ended takes effect.

        Raises:
            UsageError: `now` is earlier than before.
        """
        if now < self.now:
            raise UsageError(f"time goes forward only: {now} is before {self.now}")
        self._log.now = now
        self._act_on_time()
        return self._settle()

    def hear(self, text: str, *, utterance: str = "user", final: bool = False) -> list[Event]:
        """The words of `utterance` are now `text`: all of it so far, which may also revise earlier words.

        The paper's slices are passed in the same way: each call adds one slice (`duologue.text.slicing.partials`).
        Empty text is the onset of speech. `final` ends the utterance; afterwards, the same id names a new one. A text
        of more than `SessionConfig.max_user_characters` is refused, and nothing of it is kept. Non-speech text (see
        `words_in`) is dropped unread, or takes back the words that it replaces.
        """
        if len(text) > self.config.max_user_characters:
            self._log.add(Refused(self.now, utterance, self.config.too_long))
            self._refuse(utterance, well_formed(text[:_EXCERPT]).strip(), "too long", final=final)
            return self._settle()
        text = well_formed(text).strip()
        words = words_in(text)
        if text and not words and not self._may_take_back(utterance):
            self._log.add(Received(self.now, utterance, text, final))
            self._refuse(utterance, text, "no words", final=final)
        else:
            self._hear(utterance, words, final=final)
        return self._settle()

    def hear_sound(self, evidence: Sequence[VirtualId], *, utterance: str = "user") -> list[Event]:
        """What the sound of `utterance` tells beyond its latest words: soft tokens, from `Model.evidence`.

        They are fed between the words and the probe and rolled back with it, so that no answer is given after them.
        New words are judged without them until they come with their own. Sound of an utterance that is not being heard
        any more changes nothing; nor does any sound in sessions that are not duplex.

        Raises:
            UsageError: there are more of them than the probe has room for.
        """
        require(
            len(evidence) <= self.probe.num_soft,
            f"{len(evidence)} soft tokens, but this probe takes {self.probe.num_soft}; use those of Model.evidence",
        )
        self._hear_sound(tuple(evidence), utterance)
        return self._settle()

    def heard(self, position: int, *, answer: int | None = None) -> list[Event]:
        """The user has heard the answer (the running one, or the one of that id) up to character `position`.

        It is rounded down to a whole word. Late reports, for an answer that was cut, change nothing.

        Raises:
            UsageError: there has never been such an answer, or the position is beyond what was said.
        """
        require(
            answer is None or 0 <= answer < self.num_answers,
            f"there is no answer {answer}; the newest is {self.num_answers - 1}",
        )
        running = self.running
        if running is not None and answer in (None, running.id):
            num_said = running.num_said
            require(0 <= position <= num_said, f"position {position} is not within the {num_said} characters said")
            self._heard(running, position)
        return self._settle()

    @abstractmethod
    def respond(self) -> list[Event]:
        """Answer what is being heard now, whatever its state. Without words, let the assistant speak."""

    @abstractmethod
    def stop(self) -> list[Event]:
        """End the assistant's speech. What is being heard stays."""

    @abstractmethod
    def resume(self) -> list[Event]:
        """Continue the answer that was cut last."""

    @abstractmethod
    def edit(self, history: Sequence[Turn]) -> list[Event]:
        """Replace the history. A running answer, suspended ones and the words being heard are given up.

        Raises:
            ContextOverflow: the turns do not fit.
            TemplateError: the model's template does not allow these turns.
        """

    # ------------------------------------------------------------------ plan and take

    @abstractmethod
    def plan(self, limit: int | None = None, compaction_limit: int | None = None) -> Plan:
        """What to run next: operations on the cache, then one pass over everything that is pending.

        The pass feeds at most `limit` tokens: those of the answer first, then the words being heard, then those of a
        compaction. The rest stays pending. The probe is never split: a limit below its length postpones the decision.
        `compaction_limit` is a separate budget, on top of `limit`, for a compaction that nothing waits for.
        """

    @abstractmethod
    def take(self, steps: Sequence[Step]) -> list[Event]:
        """Process the results of a pass. Results that are no longer wanted are discarded."""

    def lose(self, batch: Sequence[Extend]) -> None:
        """Record that the pass over `batch` did not take place. Its work is planned again."""
        self._cache.lose(batch)

    def wants(self, ticket: int) -> bool:
        """Whether the result of the work in flight with `ticket` still counts. If not, it may be lost (see `lose`)."""
        return self._cache.work(ticket) is not None

    @abstractmethod
    def make_room(self, full: Collection[Seq] | None = None) -> bool:
        """Give up the least valuable content because the cache is full. Returns whether there was anything left.

        `full`: the sequences that are in this cache; None: all are.
        """

    def evict(self) -> bool:
        """Give up KV that can be recomputed later. Returns whether there was any."""
        return False

    def close(self) -> Plan:
        """End the conversation: the returned plan frees everything it holds."""
        self._free()
        return self._cache.flush()

    # ------------------------------------------------------------------ implemented by each kind of session

    @abstractmethod
    def _act_on_time(self) -> None:
        """Time has passed."""

    @abstractmethod
    def _hear(self, utterance: str, text: str, *, final: bool) -> None:
        """See `hear`; `text` is well-formed, stripped, not too long, and empty if it is non-speech text."""

    def _hear_sound(self, evidence: tuple[VirtualId, ...], utterance: str) -> None:  # noqa: B027 - others read words
        """See `hear_sound`."""

    @abstractmethod
    def _refuse(self, utterance: str, excerpt: str, reason: str, *, final: bool) -> None:
        """Drop a text of `utterance` that begins with `excerpt`, for `reason`, without reading it."""

    @abstractmethod
    def _may_take_back(self, utterance: str) -> bool:
        """Whether earlier words of `utterance` can still be taken back."""

    @abstractmethod
    def _heard(self, answer: Answer, position: int) -> None:
        """See `heard`; `answer` is the running one."""

    @abstractmethod
    def _free(self) -> None:
        """Free all sequences."""

    def _follow_up(self) -> None:  # noqa: B027 - not every kind has something to do
        """Carry out the consequences of the last change."""

    def _settle(self) -> list[Event]:
        """Carry out the consequences of the last change. Returns the events since the last call."""
        self._follow_up()
        return self._log.drain()


SessionFactory: TypeAlias = Callable[..., BaseSession]
"""Makes a session of some kind, from the arguments that `Session` takes."""
