"""Hugging Face datasets by name, written as sources that `data build` reads.

Rows are streamed, and only the needed columns of Parquet files are read, so that no audio is downloaded. The order is
shuffled with a fixed seed, because the parts of a dataset are often sorted. An interrupted fetch continues where it
stopped, and a larger limit continues a finished one.
"""

import gzip
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from duologue.data.jsonl import complete_lines
from duologue.errors import BadData, DuologueError, MissingDependency, RemoteError, refuse
from duologue.types import Role

Row = dict[str, Any]

_SHUFFLE_ROWS = 2000
"""Size of the buffer from which the next row is drawn; files are shuffled as well."""

_PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where a dataset is, and the names of its columns."""

    repo: str
    folder: str  # of sources: queries, background or dialogues
    split: str
    license: str
    id: tuple[str, ...]  # columns that together identify a row
    fields: Mapping[str, str]  # field of a source's row → column
    convert: Callable[[Row], Row | None]  # completes the row; None leaves it out
    config: str | None = None
    revision: str | None = None  # None: the newest
    pinned: str | None = None  # the caller's choice instead of `revision`, stored with each row

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([*self.id, *self.fields.values()]))


def transcript(text: str) -> str:
    """A GigaSpeech transcript in written form: tags become punctuation, noise tags go, capitals are restored."""
    text = re.sub(r"\s*<(\w+)>", lambda tag: _PUNCTUATION.get(tag[1].upper(), " "), text)
    text = re.sub(r"^[\s,.?!]+", "", " ".join(text.split()))
    if text.isupper():
        text = re.sub(r"(?:^|[.?!] )\w", lambda start: start[0].upper(), text.lower())
        text = re.sub(r"\bi\b", "I", text)
    return text


def _query(row: Row) -> Row | None:
    """Rounds after the first depend on what was said before; they belong to the document of the first."""
    turn = str(row.pop("round"))
    is_later = turn.isdigit() and int(turn) > 0
    row["kind"] = "assistant_turn" if is_later else "assistant_query"
    if not is_later:
        row["doc"] = row["id"].removesuffix(f"-{turn}")
    return row


def _segment(row: Row) -> Row | None:
    return {**row, "text": transcript(row["text"])}


def _dialogue(row: Row) -> Row | None:
    """The messages of user and assistant; a row with other roles is left out."""
    turns = [
        {"role": str(message["role"]), "text": str(message["content"]).strip()}
        for message in row.pop("messages")
        if message["role"] != Role.SYSTEM
    ]
    if not turns or not {turn["role"] for turn in turns} <= {Role.USER, Role.ASSISTANT}:
        return None
    return {**row, "turns": turns}


SOURCES: dict[str, HubSource] = {
    "voiceassistant": HubSource(
        repo="gpt-omni/VoiceAssistant-400K",
        folder="queries",
        split="train",
        license="Apache-2.0",
        id=("split_name", "index", "round"),
        fields={"text": "question", "answer": "answer", "round": "round"},
        convert=_query,
    ),
    "gigaspeech": HubSource(
        repo="speechcolab/gigaspeech",
        folder="background",
        split="train",
        license="Apache-2.0",
        id=("segment_id",),
        fields={"text": "text", "doc": "audio_id", "kind": "source"},
        convert=_segment,
        config="xl",
        revision="refs/pr/20",  # its Parquet files; the main branch has a loading script, which is no longer supported
    ),
    "ultrachat": HubSource(
        repo="HuggingFaceH4/ultrachat_200k",
        folder="dialogues",
        split="train_sft",
        license="MIT",
        id=("prompt_id",),
        fields={"messages": "messages"},
        convert=_dialogue,
    ),
}
"""Name of a source → where it is: the paper's queries, its background, and the dialogues of Duplex-UltraChat."""


def fetch(
    name: str,
    out: Path,
    limit: int,
    *,
    repo: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    on_row: Callable[[int], None] = lambda num_rows: None,
) -> Path:
    """Write up to `limit` rows of a dataset as a source below `out`; returns the file, `queries/NAME.jsonl.gz`.

    Args:
        repo: a copy of the dataset, on the hub or in a local folder; `config` selects a part of it.
        revision: the commit, tag or branch to read. Rows of another one are not continued.
        on_row: receives the number of rows after each row.

    Raises:
        UsageError: no source of that name, or a limit below one.
        MissingDependency: the library `datasets` is not installed.
        RemoteError: the hub cannot be reached or requires a login; rows fetched so far are kept.
        BadData: the dataset has other columns or splits, or the existing file comes from another dataset.
    """
    refuse(
        [
            (name not in SOURCES, f"unknown dataset {name!r}; known are {', '.join(SOURCES)}"),
            (limit < 1, f"the limit must be at least one row, got a limit of {limit}"),
        ]
    )
    source = replace(SOURCES[name], pinned=revision)
    if repo is not None:  # a copy has its own configurations and revisions
        source = replace(source, repo=repo, config=config, revision=None)
    final = out / source.folder / f"{name}.jsonl.gz"
    part = final.with_name(f"{name}.part")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not part.exists():
            _unpack(final, part)
        num_rows, position = _progress(part, source)
        with part.open("a", encoding="utf-8") as file:
            for row in itertools.islice(_rows(source, position), max(0, limit - num_rows)):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_rows += 1
                on_row(num_rows)
        if not num_rows:
            raise BadData(f"{source.repo} has no usable row in split {source.split!r}")
        _pack(part, final)
    except (OSError, EOFError) as error:
        raise BadData(f"cannot write {final}: {error}") from error
    return final


def _rows(source: HubSource, position: int) -> Iterator[Row]:
    """Rows of a source from a position in the dataset on; each stores its own position."""
    pinned = {} if source.pinned is None else {"revision": source.pinned}
    try:
        data, labels = _stream(source)
        for at, found in enumerate(data.skip(position), position):
            found |= {column: kind.int2str(found[column]) for column, kind in labels.items()}
            row = {"id": "-".join(str(found[column]) for column in source.id)}
            row |= {name: found[column] for name, column in source.fields.items() if found[column] is not None}
            converted = source.convert(row)
            if converted is not None and (converted.get("turns") or str(converted.get("text", "")).strip()):
                yield {**converted, "source": source.repo, "license": source.license, "position": at, **pinned}
    except DuologueError:
        raise
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise BadData(
            f"{source.repo} has an unexpected format ({type(error).__name__}: {error}); columns {source.columns} of "
            f"split {source.split!r} are needed. Use --repo with a Parquet copy that has them"
        ) from error
    except Exception as error:
        raise RemoteError(
            f"{source.repo} cannot be read ({type(error).__name__}: {error}). Check the network, and use "
            "`hf auth login` if the dataset has terms to accept; the same command continues where this one stopped"
        ) from error


def _stream(source: HubSource) -> tuple[Any, dict[str, Any]]:
    """The dataset in shuffled order with only the needed columns, and the columns that hold class labels."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            'datasets from the hub need the library datasets: pip install "duologue[hub]"'
        ) from error
    revision = source.pinned or source.revision
    builder = datasets.load_dataset_builder(source.repo, source.config, revision=revision)
    # formats that can skip columns have a setting for it
    can_choose = "columns" in {setting.name for setting in fields(builder.config)}
    data = datasets.load_dataset(
        source.repo,
        source.config,
        split=source.split,
        revision=revision,
        streaming=True,
        **({"columns": source.columns} if can_choose else {}),
    ).select_columns(source.columns)
    labels = {name: kind for name, kind in (data.features or {}).items() if isinstance(kind, datasets.ClassLabel)}
    return data.shuffle(seed=0, buffer_size=_SHUFFLE_ROWS), labels


def _progress(part: Path, source: HubSource) -> tuple[int, int]:
    """The number of existing rows and the position of the next; an incomplete last line is removed."""
    num_rows = position = 0
    for num_rows, line in enumerate(complete_lines(part, b'{"id": '), 1):
        try:
            row = json.loads(line)
            is_ours = row["source"] == source.repo and row.get("revision") == source.pinned
            position = int(row["position"]) + 1
        except (ValueError, LookupError, TypeError):
            is_ours = False
        if not is_ours:
            raise BadData(
                f"line {num_rows} of {part} was not fetched from {source.repo} at the same revision; remove the file "
                "and its compressed form, or fetch into another folder"
            )
    return num_rows, position


def _unpack(final: Path, part: Path) -> None:
    temporary = part.with_suffix(".unpacked")
    with gzip.open(final, "rb") as packed, temporary.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    temporary.replace(part)


def _pack(part: Path, final: Path) -> None:
    """Compress atomically: the finished file appears as a whole or not at all."""
    temporary = part.with_suffix(".packed")
    with part.open("rb") as plain, temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        shutil.copyfileobj(plain, packed)
    temporary.replace(final)
    part.unlink()
