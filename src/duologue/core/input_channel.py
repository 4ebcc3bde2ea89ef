"""The listening side: the words being heard, on a fork of the output channel, and what became of earlier words.

Knows utterances and their place in the cache, but no answers; `channels` says what a state leads to.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from duologue.core.cache import CacheOperations, TokenSequence, Work
from duologue.core.config import SessionConfig
from duologue.core.events import Decision, Dropped, EventLog, Held, Refused
from duologue.core.prompt import Probe, Template
from duologue.types import InputState, Token, VirtualId

_CHARACTERS_PER_TOKEN = 4  # about
_MAX_REMEMBERED = 32  # utterances that were dropped, and as many that were answered
_MAX_ALIGNED = 200  # words of a revised text that are aligned with the words before


@final
@dataclass(slots=True, eq=False)
class Utterance:
    """Words of one speaker that grow and end. The first `skip` characters of `text` belong to an earlier turn."""

    id: str
    text: str = ""
    final: bool = False
    skip: int = 0
    evidence: tuple[VirtualId, ...] = ()  # soft tokens that tell how these words sound
    interval: float = 0.0  # seconds between two changes of the text, at least; 0: it has not changed twice
    _changed_at: float | None = None

    def change(self, text: str, now: float) -> None:
        """Set the text at session time `now`."""
        self.text = text
        if self._changed_at is not None:
            since = now - self._changed_at
            self.interval = min(self.interval, since) if self.interval else since
        self._changed_at = now

    @property
    def words(self) -> str:
        """The part of the text that belongs to the current turn."""
        return self.text[self.skip :].strip()


def find_open(utterances: Iterable[Utterance], name: str) -> Utterance | None:
    """The utterance with the id `name`, if it is still growing."""
    return next((one for one in utterances if one.id == name and not one.final), None)


def join_words(utterances: Iterable[Utterance]) -> str:
    """The words of a turn that consists of `utterances`."""
    return " ".join(words for one in utterances if (words := one.words))


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where the next user turn continues the output channel: after the part that the user has heard.

    Two fork points are equal if a turn at one of them is the same, token by token, as at the other.
    """

    sequence: TokenSequence = field(compare=False)  # that of the output channel
    at: int  # number of its items that the fork shares
    opening: tuple[Token, ...]  # closes the turn before, in front of the user's opener
    is_first: bool  # whether nothing came before
    epoch: int  # of the output channel


class Prefix(Protocol):
    """What an input channel forks from: the output channel, or a listener's transcript."""

    @property
    def epoch(self) -> int:
        """Counts rollbacks and replacements: forks of an earlier epoch are out of date."""

    def fork_point(self) -> ForkPoint:
        """Where the next user turn begins."""

    def is_read(self, point: ForkPoint) -> bool:
        """Whether so much in front of `point` is cached that it is time to fork: the rest is fed with the words."""

    def take_back(self) -> TokenSequence:
        """Roll back the running answer, of which nothing was heard, and the turn before it.

        Returns a sequence with the words of that turn.
        """

    def swap_if_compacted(self) -> bool:
        """Switch to a compacted context if it is cached and can be used. Returns whether it did."""

    def has_room(self, point: ForkPoint, words: Sequence[Token], *, to_answer: bool) -> bool:
        """Whether a user turn of `words` at `point` can be judged, or, with `to_answer`, answered."""


@dataclass(frozen=True, slots=True)
class _Hold:
    """An input as it was when it was last held (incomplete or deferred)."""

    num_utterances: int
    text: str
    decision: Decision
    deferred: bool
    changed_at: float


@final
@dataclass(slots=True, eq=False)
class Input:
    """A user turn that is being heard: one or more utterances, and the sequence that they are fed to.

    The sequence is forked when there is something to fork from (None until then). Its items from `fork.at` on are
    `fork.opening`, the opener of the user's turn and the words.
    """

    utterances: list[Utterance]
    changed_at: float  # session time when the words last changed
    interrupted: int | None = None  # the answer that an earlier part of this turn cut
    sequence: TokenSequence | None = None
    fork: ForkPoint | None = None
    text: str = field(init=False)  # the words of the turn so far
    version: int = 0  # counts changes of the words
    scored: int = -1  # the version that was last judged
    decision: Decision | None = None
    deferred: bool = False  # decided process, waiting for the floor or for room
    _hold: _Hold | None = None
    _ids: tuple[Template, str, bool, tuple[Token, ...]] | None = None  # template, words, whether first, ids

    def __post_init__(self) -> None:
        self.text = join_words(self.utterances)

    @property
    def id(self) -> str:
        """Id of the newest utterance, which events name."""
        return self.utterances[-1].id

    @property
    def evidence(self) -> tuple[VirtualId, ...]:
        """How the newest words sound: what is fed between the words and the probe."""
        return self.utterances[-1].evidence if self.utterances else ()

    @property
    def needs_score(self) -> bool:
        """Whether there are words that have not been judged."""
        return self.scored != self.version and not self.deferred and bool(self.text)

    @property
    def is_waiting(self) -> bool:
        """Whether patience can run out: the words were judged incomplete, or there are none yet."""
        return not self.deferred and (self.decision is not None or not self.text)

    def ids(self, template: Template, *, first: bool) -> tuple[Token, ...]:
        """The user's opener and the words as ids. Tokenised once for each change of the words."""
        text = self.text
        if self._ids is None or self._ids[0] is not template or self._ids[1:3] != (text, first):
            self._ids = (template, text, first, template.user(text, first=first))
        return self._ids[3]

    def grow(self, now: float) -> None:
        """Record that the words have changed and have to be judged again."""
        self.changed_at = now
        self.version += 1
        self.decision = None
        self.deferred = False
        self.text = join_words(self.utterances)

    def hold(self) -> None:
        """Record that the words wait as they are."""
        if self.decision is not None:
            self._hold = _Hold(len(self.utterances), self.text, self.decision, self.deferred, self.changed_at)

    def start_over(self) -> None:
        """Start over as an input that has cut no answer: it was ignored, and more words came."""
        self.interrupted = self._hold = None

    def drop_newest(self) -> list[Utterance]:
        """Give up the utterances that came after those that are held, which go on waiting.

        Returns what was given up: nothing if no words are held, or if the held words have grown, too.
        """
        hold = self._hold
        if hold is None or len(self.utterances) <= hold.num_utterances:
            return []
        held, newest = self.utterances[: hold.num_utterances], self.utterances[hold.num_utterances :]
        if join_words(held) != hold.text:
            return []  # the decision also covers the held words
        self.utterances, self.text = held, hold.text
        self.version += 1
        self.scored, self.decision, self.deferred = self.version, hold.decision, hold.deferred
        self.changed_at = hold.changed_at
        return newest


@final
class Memory:
    """Recognises late words of utterances that were dropped or answered before their end.

    An utterance that has ended is forgotten: its id may name a new one. `word_ends` is that of the template.
    """

    def __init__(self, word_ends: Callable[[str], Sequence[int]]) -> None:
        self._word_ends = word_ends
        self._dropped: OrderedDict[str, str] = OrderedDict()  # id to the text that was judged
        self._answered: OrderedDict[str, str] = OrderedDict()  # id to the text that became part of a turn

    def drop(self, utterances: Iterable[Utterance]) -> None:
        """Record that these were dropped. If they grow, they are judged as a whole (choice 1)."""
        _remember(self._dropped, utterances)

    def answer(self, utterances: Iterable[Utterance]) -> None:
        """Record that these are part of a turn that is being answered. If they grow, only the new words form a turn."""
        _remember(self._answered, utterances)

    def reopen(self, utterances: Iterable[Utterance]) -> None:
        """Record that the turn of these was taken back."""
        for utterance in utterances:
            if utterance.skip and not utterance.final:
                self._answered[utterance.id] = utterance.text[: utterance.skip]
            else:
                self._answered.pop(utterance.id, None)

    def was_dropped(self, utterance: str, text: str) -> bool:
        """Whether exactly these words were judged and dropped, so that at most their end is new."""
        return self._dropped.get(utterance) == text

    def num_answered(self, utterance: str, text: str) -> int:
        """Characters of `text` that are already part of an earlier turn."""
        before = self._answered.get(utterance)
        if before is None:
            return 0
        if text.startswith(before):
            return len(before)
        return self._num_revised(before, text)

    def _num_revised(self, before: str, text: str) -> int:
        """Characters of `text` that stand for `before`, which was revised: as many words.

        Without spaces, words are single characters, and revisions change their number; then it is the beginning of
        `text` that is most similar to `before`.
        """
        ends_before, ends = self._word_ends(before), self._word_ends(text)
        num_words = len(ends_before)
        if any(not text[end].isspace() for end in ends if end < len(text)):
            num_words = _most_similar(_pieces(before, ends_before), _pieces(text, ends))
        if num_words >= len(ends):
            return len(text)
        end = ends[num_words - 1] if num_words else 0
        return len(text) - len(text[end:].lstrip())

    def end(self, utterance: str) -> None:
        """Record that the utterance has ended: its id may be used again."""
        self._answered.pop(utterance, None)
        self._dropped.pop(utterance, None)


def _pieces(text: str, ends: Sequence[int]) -> list[str]:
    return [text[start:end].strip() for start, end in zip((0, *ends), ends, strict=False)]


def _most_similar(words: Sequence[str], longer: Sequence[str]) -> int:
    """How many of the first words of `longer` have the least edit distance to `words`; the most of them on a tie."""
    num_same = next((i for i, pair in enumerate(zip(words, longer, strict=False)) if pair[0] != pair[1]), len(words))
    rest, other = words[num_same:], longer[num_same:]
    if len(rest) > _MAX_ALIGNED:
        return len(words)
    other = other[: 2 * len(rest) + 1]  # with more, all of `rest` could be deleted at less cost
    distances = list(range(len(rest) + 1))  # from each beginning of `rest` to the beginning of `other` so far
    best, found = distances[-1], 0
    for num_other, word in enumerate(other, 1):
        diagonal, distances[0] = distances[0], num_other
        for i, same in enumerate(rest, 1):
            cost = min(distances[i] + 1, distances[i - 1] + 1, diagonal + (same != word))
            diagonal, distances[i] = distances[i], cost
        if distances[-1] <= best:
            best, found = distances[-1], num_other
    return num_same + found


def _remember(where: OrderedDict[str, str], utterances: Iterable[Utterance]) -> None:
    for utterance in utterances:
        if not utterance.final:
            where[utterance.id] = utterance.text
            where.move_to_end(utterance.id)
    while len(where) > _MAX_REMEMBERED:
        where.popitem(last=False)


@final
class InputChannel:
    """At most one input, which is fed and judged, and what is remembered of earlier ones.

    **Kept channels.** The KV of an ignored input is kept, because its words may grow and turn out to be meant for the
    assistant; then only the new words have to be fed. It is given up as soon as its utterance ends, other words are
    heard, the output channel is rolled back, or room is needed.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        config: SessionConfig,
        prefix: Prefix,
        cache: CacheOperations,
        log: EventLog,
        *,
        can_be_asked: Callable[[str], bool] | None = None,
    ) -> None:
        """`can_be_asked`: whether the model that answers has room for words, if that is another one."""
        self.current: Input | None = None
        self.memory = Memory(template.word_ends)
        self.template = template
        self._probe = probe
        self._config = config
        self._prefix = prefix
        self._cache = cache
        self._log = log
        self._can_be_asked = can_be_asked
        self._kept: Input | None = None  # ignored, with its KV, since its words may grow
        self._stop: Input | None = None  # what was last taken for a request to stop; its words may grow, too

    # ------------------------------------------------------------------ what is being heard

    @property
    def backlog(self) -> int:
        """About how many tokens wait to be fed, the probe included and those in flight excluded."""
        heard = self.current
        if heard is None or (heard.sequence is None and not heard.needs_score):
            return 0
        num_probes = len(heard.evidence) + len(self._probe.tokens)
        if heard.sequence is None:  # not tokenised yet
            return len(heard.text) // _CHARACTERS_PER_TOKEN + num_probes
        is_asking = heard.needs_score and heard.sequence.fed is None
        return heard.sequence.num_waiting + (num_probes if is_asking else 0)

    def find(self, utterance: str) -> Utterance | None:
        """The utterance of that id, if it is being heard and still growing."""
        return find_open(self.current.utterances, utterance) if self.current else None

    def was_dropped(self, utterance: str, text: str, *, final: bool) -> bool:
        """Whether exactly these words were judged and dropped. If they have ended, nothing is kept for them."""
        was_dropped = self.memory.was_dropped(utterance, text)
        if was_dropped and final:
            self.end(utterance)
        return was_dropped

    def end(self, utterance: str) -> None:
        """Record that the utterance has ended: its id may name a new one, to which nothing of it applies."""
        self.memory.end(utterance)
        if self._kept is not None and find_open(self._kept.utterances, utterance):
            self.forget_kept()
        if self._stop is not None and find_open(self._stop.utterances, utterance):
            self._stop = None

    def hear(self, utterance: str, text: str, *, final: bool, num_echoed: int = 0) -> bool:
        """Set the words of `utterance` to `text`. The first `num_echoed` characters are not the user's.

        Returns whether they contain anything that has not been answered.
        """
        num_answered = max(self.memory.num_answered(utterance, text), num_echoed)
        known = self.find(utterance)
        if known is None:
            if not text[num_answered:].strip() and (final or num_answered):
                if final:
                    self.end(utterance)
                return False
            if self.current is None:
                self.current = self._bring_back(utterance)
            known = self.find(utterance)
            if known is None:
                known = Utterance(utterance)
                self.current.utterances.append(known)
        if final:
            self.end(utterance)
        has_grown, known.final, known.skip = known.text != text, final, num_answered
        if has_grown:
            known.change(text, self._log.now)
            known.evidence = ()
            self.words_changed()
        else:
            self.heard.text = join_words(self.heard.utterances)
        return True

    def hear_sound(self, evidence: tuple[VirtualId, ...], utterance: str) -> None:
        """Have the words of `utterance` judged with `evidence`, if they are being heard."""
        known = self.find(utterance)
        if known is None or known.evidence == evidence:
            return
        known.evidence = evidence
        if known is self.heard.utterances[-1]:
            self.heard.version += 1

    def hear_again(self, utterances: Sequence[Utterance]) -> None:
        """Take up the words of `utterances`, which were dropped."""
        self.forget_kept()
        self.current = Input(list(utterances), self._log.now)
        self.words_changed()

    def retract(self, utterance: str) -> bool:
        """Remove `utterance` from what is being heard. Returns whether anything is left."""
        heard = self.heard
        rest = [one for one in heard.utterances if one.id != utterance]
        if rest:
            heard.utterances = rest
            self.words_changed()
        return bool(rest)

    def words_changed(self) -> None:
        """Have the words judged again, with the sequence rolled back to the first id that differs."""
        heard = self.heard
        heard.grow(self._log.now)
        point = heard.fork or self._prefix.fork_point()
        is_too_long = len(heard.text) > self._config.max_user_characters  # not even tokenised
        ids = () if is_too_long else heard.ids(self.template, first=point.is_first)
        is_too_long = is_too_long or self._is_too_long(ids, first=point.is_first)
        if is_too_long or (self._can_be_asked is not None and not self._can_be_asked(heard.text)):
            self._log.add(Refused(self._log.now, heard.id, self._config.too_long))
            self.drop("too long")
        elif heard.sequence is not None and self._prefix.has_room(point, ids, to_answer=False):
            heard.sequence.replace_tail(point.at, (*point.opening, *ids))
        else:
            self.detach()  # nothing was forked yet, or there is no room for these words

    def _is_too_long(self, ids: Sequence[Token], *, first: bool) -> bool:
        """Whether a turn has too many ids, not counting a system prompt that the template folds into the first turn."""
        limit = self._config.max_user_text
        if first and len(ids) > limit:
            limit += len(self.template.user("", first=True)) - len(self.template.user("", first=False))
        return len(ids) > limit

    # ------------------------------------------------------------------ in the cache

    def attach(self) -> bool:
        """Fork from the output channel as soon as the prefix is cached. Returns False where there is no room."""
        heard = self.current
        if heard is None or heard.sequence is not None or heard.deferred:
            return True
        point = self._prefix.fork_point()
        if not self._prefix.is_read(point):
            return True  # the prefix is still being fed: after a fork it would be fed twice
        ids = heard.ids(self.template, first=point.is_first)
        if not self._prefix.has_room(point, ids, to_answer=False):
            return False
        self.forget_kept()
        heard.sequence, heard.fork = self._cache.fork(point.sequence, point.at), point
        heard.sequence.items.extend((*point.opening, *ids))
        return True

    def detach(self) -> None:
        """Give up the sequence of what is being heard. A new one is forked later, from the current output channel."""
        self._free(self.current)

    def plan(self) -> None:
        """Feed the pending words and, after the last, the probe (`<|prediction|>`), at which the state is read.

        Between them is the evidence of their sound, if there is any. It is rolled back with the probe.
        """
        heard, probe = self.current, self._probe
        if heard is None or heard.sequence is None:
            return
        sequence = heard.sequence
        self._cache.roll_back(sequence)  # the probe of the last forecast, and words that were revised
        if sequence.fed is not None:
            return
        size = self._cache.portion(sequence)
        is_all = size == sequence.num_pending
        asked = (*heard.evidence, *probe.tokens)
        if is_all and heard.needs_score and self._cache.has_room(size + len(asked)):
            self._cache.feed(sequence, size, probe=asked, watch=probe.groups, owner=heard, version=heard.version)
        elif size:
            self._cache.feed(sequence, size)

    def is_forecast_by(self, work: Work) -> bool:
        """Whether the result of `work` is about the words as they are now."""
        return self.current is not None and work.owner is self.current and work.version == self.current.version

    def discard_stale(self) -> None:
        """Give up forks of the output channel that are out of date."""
        epoch = self._prefix.epoch
        if self._kept is not None and self._kept.fork is not None and self._kept.fork.epoch != epoch:
            self.forget_kept()
        if self.current is not None and self.current.fork is not None and self.current.fork.epoch != epoch:
            self.detach()

    def forget_kept(self) -> bool:
        """Free the words that were ignored last. Returns whether there were any."""
        kept, self._kept = self._kept, None
        self._free(kept)
        return kept is not None

    def free(self) -> None:
        """Give up everything that is being heard, and what is kept."""
        self.forget_kept()
        self.detach()
        self.current = None

    # ------------------------------------------------------------------ transitions of the input

    def score(self, decision: Decision) -> None:
        """Record the decision on the current words."""
        self.heard.scored, self.heard.decision = self.heard.version, decision

    def hold(self, *, deferred: bool = False) -> None:
        """Let the words wait for more words or, if `deferred`, until they can be answered. Their KV is kept."""
        heard = self.heard
        heard.deferred = heard.deferred or deferred
        heard.hold()
        self._log.add(Held(self._log.now, heard.id, deferred=deferred))

    def drop(self, reason: str) -> Input:
        """Give up what is being heard. Returns it."""
        heard = self.heard
        self.forget_kept()
        may_grow = len(heard.utterances) == 1 and not heard.utterances[0].final
        if reason == InputState.IGNORE and heard.sequence is not None and may_grow:
            self._kept = heard
        else:
            self.detach()
        self.current = None
        if reason == InputState.STOP:
            self._stop = heard
        self.memory.drop(heard.utterances)
        self._log.add(Dropped(self._log.now, heard.id, heard.text, reason))
        return heard

    def drop_newest(self, reason: str) -> bool:
        """Give up the words that came after held ones. Returns False if that would be all of them or none."""
        heard = self.heard
        newest = heard.drop_newest()
        if not newest:
            return False
        self.memory.drop(newest)
        self._log.add(Dropped(self._log.now, newest[-1].id, join_words(newest), reason))
        if heard.sequence is not None and heard.fork is not None:
            ids = heard.ids(self.template, first=heard.fork.is_first)
            heard.sequence.replace_tail(heard.fork.at, (*heard.fork.opening, *ids))
        return True

    def hand_over(self, point: ForkPoint) -> TokenSequence | None:
        """Make what is being heard a turn at `point`. Returns its sequence, unless it was forked elsewhere."""
        heard = self.heard
        self.current = None
        if heard.sequence is not None and heard.fork == point:
            return heard.sequence
        self._free(heard)
        return None

    def reopen(self, utterances: Sequence[Utterance], sequence: TokenSequence, *, interrupted: int | None) -> None:
        """Hear the turn of `utterances` again, which was taken back. Its words are cached in `sequence`."""
        others = self.current.utterances if self.current else []
        self.current = Input([*utterances, *others], self._log.now, interrupted=interrupted)
        self.current.sequence, self.current.fork = sequence, self._prefix.fork_point()
        self.memory.reopen(utterances)

    @property
    def heard(self) -> Input:
        """The input, where there is one."""
        assert self.current is not None, "there is an input"
        return self.current

    def _bring_back(self, utterance: str) -> Input:
        """A new input, or the kept one if it is its utterance that grows.

        If the growing utterance has stopped an answer, the new input counts as the one that interrupted it.
        """
        kept, stop = self._kept, self._stop
        is_current = kept is not None and kept.fork is not None and kept.fork.epoch == self._prefix.epoch
        if kept is not None and is_current and find_open(kept.utterances, utterance):
            self._kept = None
            kept.start_over()
            return kept
        has_stopped = stop is not None and find_open(stop.utterances, utterance)
        return Input([], self._log.now, interrupted=stop.interrupted if stop and has_stopped else None)

    def _free(self, heard: Input | None) -> None:
        if heard is not None and heard.sequence is not None:
            self._cache.free(heard.sequence)
            heard.sequence = heard.fork = None
