"""Writes a GGUF file with an adapter's rows, for llama.cpp and engines built on it, and perhaps with its LoRA."""

import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from duologue.backends.llamacpp.backend import LlamaCppBackend
from duologue.backends.llamacpp.gguf_convert import Progress, convert
from duologue.backends.llamacpp.gguf_facts import read_facts
from duologue.backends.llamacpp.gguf_lora import write_lora
from duologue.backends.llamacpp.gguf_one_pass import check_kind, write_one_pass
from duologue.backends.llamacpp.hidden_states import HiddenStateReader
from duologue.backends.llamacpp.tokenizer import GgufTokenizer
from duologue.backends.lora import Lora, adapter_digest
from duologue.backends.rows import AdapterRows
from duologue.core.backend import Extend
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
from duologue.types import InputState, Token


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
    one_pass: Lora | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write `source` with `rows` to `out` in a weight type (None keeps it), and check what was written.

    `states` names the state rows in their order. The model generates `num_tokens` of text from which the suppression of
    the rows is computed, and as many to check it. A LoRA for `one_pass` becomes part of the file (see
    `gguf_one_pass`), and decisions are compared with those in two passes.

    Raises:
        UsageError: `out` exists (without `force`), or see `gguf_convert.convert`.
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch: see `gguf_convert.convert`.
        EngineError: what was written failed its checks; it is left in place for inspection.
    """
    facts = read_facts(source)
    size, names = facts.vocab_size, token_names(rows, states)
    if one_pass is not None:
        check_kind(source)
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
        lora_error = 0.0 if one_pass is None else _make_one_pass(part, rows, one_pass, prompts, threads=threads)
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
            decision_error=max(lora_error, written.decision_error(rows, range(size, size + rows.num_added))),
            is_one_pass=one_pass is not None,
        )
    return check_report(report, expected.size, DECISION_TOLERANCE if weights else KEPT_TOLERANCE)


def _make_one_pass(
    path: Path, rows: AdapterRows, lora: Lora, prompts: Sequence[Sequence[Token]], *, threads: int
) -> float:
    """Add `lora` to the file at `path`, which has `rows`.

    Returns the largest difference of a probability from that of the same weights with the LoRA in a pass of its own.
    """
    factors, written = path.with_name("lora.gguf"), path.with_name("one-pass.gguf")
    write_lora(path, lora, factors)
    apart = _decisions(LlamaCppBackend(path, lora_path=factors, threads=threads), rows, prompts)
    write_one_pass(path, lora, written, digest=adapter_digest(rows, lora))
    written.replace(path)
    together = _decisions(LlamaCppBackend(path, threads=threads), rows, prompts)
    return float(np.abs(together - apart).max())


def _decisions(
    backend: LlamaCppBackend, rows: AdapterRows, prompts: Sequence[Sequence[Token]]
) -> npt.NDArray[np.float32]:
    """Probabilities of all groups of `rows` after each prompt, one after the other. Closes the backend."""
    first = backend.info.vocab_size
    probe, start, groups = tuple(range(first, first + rows.num_probes)), first + rows.num_probes, []
    for group in rows.output_groups:
        groups.append(tuple(range(start, start + len(group))))
        start += len(group)
    found: list[float] = []
    with closing(backend):
        for prompt in prompts:
            seq = backend.fork(None)
            (step,) = backend.forward([Extend(seq, (*prompt, *probe), watch=tuple(groups))])
            found += chain.from_iterable(step.p)
            backend.free(seq)
    return np.array(found, dtype=np.float32)
