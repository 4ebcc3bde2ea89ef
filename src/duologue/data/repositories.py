"""Public corpora that are files of a repository, written as sources that `data build` reads.

Files are downloaded once. Their checksums are kept in `SOURCES.json` beside the sources, and a file that has changed
since is refused. Nothing but https is used, and nothing of what is downloaded is executed.
"""

import csv
import gzip
import io
import itertools
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duologue.data.corpus import QUERY_KIND, TURN_KIND
from duologue.errors import BadData, RemoteError, refuse

Row = dict[str, Any]
_RAW = "https://raw.githubusercontent.com"
_MOST_BYTES = 1 << 28  # of a file
_TIMEOUT_S = 60.0
_LONGEST = 60  # words of a line of background
LOCK = "SOURCES.json"
"""The file with the checksums of what was downloaded, in the folder of the sources."""


@dataclass(frozen=True, slots=True)
class RepositorySource:
    """Where a corpus is, under which licence, and how its files become rows."""

    repo: str  # on GitHub
    folder: str  # of sources: queries, background, dialogues or hard
    license: str
    paths: tuple[str, ...]
    convert: Callable[[str], Iterable[Row]]  # the text of a file to rows, without ids if it knows none
    ref: str = "master"  # commit, tag or branch


def _json(text: str) -> Any:
    return json.loads(text)


def _json_lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def _query(text: str, **more: Any) -> Row:
    return {"text": text, "kind": QUERY_KIND, **more}


def _banking(text: str) -> Iterator[Row]:
    for row in csv.DictReader(io.StringIO(text)):
        yield _query(row["text"], intent=row["category"])


def _clinc(text: str) -> Iterator[Row]:
    for name, rows in _json(text).items():
        for said, intent in rows if "oos" not in name else ():
            yield _query(said, intent=intent)


def _restaurant(text: str) -> Iterator[Row]:
    for row in _json(text):
        is_asked = bool(row.get("context", {}).get("requestedSlots"))
        yield {"text": row["userInput"]["text"], "kind": TURN_KIND if is_asked else QUERY_KIND}


def _slurp(text: str) -> Iterator[Row]:
    for row in _json_lines(text):
        yield _query(row["sentence"], intent=row.get("intent", ""))


def _hwu(text: str) -> Iterator[Row]:
    for row in csv.DictReader(io.StringIO(text), delimiter=";"):
        yield _query(row["answer_normalised"] or row["answer"], intent=f"{row['scenario']}_{row['intent']}")


def _seeds(text: str) -> Iterator[Row]:
    for row in _json_lines(text):
        if not any(instance["input"] for instance in row["instances"]):
            yield _query(row["instruction"], answer=row["instances"][0]["output"])


def _disfluent(text: str) -> Iterator[Row]:
    for name, row in _json(text).items():
        yield {"id": name, "text": row["disfluent"], "fluent": row["original"], "kind": "disfluent_query"}


def _turns(utterances: Iterable[tuple[str, str]]) -> Row:
    is_user = (("user" if who.lower() == "user" else "assistant", said) for who, said in utterances)
    return {"turns": [{"role": role, "text": said.strip()} for role, said in is_user]}


def _schema_guided(text: str) -> Iterator[Row]:
    for row in _json(text):
        yield {"id": row["dialogue_id"], **_turns((turn["speaker"], turn["utterance"]) for turn in row["turns"])}


def _taskmaster(text: str) -> Iterator[Row]:
    for row in _json(text):
        turns = _turns((turn["speaker"], turn["text"]) for turn in row["utterances"])
        yield {"id": row["conversation_id"], **turns}


def _topical(text: str) -> Iterator[Row]:
    for name, row in _json(text).items():
        for turn in row["content"]:
            yield {"text": turn["message"], "kind": "chat", "doc": name}


def _meetings(text: str) -> Iterator[Row]:
    for number, row in enumerate(_json_lines(text)):
        for turn in row["meeting_transcripts"]:
            said = re.sub(r"\{[^{}]*\}", " ", turn["content"])
            for sentence in re.split(r"(?<=[.?!])\s+", " ".join(said.split())):
                if 1 < len(sentence.split()) <= _LONGEST:
                    yield {
                        "text": re.sub(r"\s+([,.?!])", r"\1", sentence),
                        "kind": "meeting",
                        "doc": f"meeting-{number}",
                    }


def _read_aloud(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        name, _, said = line.partition("|")
        if said:
            book = Path(name).stem.partition("-")[0]
            yield {"id": Path(name).stem, "text": said, "kind": "audiobook", "doc": book}


REPOSITORIES: dict[str, RepositorySource] = {
    "banking77": RepositorySource(
        "PolyAI-LDN/task-specific-datasets", "queries", "CC-BY-4.0", ("banking_data/train.csv",), _banking
    ),
    "clinc150": RepositorySource("clinc/oos-eval", "queries", "CC-BY-3.0", ("data/data_full.json",), _clinc),
    "restaurant8k": RepositorySource(
        "PolyAI-LDN/task-specific-datasets", "queries", "CC-BY-4.0",
        ("span_extraction/restaurant8k/train_0.json",), _restaurant,
    ),
    "slurp": RepositorySource("pswietojanski/slurp", "queries", "CC-BY-4.0", ("dataset/slurp/train.jsonl",), _slurp),
    "hwu64": RepositorySource(
        "xliuhw/NLU-Evaluation-Data", "queries", "CC-BY-4.0",
        ("AnnotatedData/NLU-Data-Home-Domain-Annotated-All.csv",), _hwu,
    ),
    "self-instruct-seeds": RepositorySource(
        "yizhongw/self-instruct", "queries", "Apache-2.0", ("data/seed_tasks.jsonl",), _seeds, "main"
    ),
    "disfl_qa": RepositorySource(
        "google-research-datasets/Disfl-QA", "hard", "CC-BY-4.0", ("train.json",), _disfluent,
        "d7304742ae2a00c628501aa505bcd6974006e40c",
    ),
    "sgd": RepositorySource(
        "google-research-datasets/dstc8-schema-guided-dialogue", "dialogues", "CC-BY-SA-4.0",
        tuple(f"train/dialogues_{number:03}.json" for number in range(1, 128)), _schema_guided,
    ),
    "taskmaster": RepositorySource(
        "google-research-datasets/Taskmaster", "dialogues", "CC-BY-4.0",
        tuple(f"TM-3-2020/data/data_{number:02}.json" for number in range(20)), _taskmaster,
    ),
    "topical_chat": RepositorySource(
        "alexa/Topical-Chat", "background", "CDLA-Sharing-1.0", ("conversations/train.json",), _topical
    ),
    "ami-meetings": RepositorySource(
        "Yale-LILY/QMSum", "background", "CC-BY-4.0 (AMI), MIT (QMSum)", ("data/Product/jsonl/train.jsonl",), _meetings,
        "main",
    ),
    "parliament-committees": RepositorySource(
        "Yale-LILY/QMSum", "background", "MIT", ("data/Committee/jsonl/train.jsonl",), _meetings,
        "c24725a677564bff082148fb139fa42b389e6329",
    ),
    "ljspeech": RepositorySource(
        "NVIDIA/tacotron2", "background", "public domain", ("filelists/ljs_audio_text_train_filelist.txt",), _read_aloud
    ),
}  # fmt: skip
"""Name of a source → where it is: public corpora behind the shipped adapters."""


def fetch_files(
    name: str,
    out: Path,
    limit: int,
    *,
    repo: str | None = None,
    revision: str | None = None,
    on_row: Callable[[int], None] = lambda num_rows: None,
) -> Path:
    """Write up to `limit` rows of a corpus as a source below `out`; returns the file, `queries/NAME.jsonl.gz`.

    Args:
        repo: a copy, on GitHub or in a local folder with the same files.
        revision: the commit, tag or branch to read.
        on_row: receives the number of rows after each row.

    Raises:
        UsageError: no source of that name, or a limit below one.
        RemoteError: a file cannot be downloaded.
        BadData: a file has another format, or has changed since it was first fetched.
    """
    refuse(
        [
            (name not in REPOSITORIES, f"unknown corpus {name!r}; known are {', '.join(REPOSITORIES)}"),
            (limit < 1, f"the limit must be at least one row, got a limit of {limit}"),
        ]
    )
    source = REPOSITORIES[name]
    final = out / source.folder / f"{name}.jsonl.gz"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial, num_rows = final.with_suffix(".packed"), 0
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            for row in itertools.islice(_rows(name, source, out, repo, revision), limit):
                packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                num_rows += 1
                on_row(num_rows)
        if not num_rows:
            raise BadData(f"{repo or source.repo} has no usable row of {name}")
        partial.replace(final)
    except OSError as error:
        raise BadData(f"cannot write {final}: {error}") from error
    return final


def _rows(name: str, source: RepositorySource, out: Path, repo: str | None, revision: str | None) -> Iterator[Row]:
    number = 0
    for path in source.paths:
        data = _read(source, path, repo, revision)
        _check(out / LOCK, name, f"{repo or source.repo}@{revision or source.ref}/{path}", data)
        try:
            for row in source.convert(data.decode("utf-8-sig")):
                if row.get("turns") or str(row.get("text", "")).strip():
                    facts = {"source": repo or source.repo, "license": source.license}
                    yield {"id": f"{name}-{number}", **row, **facts}
                    number += 1
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadData(f"{path} of {repo or source.repo} has an unexpected format ({error})") from error


def _read(source: RepositorySource, path: str, repo: str | None, revision: str | None) -> bytes:
    if repo is not None and Path(repo).is_dir():
        try:
            return (Path(repo) / path).read_bytes()
        except OSError as error:
            raise BadData(f"{Path(repo) / path} cannot be read: {error.strerror}") from error
    url = f"{_RAW}/{repo or source.repo}/{revision or source.ref}/{quote(path)}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data = bytes(answer.read(_MOST_BYTES + 1))
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise RemoteError(
            f"{url} cannot be downloaded ({error}). Check the network, or use --repo with a copy"
        ) from error
    if len(data) > _MOST_BYTES:
        raise RemoteError(f"{url} has more than {_MOST_BYTES >> 20} MB")
    return data


def _check(lock: Path, name: str, place: str, data: bytes) -> None:
    """Compare a file with its checksum; note the checksum of a new one."""
    known: dict[str, Any] = json.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    found, files = sha256(data).hexdigest(), known.setdefault(name, {})
    if files.setdefault(place, found) != found:
        raise BadData(
            f"{place} has changed since it was first fetched (see {lock}); pin a commit with --revision, or remove its "
            "line there to accept the new one"
        )
    lock.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
