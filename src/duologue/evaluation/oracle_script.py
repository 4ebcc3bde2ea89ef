"""Oracle scripts: conversations whose words and decisions are known in advance, and a backend that follows them."""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.baselines.tdm import Tdm
from duologue.core.backend import Backend, BackendInfo, Extend, Step, Usage
from duologue.core.base_session import BaseSession
from duologue.core.prompt import Probe
from duologue.data.jsonl import read_rows
from duologue.engine.replay import Cue, Script
from duologue.errors import UsageError
from duologue.text.slicing import partials
from duologue.text.template import Template
from duologue.types import SLICE_PERIOD_S, InputState, Seq, Token

EXCHANGES = Path(__file__).with_name("cost.jsonl")
SURE = 0.98
"""Probability of the oracle's decision: above `Policy.p_sure`, so that an answer is released at once."""
_SILENCE_S = (6.0, 12.0)  # between exchanges
_TOKENS_PER_S = 5.0  # of an answer, on the replay's clock
_STORY_S = 60.0  # time for a story, however much is heard over it
_ASIDE_ANSWER = "Was that meant for me?"  # of a session that cannot know that it was not addressed


@dataclass(frozen=True, slots=True)
class OracleScript:
    """One conversation: what is said when, the right decisions, and the answers."""

    script: Script
    ends: tuple[float, ...]  # of exchanges, in seconds
    states: Mapping[str, InputState]  # by the whole text of an utterance
    answers: Mapping[str, tuple[Token, ...]]  # by the text of the user's turn

    def decide(self, text: str) -> InputState:
        """The right decision on an utterance that is `text` so far."""
        if text in self.states:
            return self.states[text]
        begun = {state for whole, state in self.states.items() if whole.startswith(text)}
        return InputState.IGNORE if begun == {InputState.IGNORE} else InputState.INCOMPLETE


def oracle_scripts(template: Template, *, conversations: int, exchanges: int, seed: int = 0) -> list[OracleScript]:
    """Conversations of the exchanges in `cost.jsonl`, shuffled anew for each. The same seed gives the same scripts."""
    rows = [row for _, row in read_rows(EXCHANGES)]
    made = []
    for number in range(conversations):
        chance = random.Random(f"{seed}/{number}")
        order: list[dict[str, Any]] = []
        while len(order) < exchanges:
            order += chance.sample(rows, len(rows))
        made.append(oracle_script(template, order[:exchanges], chance))
    return made


def overheard(template: Template, num_slices: int) -> OracleScript:
    """One question, and an answer over which somebody else says `num_slices` slices."""
    answer = " ".join(row["answer"] for _, row in read_rows(EXCHANGES))
    ids = template.answer(answer)[: round(_TOKENS_PER_S * SLICE_PERIOD_S * 12)]  # twelve slices long
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
    return dataclasses.replace(oracle_script(template, [row], random.Random(0)), ends=(_STORY_S,))


def oracle_script(template: Template, rows: Sequence[Mapping[str, Any]], chance: random.Random) -> OracleScript:
    """A conversation of `rows` in the form of `cost.jsonl`; `over` is said `after` so many seconds of the answer."""
    cues: list[Cue] = []
    ends: list[float] = []
    states: dict[str, InputState] = {}
    answers = {"": template.answer(_ASIDE_ANSWER)}
    now = chance.uniform(0.0, SLICE_PERIOD_S)
    for number, row in enumerate(rows):
        said, spoken = list(_growing(row["say"], f"ask{number}", now, chance)), [row["answer"]]
        cues += said
        now = said[-1].at
        states[row["say"]] = InputState.PROCESS
        answers[row["say"]] = template.answer(row["answer"])
        latest = now
        for index, over in enumerate(row.get("over", ())):
            state = InputState(over["state"])
            name = f"{'aside' if state is InputState.IGNORE else 'cut'}{number}.{index}"
            said = list(_growing(over["say"], name, now + over["after"], chance, over.get("whole")))
            cues += said
            states[over["say"]] = state
            latest = max(latest, said[-1].at)
            if "answer" in over:
                answers[over["say"]] = template.answer(over["answer"])
                spoken.append(over["answer"])
        num_tokens = sum(len(template.answer(text)) for text in spoken)
        now = latest + num_tokens / _TOKENS_PER_S + chance.uniform(*_SILENCE_S)
        ends.append(now)
    return OracleScript(Script(tuple(sorted(cues, key=lambda cue: cue.at))), tuple(ends), states, answers)


def _growing(text: str, name: str, at: float, chance: random.Random, whole: bool | None = None) -> Iterator[Cue]:
    """`text` growing by one slice per period, or `whole` at once."""
    parts = [text] if whole else list(partials(text, seed=chance.randrange(1 << 30)))
    for i, part in enumerate(parts):
        yield Cue(at + i * SLICE_PERIOD_S, text=part, utterance=name, final=i == len(parts) - 1)


class OracleBackend(Backend):
    """Computes every pass on another backend, then replaces sampled tokens and probabilities by those of a script.

    Passes, KV and times are real. Set `session` to the one that is driven before the first pass.
    """

    def __init__(self, backend: Backend, probe: Probe, template: Template, script: OracleScript) -> None:
        self.session: BaseSession | None = None
        self.num_spoken = 0  # tokens of answers that were sampled, without those that end an answer
        self._backend = backend
        self._states = probe.states
        self._stop = _stop_token(template)
        self._script = script

    @property
    def info(self) -> BackendInfo:
        return self._backend.info

    def fork(self, parent: Seq | None, length: int = 0) -> Seq:
        return self._backend.fork(parent, length)

    def forward(self, batch: Sequence[Extend]) -> list[Step]:
        return [self._replaced(step) for step in self._backend.forward(batch)]

    def truncate(self, seq: Seq, length: int) -> None:
        self._backend.truncate(seq, length)

    def free(self, seq: Seq) -> None:
        self._backend.free(seq)

    def length(self, seq: Seq) -> int:
        return self._backend.length(seq)

    def usage(self) -> Usage:
        return self._backend.usage()

    def _replaced(self, step: Step) -> Step:
        assert self.session is not None, "the session is set before the first pass"
        if step.p:
            state = self._script.decide(self.session.input_text or "")
            if state not in self._states:
                state = InputState.PROCESS  # an adapter with the paper's three states cannot stop without answering
            rest = (1.0 - SURE) / (len(self._states) - 1)
            return dataclasses.replace(step, p=(tuple(SURE if one is state else rest for one in self._states),))
        if step.tokens:
            return dataclasses.replace(step, tokens=(self._next(self.session),))
        return step

    def _next(self, session: BaseSession) -> Token:
        """The next token of the answer that is being generated."""
        expected = session.expected if isinstance(session, Tdm) else _running(session)
        if expected is None:
            return self._stop
        asked, index = expected
        answers = self._script.answers
        tokens = answers.get(asked or "", answers[""])
        if index >= len(tokens):
            return self._stop
        self.num_spoken += 1
        return tokens[index]


def _stop_token(template: Template) -> Token:
    if not template.stop_tokens:
        raise UsageError(
            "this model has no token that ends an answer, so a script cannot end one; use a chat model, or a model "
            "whose tokenizer names its end-of-text token"
        )
    return min(template.stop_tokens)


def _running(session: BaseSession) -> tuple[str | None, int] | None:
    """The user's turn that is being answered, and the number of tokens generated so far."""
    answer = session.running
    return None if answer is None else (answer.user_text, answer.num_tokens)
