"""A GGUF file with an adapter's rows in place, for llama.cpp and what is built on it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duologue.backends.llamacpp.gguf_files import GgufFacts, Progress, convert, read_facts
from duologue.backends.llamacpp.hidden_states import FloatArray, Looker, hidden_states, looking, own_text
from duologue.backends.llamacpp.tokenizer import GgufTokenizer
from duologue.backends.rows import Rows
from duologue.export.checks import (
    DECISION_TOLERANCE,
    KEPT_TOLERANCE,
    ExportReport,
    check_out,
    check_report,
    quiet_rows,
    softmax,
    starts,
    state_names,
)
from duologue.export.suppression import Leads, quieted
from duologue.text.template import Template
from duologue.types import InputState, Token

_NUM_GREEDY = 24


def export_gguf(
    source: Path,
    rows: Rows,
    out: Path,
    *,
    states: Sequence[InputState] = tuple(InputState),
    weights: str | None = None,
    num_tokens: int = 2000,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `source` with `rows` to `out` in the given weight type (None keeps it), and check what was written.

    `states` names the state rows, in their order. `num_tokens` of the model's own text are used to keep the rows quiet,
    and as many new ones to check it.

    Raises:
        UsageError: `out` exists (unless `force`), or as `gguf_files.convert`.
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch: as `gguf_files.convert`.
        EngineError: what was written did not pass its checks; it is left there to be looked at.
    """
    facts = read_facts(source)
    names = state_names(rows, states)
    check_out(out, force=force)
    template = Template.from_tokenizer(GgufTokenizer.from_file(source))
    begins = starts(template)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        base = Path(folder) / "base.gguf"
        convert(source, base, weights=weights, progress=progress)
        with looking(base, threads=threads) as looker:
            size = facts.vocab_size
            text = own_text(looker, num_tokens, base_vocab_size=size, starts=begins)
            quiet = quieted(rows, *hidden_states(looker, text, size))
            expected = [_greedy(looker, begin, size) for begin in begins]
        part = Path(folder) / out.name
        convert(
            source,
            part,
            weights=weights,
            rows=quiet_rows(rows, quiet),
            names=names,
            padding=quiet.padding,
            untie=quiet.untie,
            progress=progress,
        )
        part.replace(out)
    with looking(out, threads=threads) as looker:
        said = [_greedy(looker, begin, facts.vocab_size) for begin in begins]
        report = ExportReport(
            path=out,
            vocab_size=looker.vocab_size,
            added={name: facts.vocab_size + i for i, name in enumerate(names)},
            is_untied=quiet.untie and facts.is_tied,
            leads=_leads(looker, begins, facts.vocab_size, num_tokens),
            num_same=sum(
                a == b for mine, base_ in zip(said, expected, strict=True) for a, b in zip(mine, base_, strict=True)
            ),
            decision_error=_decision_error(looker, rows, begins, facts),
        )
    return check_report(report, len(begins) * _NUM_GREEDY, DECISION_TOLERANCE if weights else KEPT_TOLERANCE)


def _greedy(looker: Looker, begin: Sequence[Token], base_vocab_size: int) -> list[Token]:
    """The most probable base tokens after `begin`, whether or not they end the answer."""
    looker.reset()
    logits, _ = looker.feed(begin)
    said = []
    for _ in range(_NUM_GREEDY):
        said.append(int(logits[-1, :base_vocab_size].argmax()))
        logits, _ = looker.feed(said[-1:])
    return said


def _leads(looker: Looker, begins: Sequence[Sequence[Token]], base_vocab_size: int, num_tokens: int) -> Leads:
    """On new text, from the file's own logits."""
    leads: list[FloatArray] = []
    for text in own_text(looker, num_tokens, base_vocab_size=base_vocab_size, starts=begins, seed=1):
        looker.reset()
        logits, _ = looker.feed(text)
        leads.append(logits[:, :base_vocab_size].max(axis=1) - logits[:, base_vocab_size:].max(axis=1))
    all_leads = np.concatenate(leads)
    return Leads(len(all_leads), int((all_leads <= 0).sum()), float(all_leads.min()))


def _decision_error(looker: Looker, rows: Rows, begins: Sequence[Sequence[Token]], facts: GgufFacts) -> float:
    num_probes = rows.probes.shape[0]
    first = facts.vocab_size + num_probes
    worst = 0.0
    for begin in begins:
        for cut in (len(begin), len(begin) // 2):
            looker.reset()
            logits, hidden = looker.feed((*begin[:cut], *range(facts.vocab_size, first)))
            written = softmax(logits[-1, first : first + rows.states.shape[0]])
            worst = max(worst, float(np.abs(written - softmax(rows.states @ hidden[-1])).max()))
    return worst
