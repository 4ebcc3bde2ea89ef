"""The six categories of Duplex-UltraChat: how dialogues are put together and interrupted."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from duologue.data.duplex.dialogues import Round, SourceDialogue, SourceTurn
from duologue.data.duplex.rewriting import Rewriter, Written
from duologue.data.duplex.slicer import Slicer
from duologue.data.duplex.timeline import Timeline
from duologue.data.duplex.transitions import Transitions
from duologue.types import Role, Turn

MIN_CUT = 80
"""Characters of an answer that can be interrupted."""

_PAUSES = (0, 4)  # periods of silence between two rounds
_ONLY_STOPS = 0.25  # share of terminations in which the user says nothing else
_INTERRUPTED = 0.5  # share of the rounds of a dialogue in which the user interrupts, but at least one
_SENTENCE = re.compile(r".*?(?:[.!?](?=[\s\"')\]]|$)|[。！？]|\n+|$)[\"'”’)\]]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Category:
    """How one kind of dialogue is made."""

    share: float  # of the dialogues of Duplex-UltraChat
    num_sources: tuple[int, int]  # dialogues that it is made of
    interrupts: bool
    suits: Callable[[SourceDialogue], bool]
    play: "Callable[[Studio, Sequence[SourceDialogue]], None]"


class TooShort(Exception):
    """No answer of the source is long enough to be interrupted."""


@dataclass(slots=True)
class Studio:
    """What a dialogue is made with."""

    timeline: Timeline
    transitions: Transitions | None  # None: the language has none
    rewriter: Rewriter
    rng: random.Random

    @property
    def slicer(self) -> Slicer:
        """What cuts turns."""
        return self.timeline.slicer

    def asks(self, turns: Sequence[SourceTurn], dialogue: str) -> None:
        """The user says the turns of a round."""
        for turn in turns:
            self.timeline.user(turn, dialogue)

    def answers(self, turns: Sequence[SourceTurn], dialogue: str) -> None:
        """The assistant says the whole of its turns, and there is a pause."""
        for turn in turns:
            self.timeline.assistant(turn, dialogue)
        self.timeline.quiet(self.rng.randint(*_PAUSES))

    def plays(self, rounds: Sequence[Round], dialogue: str) -> None:
        """Rounds in which nobody interrupts."""
        for asked, answer in rounds:
            self.asks(asked, dialogue)
            self.answers(answer, dialogue)

    def begins_answer(self, turns: Sequence[SourceTurn], dialogue: str) -> None:
        """The assistant begins, and is cut somewhere.

        Raises:
            TooShort: there is only one slice.
        """
        turn = turns[0]
        num = len(self.slicer.assistant(turn.text))
        if num < 2:
            raise TooShort
        self.timeline.assistant(turn, dialogue, num_slices=self.rng.randrange(1, num))

    def interrupts(self, section: str, turns: Sequence[SourceTurn], dialogue: str) -> None:
        """The user says the turns of a round behind a transition."""
        assert self.transitions is not None, "interruptions are planned in languages with transitions only"
        first, *rest = turns
        line = self.rng.choice(self.transitions.lines(section, first.text))
        written = self.rewriter.fuse(line, first.text, self.transitions)
        self.timeline.user(first, dialogue, written, line)
        self.asks(rest, dialogue)

    def says(self, section: str, turn: SourceTurn, dialogue: str, statement: str = "") -> None:
        """The side whose turn it is says a line of a section."""
        assert self.transitions is not None, "see above"
        line = self.rng.choice(self.transitions.lines(section))
        written = Written(line.replace("{statement}", statement))
        if turn.role is Role.USER:
            self.timeline.user(turn, dialogue, written, line)
        else:
            self.timeline.assistant(turn, dialogue, written, line)


def can_be_cut(answer: Sequence[SourceTurn]) -> bool:
    """Whether an answer is long enough to be interrupted."""
    return len(answer[0].text) >= MIN_CUT


def sentence_ends(text: str) -> list[int]:
    """Where the sentences of `text` end, but the last."""
    ends = [found.end() for found in _SENTENCE.finditer(text) if found[0].strip()]
    return [end for end in ends if text[end:].strip()]


def _any_cut(dialogue: SourceDialogue) -> bool:
    return any(can_be_cut(answer) for _, answer in dialogue.rounds)


def _two_sentences(dialogue: SourceDialogue) -> bool:
    return any(can_be_cut(answer) and sentence_ends(answer[0].text) for _, answer in dialogue.rounds)


def _anything(dialogue: SourceDialogue) -> bool:
    return True


def _basic(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """A dialogue as it is."""
    studio.plays(sources[0].rounds, sources[0].id)


def _topic_interweaving(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """Several dialogues at once; in each, the rounds are in order."""
    left = [(source.id, list(source.rounds)) for source in sources]
    while left:
        at = studio.rng.choices(range(len(left)), [len(rounds) for _, rounds in left])[0]
        dialogue, rounds = left[at]
        studio.plays([rounds.pop(0)], dialogue)
        if not rounds:
            del left[at]


def _generation_termination(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """The user ends an answer, and goes on with the next turn or with nothing."""
    [source] = sources
    rng, rounds = studio.rng, source.rounds
    chosen = _chosen([number for number, (_, answer) in enumerate(rounds) if can_be_cut(answer)], rng)
    is_cut = False
    for number, (asked, answer) in enumerate(rounds):
        if is_cut:
            studio.interrupts("terminate", asked, source.id)
        else:
            studio.asks(asked, source.id)
        is_cut = number in chosen
        if not is_cut:
            studio.answers(answer, source.id)
            continue
        studio.begins_answer(answer, source.id)
        if number + 1 == len(rounds) or rng.random() < _ONLY_STOPS:
            studio.says("stop", asked[-1], source.id)
            studio.timeline.quiet(rng.randint(1, _PAUSES[1]))
            is_cut = False


def _regeneration(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """The user says again what they want, and the assistant begins anew."""
    [source] = sources
    chosen = _chosen([n for n, (_, answer) in enumerate(source.rounds) if can_be_cut(answer)], studio.rng)
    said: list[Turn] = []
    for number, (asked, answer) in enumerate(source.rounds):
        studio.asks(asked, source.id)
        said += [Turn(turn.role, turn.text) for turn in asked]
        if number in chosen:
            studio.begins_answer(answer, source.id)
            studio.interrupts("regenerate", asked, source.id)
            anew = studio.rewriter.answer(said)
            if anew is not None and anew.text:
                studio.timeline.assistant(answer[0], source.id, anew)
                studio.timeline.quiet(studio.rng.randint(*_PAUSES))
                said += [Turn(answer[0].role, anew.text)]
                continue
        studio.answers(answer, source.id)
        said += [Turn(turn.role, turn.text) for turn in answer]


def _dialogue_reset(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """The user leaves a dialogue for another one, in the middle of an answer where it is long enough."""
    for number, source in enumerate(sources):
        rounds = source.rounds
        is_last = number + 1 == len(sources)
        end = len(rounds) if is_last else studio.rng.randint(1, len(rounds))
        for index, (asked, answer) in enumerate(rounds[:end]):
            if number and not index:
                studio.interrupts("reset", asked, source.id)
            else:
                studio.asks(asked, source.id)
            if not is_last and index + 1 == end and can_be_cut(answer):
                studio.begins_answer(answer, source.id)
            else:
                studio.answers(answer, source.id)


def _back_on_topic(studio: Studio, sources: Sequence[SourceDialogue]) -> None:
    """The user asks about a sentence of the answer; the assistant replies, and goes on with the answer."""
    [source] = sources
    fit = [n for n, (_, answer) in enumerate(source.rounds) if can_be_cut(answer) and sentence_ends(answer[0].text)]
    chosen = _chosen(fit, studio.rng)
    for number, (asked, answer) in enumerate(source.rounds):
        studio.asks(asked, source.id)
        if number in chosen:
            _asks_about(studio, asked[-1], answer[0], source.id)
            answer = answer[1:]
        studio.answers(answer, source.id)


def _asks_about(studio: Studio, asked: SourceTurn, answer: SourceTurn, dialogue: str) -> None:
    """An answer with a question about one of its sentences in it."""
    text, timeline = answer.text, studio.timeline
    slices = studio.slicer.assistant(text)
    # the sentence has been heard, and the answer still goes on
    ends = [end for end in sentence_ends(text) if end <= slices[-1][0]]
    if not ends:
        raise TooShort
    at = studio.rng.randrange(len(ends))
    end, start = ends[at], ends[at - 1] if at else 0
    statement = text[start:end].strip()
    heard = next(number for number, (_, last) in enumerate(slices, 1) if last >= end)
    timeline.assistant(answer, dialogue, num_slices=heard)
    pair = studio.rewriter.ask(statement)
    if pair is None:
        studio.says("ask_again", asked, dialogue)
        studio.says("say_again", answer, dialogue, statement=statement)
    else:
        question, reply = pair
        timeline.user(asked, dialogue, question)
        timeline.assistant(answer, dialogue, reply)
    studio.says("go_back", answer, dialogue)
    timeline.assistant(answer, dialogue, start=end)


def _chosen(possible: Sequence[int], rng: random.Random) -> set[int]:
    """Some of the numbers, at least one.

    Raises:
        TooShort: there is none.
    """
    if not possible:
        raise TooShort
    return {number for number in possible if rng.random() < _INTERRUPTED} or {rng.choice(possible)}


CATEGORIES: Mapping[str, Category] = {
    "basic": Category(1_458_353, (1, 1), False, _anything, _basic),
    "topic_interweaving": Category(489_065, (3, 5), False, _anything, _topic_interweaving),
    "generation_termination": Category(1_468_141, (1, 1), True, _any_cut, _generation_termination),
    "regeneration": Category(806_687, (1, 1), True, _any_cut, _regeneration),
    "dialogue_reset": Category(300_318, (5, 5), True, _anything, _dialogue_reset),
    "back_on_topic": Category(327_286, (1, 1), True, _two_sentences, _back_on_topic),
}
"""Name → category; the shares are the numbers of dialogues in the paper."""
