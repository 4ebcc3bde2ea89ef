"""Scripted conversations whose words and decisions are known beforehand, and the teacher who makes a model follow."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.backends.forced import Forced
from duologue.baselines.tdm import Tdm
from duologue.core.backend import Backend, Step
from duologue.core.prompt import Probe
from duologue.core.session import BaseSession
from duologue.data.jsonl import read_rows
from duologue.engine.replay import Cue, Script
from duologue.errors import UsageError
from duologue.text.slicing import partials
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, InputState, Token

EXCHANGES = Path(__file__).with_name("cost.jsonl")
SURE = 0.98
"""Probability of a verdict: above `Policy.p_sure`, so that an answer is released with it."""
_SILENCE_S = (6.0, 12.0)  # between exchanges
_TOKENS_PER_S = 5.0  # the pace of an answer on the replay's clock
_STORY_S = 60.0  # time for a story, however much is heard over it
_ASIDE_ANSWER = "Was that meant for me?"  # what a session says that cannot tell what is none of its business


@dataclass(frozen=True, slots=True)
class Lesson:
    """One conversation: what happens when, what is to be thought of it, and what is answered."""

    script: Script
    ends: tuple[float, ...]  # of exchanges, in seconds
    states: Mapping[str, InputState]  # by whole utterance
    answers: Mapping[str, tuple[Token, ...]]  # by user's turn

    def judge(self, text: str) -> InputState:
        """What is to be done about an utterance that reads `text` so far."""
        if text in self.states:
            return self.states[text]
        begun = {state for whole, state in self.states.items() if whole.startswith(text)}
        return InputState.IGNORE if begun == {InputState.IGNORE} else InputState.INCOMPLETE


def lessons(template: Template, *, conversations: int, exchanges: int, seed: int = 0) -> list[Lesson]:
    """So many conversations of so many exchanges each, in another order every time. The same seed gives the same."""
    rows = [row for _, row in read_rows(EXCHANGES)]
    made = []
    for number in range(conversations):
        chance = random.Random(f"{seed}/{number}")
        order: list[dict[str, Any]] = []
        while len(order) < exchanges:
            order += chance.sample(rows, len(rows))
        made.append(lesson(template, order[:exchanges], chance))
    return made


def overheard(template: Template, num_slices: int) -> Lesson:
    """One question, and an answer over which somebody else says `num_slices` slices."""
    answer = " ".join(row["answer"] for _, row in read_rows(EXCHANGES))
    ids = template.answer(answer)[: round(_TOKENS_PER_S * SLICE_PERIOD_S * 12)]  # of twelve slices, however long it is
    asides: list[dict[str, Any]] = [
        {
            "after": 3 + SLICE_PERIOD_S * i,
            "say": f"no I said {i} that is none of yours",
            "state": "ignore",
            "whole": True,
        }
        for i in range(num_slices)
    ]
    row = {"say": "tell me a story", "answer": template.decode(ids), "over": asides}
    return dataclasses.replace(lesson(template, [row], random.Random(0)), ends=(_STORY_S,))


def lesson(template: Template, rows: Sequence[Mapping[str, Any]], chance: random.Random) -> Lesson:
    """A conversation of `rows`, as `cost.jsonl` has them: `over` is said `after` so many seconds of the answer."""
    cues: list[Cue] = []
    ends: list[float] = []
    states: dict[str, InputState] = {}
    answers = {"": template.answer(_ASIDE_ANSWER)}
    now = chance.uniform(0.0, SLICE_PERIOD_S)
    for number, row in enumerate(rows):
        told, spoken = list(_grown(row["say"], f"ask{number}", now, chance)), [row["answer"]]
        cues += told
        now = told[-1].at
        states[row["say"]] = InputState.PROCESS
        answers[row["say"]] = template.answer(row["answer"])
        latest = now
        for index, over in enumerate(row.get("over", ())):
            state = InputState(over["state"])
            name = "aside" if state is InputState.IGNORE else "cut"
            told = list(_grown(over["say"], f"{name}{number}.{index}", now + over["after"], chance, over.get("whole")))
            cues += told
            states[over["say"]] = state
            latest = max(latest, told[-1].at)
            if "answer" in over:
                answers[over["say"]] = template.answer(over["answer"])
                spoken.append(over["answer"])
        num_tokens = sum(len(template.answer(text)) for text in spoken)
        now = latest + num_tokens / _TOKENS_PER_S + chance.uniform(*_SILENCE_S)
        ends.append(now)
    return Lesson(Script(tuple(sorted(cues, key=lambda cue: cue.at))), tuple(ends), states, answers)


def _grown(text: str, name: str, at: float, chance: random.Random, whole: bool | None = None) -> Iterator[Cue]:
    """`text` as it grows by a slice a period; all at once if it is `whole`."""
    parts = [text] if whole else list(partials(text, seed=chance.randrange(1 << 30)))
    for i, part in enumerate(parts):
        yield Cue(at + i * SLICE_PERIOD_S, text=part, utterance=name, final=i == len(parts) - 1)


class Teacher(Forced):
    """Every pass is real; what is drawn and decided is the lesson's. Set `session` to the one that is driven."""

    def __init__(self, backend: Backend, probe: Probe, template: Template, lesson: Lesson) -> None:
        super().__init__(backend, self._corrected)
        self.session: BaseSession | None = None
        self.num_spoken = 0  # tokens of answers that were drawn, their ends left out
        self._states = probe.states
        self._stop = _stop_token(template)
        self._lesson = lesson

    def _corrected(self, step: Step) -> Step:
        assert self.session is not None, "somebody is taught"
        if step.p:
            state = self._lesson.judge(self.session.input_text or "")
            if state not in self._states:
                state = InputState.PROCESS  # an adapter of the paper's three states cannot stop without answering
            rest = (1.0 - SURE) / (len(self._states) - 1)
            return dataclasses.replace(step, p=tuple(SURE if one is state else rest for one in self._states))
        if step.tokens:
            return dataclasses.replace(step, tokens=(self._next(self.session),))
        return step

    def _next(self, session: BaseSession) -> Token:
        expected = session.expected if isinstance(session, Tdm) else _running(session)
        if expected is None:
            return self._stop
        asked, index = expected
        answers = self._lesson.answers
        tokens = answers.get(asked or "", answers[""])
        if index >= len(tokens):
            return self._stop
        self.num_spoken += 1
        return tokens[index]


def _stop_token(template: Template) -> Token:
    if not template.stop_tokens:
        raise UsageError(
            "this model has no token that ends an answer, so it cannot be taught where one ends; use a chat model, or "
            "one whose tokenizer names its end-of-text token"
        )
    return min(template.stop_tokens)


def _running(session: BaseSession) -> tuple[str | None, int] | None:
    answer = session.running
    return None if answer is None else (answer.user_text, answer.num_tokens)
