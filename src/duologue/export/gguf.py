"""Writes a GGUF file with an adapter's rows, for llama.cpp and engines built on it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duologue.backends.llamacpp.gguf_convert import Progress, convert
from duologue.backends.llamacpp.gguf_facts import read_facts
from duologue.backends.llamacpp.hidden_states import HiddenStateReader
from duologue.backends.llamacpp.tokenizer import GgufTokenizer
from duologue.backends.rows import AdapterRows
from duologue.export.inspection import (
    DECISION_TOLERANCE,
    KEPT_TOLERANCE,
    ExportReport,
    Inspection,
    check_out,
    check_report,
    prompts_of,
    token_names,
)
from duologue.export.suppression import suppress
from duologue.text.template import Template
from duologue.types import InputState


def export_gguf(
    source: Path,
    rows: AdapterRows,
    out: Path,
    *,
    states: Sequence[InputState] = tuple(InputState),
    weights: str | None = None,
    num_tokens: int = 2000,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `source` with `rows` to `out` in a weight type (None keeps it), and check what was written.

    `states` names the state rows in their order. The model generates `num_tokens` of text from which the suppression of
    the rows is computed, and as many to check it.

    Raises:
        UsageError: `out` exists (without `force`), or see `gguf_convert.convert`.
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch: see `gguf_convert.convert`.
        EngineError: what was written failed its checks; it is left in place for inspection.
    """
    facts = read_facts(source)
    size, names = facts.vocab_size, token_names(rows, states)
    check_out(out, force=force)
    prompts = prompts_of(Template.from_tokenizer(GgufTokenizer.from_file(source)))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        base_path, part = Path(folder) / "base.gguf", Path(folder) / out.name
        convert(source, base_path, weights=weights, progress=progress)
        with HiddenStateReader(base_path, threads=threads) as reader:
            base = Inspection(reader, prompts, np.zeros(reader.vocab_size, dtype=bool))
            suppressed = suppress(rows, *base.hidden_states(base.sample(num_tokens, seed=0)))
            expected = base.greedy()
        convert(
            source,
            part,
            weights=weights,
            rows=suppressed.rows,
            names=names,
            padding=suppressed.padding,
            untie=suppressed.untie,
            progress=progress,
        )
        part.replace(out)
    with HiddenStateReader(out, threads=threads) as reader:
        written = Inspection(reader, prompts, np.arange(reader.vocab_size) >= size)
        report = ExportReport(
            path=out,
            vocab_size=reader.vocab_size,
            added={name: size + i for i, name in enumerate(names)},
            is_untied=suppressed.untie and facts.is_tied,
            leads=written.leads(written.sample(num_tokens, seed=1)),
            num_same=int((written.greedy() == expected).sum()),
            decision_error=written.decision_error(rows, range(size, size + rows.num_added)),
        )
    return check_report(report, expected.size, DECISION_TOLERANCE if weights else KEPT_TOLERANCE)
