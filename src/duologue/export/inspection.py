"""Measures what a model with or without added rows generates, scores and decides, on text that it writes itself.

NumPy only; a `TextReader` runs the model. Shapes: N tokens of a text, M tokens of several texts, V ids of the model, D
the hidden width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import AdapterRows
from duologue.backends.sampling import choose
from duologue.core.backend import Draw, Sampling
from duologue.export.suppression import FloatArray, Leads
from duologue.text.template import Template
from duologue.types import Role, Token, Turn

NUM_GREEDY = 24
"""Tokens of the greedy answer to each prompt."""

QUESTIONS = (
    "What should I cook for two friends tonight?",
    "Explain to a child why the sea is salty.",
    "Write a short letter to a neighbour about the noise.",
    "How do I sort a list of numbers in Python?",
    "Tell me about a town you would like to visit.",
    "List five things to take on a walk in the rain.",
    "Who invented the printing press, and when?",
    "What is three quarters of two hundred and eighty?",
)


class TextReader(Protocol):
    """Runs a model over one text at a time. Arrays it returns are valid until the next call."""

    length: int  # the longest text, in tokens

    def read(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """Logits [N, V] and final hidden states [N, D] of a new text."""
        ...

    def extend(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """The same for N further tokens of that text."""
        ...


def prompts_of(template: Template) -> list[tuple[Token, ...]]:
    """Each of `QUESTIONS`, up to where the answer begins."""
    return [(*template.render([Turn(Role.USER, text)]), *template.header) for text in QUESTIONS]


@dataclass(frozen=True, eq=False)
class Inspection:
    """A model under inspection."""

    reader: TextReader
    prompts: Sequence[Sequence[Token]]
    is_added: npt.NDArray[np.bool_]  # [V], the ids that do not belong to the base model

    def sample(self, num_tokens: int, *, seed: int) -> list[list[Token]]:
        """Texts that the model writes after each prompt in turn, at temperature 1; `num_tokens` or more in total."""
        chance, texts, num = random.Random(seed), list[list[Token]](), 0
        while num < num_tokens:
            tokens = list(self.prompts[len(texts) % len(self.prompts)])
            logits, _ = self.reader.read(tokens)
            while len(tokens) < self.reader.length:
                draw = Draw(Sampling(temperature=1.0), chance.random())
                tokens.append(choose(self._base(logits)[-1], draw)[0])
                if len(tokens) < self.reader.length:
                    logits, _ = self.reader.extend(tokens[-1:])
            texts.append(tokens)
            num += len(tokens)
        return texts

    def hidden_states(self, texts: Sequence[Sequence[Token]]) -> tuple[FloatArray, FloatArray]:
        """Hidden states [M, D] at all positions of `texts`, and the largest base logit [M] at each."""
        hidden, best = [], []
        for text in texts:
            logits, states = self.reader.read(text)
            hidden.append(states.copy())
            best.append(self._base(logits).max(axis=1))
        return np.concatenate(hidden), np.concatenate(best)

    def greedy(self) -> npt.NDArray[np.int64]:
        """The most probable base tokens after each prompt: [prompts, NUM_GREEDY]. They do not stop at the end token."""
        answers = []
        for prompt in self.prompts:
            logits, _ = self.reader.read(prompt)
            answer = [int(self._base(logits)[-1].argmax())]
            while len(answer) < NUM_GREEDY:
                logits, _ = self.reader.extend(answer[-1:])
                answer.append(int(self._base(logits)[-1].argmax()))
            answers.append(answer)
        return np.array(answers)

    def leads(self, texts: Sequence[Sequence[Token]]) -> Leads:
        """How far the added ids stay below the base ids in `texts`."""
        leads = []
        for text in texts:
            logits, _ = self.reader.read(text)
            leads.append(self._base(logits).max(axis=1) - logits[:, self.is_added].max(axis=1))
        return Leads.of(np.concatenate(leads))

    def decision_error(self, rows: AdapterRows, added: Sequence[Token]) -> float:
        """The largest difference of a state probability from that of `rows` in float32. `added`: ids of the rows."""
        probes, states, worst = added[: rows.num_probes], list(added[rows.num_probes :]), 0.0
        for prompt in self.prompts:
            for length in (len(prompt), len(prompt) // 2):
                logits, hidden = self.reader.read((*prompt[:length], *probes))
                difference = _softmax(logits[-1, states]) - _softmax(rows.states @ hidden[-1])
                worst = max(worst, float(np.abs(difference).max()))
        return worst

    def _base(self, logits: FloatArray) -> FloatArray:
        """logits: [N, V]; returns [N, V], with added ids impossible."""
        return np.where(self.is_added, np.float32(-np.inf), logits)


def _softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis of any shape."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)
