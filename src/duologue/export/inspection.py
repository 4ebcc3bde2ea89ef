"""Checks an export: measures what a model with or without added rows generates, scores and decides, on its own text.

NumPy only; a `TextReader` runs the model. Shapes: N tokens of a text, M tokens of several texts, V ids of the model, D
the hidden width.
"""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from duologue.backends.rows import AdapterRows
from duologue.backends.sampling import choose, weigh
from duologue.core.backend import Draw, Sampling
from duologue.errors import EngineError, refuse, require
from duologue.export.suppression import FloatArray, Leads
from duologue.text.template import Template
from duologue.types import InputState, Role, Token, Turn

NUM_GREEDY = 24
"""Tokens of the greedy answer to each prompt."""

DECISION_TOLERANCE = 0.02
"""How far an exported state probability may differ from that of the rows in float32."""

KEPT_TOLERANCE = 0.1
"""The same if the base's own 8-bit matrix was kept, which rounds rows and hidden states to 8 bits."""

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
        """The largest difference of a probability from that of `rows` in float32. `added`: ids of the rows."""
        probes, states, worst = added[: rows.num_probes], iter(added[rows.num_probes :]), 0.0
        groups = [(group, list(islice(states, len(group)))) for group in rows.output_groups]
        for prompt in self.prompts:
            for length in (len(prompt), len(prompt) // 2):
                logits, hidden = self.reader.read((*prompt[:length], *probes))
                for group, ids in groups:
                    difference = np.subtract(weigh(logits[-1, ids]), weigh(group @ hidden[-1]))
                    worst = max(worst, float(np.abs(difference).max()))
        return worst

    def _base(self, logits: FloatArray) -> FloatArray:
        """logits: [N, V]; returns [N, V], with added ids impossible."""
        return np.where(self.is_added, np.float32(-np.inf), logits)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and the results of its checks."""

    path: Path
    vocab_size: int  # rows of the matrices: base, added and padding
    added: dict[str, Token]  # the id of each added token by its text
    is_untied: bool  # a separate output matrix was written because a probe row would have won
    leads: Leads  # of the written file, on text that the shift was not computed from
    num_same: int  # greedy tokens equal to the base model's
    decision_error: float  # the largest difference of a state probability from that of the rows in float32
    lora: Path | None = None  # the file or folder of the adapter's LoRA, if it has one
    is_one_pass: bool = False  # the LoRA is part of the file


def check_out(out: Path, *, force: bool) -> None:
    """Raise `UsageError` if `out` exists; with `force`, remove it."""
    is_ours = any((out / name).exists() for name in ("config.json", "adapter_config.json"))
    is_other = out.is_dir() and not is_ours and any(out.iterdir())
    refuse(
        [
            (out.exists() and not force, f"{out} exists already; give another path, or --force to replace it"),
            (is_other, f"{out} is a folder with other content, which will not be replaced"),
        ]
    )
    if out.exists():
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    out.parent.mkdir(parents=True, exist_ok=True)


def token_names(rows: AdapterRows, states: Sequence[InputState]) -> list[str]:
    """Text of the added tokens. `states` names the state rows in their order."""
    num_rows = int(rows.states.shape[0])
    require(len(states) == num_rows, f"{len(states)} states for {num_rows} state rows; give one per row")
    return rows.token_names(states)


def check_report(report: ExportReport, num_compared: int, tolerance: float = DECISION_TOLERANCE) -> ExportReport:
    """Return `report`, or raise `EngineError` if what was written failed its checks."""
    num_won, num_other = report.leads.num_won, num_compared - report.num_same
    checks = (
        (num_won > 0, f"added rows win at {num_won} of {report.leads.num_tokens} positions of plain text"),
        (num_other > 0, f"{num_other} of {num_compared} greedy tokens differ from the base model"),
        (
            not report.decision_error <= tolerance,
            f"state probabilities are off by up to {report.decision_error:.3f}",
        ),
    )
    problems = [problem for is_so, problem in checks if is_so]
    if problems:
        raise EngineError(f"{report.path} was written but failed its checks: {'; '.join(problems)}")
    return report
