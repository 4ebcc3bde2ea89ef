"""The labelled rows of a test file: samples with their line numbers, so that an error can name the line."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from duologue.data.jsonl import read_rows
from duologue.data.samples import Sample
from duologue.errors import BadData, TemplateError
from duologue.hearing.clips.files import read_sounds
from duologue.hearing.evidence import Features
from duologue.models.model import Model
from duologue.training.layout import Layout, Layouts
from duologue.types import InputState, Role

BLOCK = 512
"""Rows that are scored together, whoever scores them: what they share is computed once."""

_FIELDS = {field.name for field in fields(Sample)}
_Parse = Callable[[Mapping[str, Any]], Sample]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Samples of a file. `lines[i]` is the line of `samples[i]`; `unread` names fields that samples do not have."""

    path: Path
    samples: tuple[Sample, ...]
    lines: tuple[int, ...]
    unread: tuple[str, ...] = ()
    sounds: Sequence[Features] | None = None  # [K, F] of each row, beside its words

    def error(self, index: int, reason: str) -> BadData:
        """An error that names the line of row `index`."""
        return BadData(f"{self.path}, line {self.lines[index]}: {reason}")


def read(path: Path, parse: _Parse = Sample.from_json) -> LabelledRows:
    """All rows of a JSONL file, each read by `parse`, which raises `BadData` if it cannot.

    Raises:
        BadData: a line is invalid, or there are no rows.
    """
    return _together(path, _rows(path, parse))


def read_blocks(path: Path) -> Iterator[LabelledRows]:
    """What `read` returns, `BLOCK` rows at a time."""
    rows = _rows(path, Sample.from_json)
    yield _together(path, islice(rows, BLOCK))
    for first in rows:
        yield _together(path, [first, *islice(rows, BLOCK - 1)])


_Row = tuple[int, Sample, frozenset[str]]  # its line, and the names of fields that are not read


def _rows(path: Path, parse: _Parse) -> Iterator[_Row]:
    for line, row in read_rows(path):
        try:
            sample = parse(row)
            _check(sample)
        except BadData as error:
            raise BadData(f"{path}, line {line}: {error}") from None
        yield line, sample, frozenset(row.keys() - _FIELDS)


def _together(path: Path, rows: Iterable[_Row]) -> LabelledRows:
    samples, lines, unread = [], [], set[str]()
    for line, sample, names in rows:
        samples.append(sample)
        lines.append(line)
        unread |= names
    if not samples:
        raise BadData(f"{path} has no rows; write one JSON object per line")
    return LabelledRows(path, tuple(samples), tuple(lines), tuple(sorted(unread)))


def with_sounds(rows: LabelledRows) -> LabelledRows:
    """`rows` with the sounds in the file beside theirs (`duologue.hearing.clips.files`).

    Raises:
        BadData: there is no such file, it is damaged, or it belongs to other rows.
    """
    sounds = read_sounds(rows.path, max(rows.lines))
    return replace(rows, sounds=[sounds.features[line - 1] for line in rows.lines])


def _check(sample: Sample) -> None:
    if not sample.text.strip():
        raise BadData("the text is empty; there is nothing to decide on before the first word")
    if sample.speaking and (not sample.context or sample.context[-1].role is not Role.ASSISTANT):
        raise BadData(
            "speaking means that the last turn of context is a running answer, but that turn is not an answer"
        )
    if any(turn.role is Role.SYSTEM for turn in sample.context):
        raise BadData('context has a system turn; write its text as "system": "…" beside it')


def check_labels(rows: LabelledRows, states: Sequence[InputState]) -> None:
    """Raise `BadData` for a row whose label is not one of `states`, those of the adapter."""
    for index, sample in enumerate(rows.samples):
        if sample.state not in states:
            raise rows.error(
                index,
                f"labelled {sample.state}, which this adapter does not know ({', '.join(states)}); remove such rows "
                "or use an adapter with that state",
            )


def lay_out(rows: LabelledRows, model: Model) -> list[Layout]:
    """The rows as tokens, as a session feeds them.

    Raises:
        BadData: a row with the probe does not fit into the model's context, or the template refuses its turns.
    """
    layouts = Layouts(model.template)
    found = []
    for index, sample in enumerate(rows.samples):
        try:
            layout = layouts.of(sample)
        except TemplateError as error:
            raise rows.error(index, str(error)) from None
        if rows.sounds is not None:
            layout = replace(layout, evidence=model.evidence(rows.sounds[index]))
        length = layout.length + model.probe.length
        if length > model.max_length:
            raise rows.error(
                index,
                f"{length} tokens with the probe, but the context holds {model.max_length}; allow more with --context "
                "or shorten the row",
            )
        found.append(layout)
    return found
