"""Public corpora in repositories, from files of the same shape that were written for the tests."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from duologue.cli.main import main
from duologue.data.corpus import QUERY_KIND, TURN_KIND
from duologue.data.repositories import LOCK, REPOSITORIES, fetch_files
from duologue.errors import BadData, RemoteError, UsageError

TURNS = [("USER", "I need a table."), ("SYSTEM", "For how many?"), ("USER", "Two of us.")]
DIALOGUE = [{"role": "user", "text": "I need a table."}, {"role": "assistant", "text": "For how many?"},
            {"role": "user", "text": "Two of us."}]  # fmt: skip
MEETING = {"meeting_transcripts": [{"speaker": "A", "content": "So {vocalsound} we begin , right ? Yes , we do ."}]}
FILES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "banking77": (
        'text,category\n"My card, where is it?",card_arrival\n',
        [{"text": "My card, where is it?", "intent": "card_arrival", "kind": QUERY_KIND}],
    ),
    "clinc150": (
        {"train": [["set a timer", "timer"]], "oos_train": [["what of it", "oos"]]},
        [{"text": "set a timer", "kind": QUERY_KIND}],
    ),
    "restaurant8k": (
        [
            {"userInput": {"text": "A table for six"}},
            {"userInput": {"text": "At eight"}, "context": {"requestedSlots": ["time"]}},
        ],
        [{"text": "A table for six", "kind": QUERY_KIND}, {"text": "At eight", "kind": TURN_KIND}],
    ),
    "slurp": ('{"sentence": "wake me up", "intent": "alarm_set"}\n', [{"text": "wake me up", "intent": "alarm_set"}]),
    "hwu64": (
        "scenario;intent;answer_normalised;answer\nlight;off;lights off;Lights off!\n",
        [{"text": "lights off", "intent": "light_off"}],
    ),
    "self-instruct-seeds": (
        '{"instruction": "Name a river.", "instances": [{"input": "", "output": "The Po."}]}\n'
        '{"instruction": "Shorten this.", "instances": [{"input": "A long text.", "output": "Text."}]}\n',
        [{"text": "Name a river.", "answer": "The Po."}],
    ),
    "disfl_qa": (
        {"q1": {"original": "Who is he?", "disfluent": "Where no who is he?"}},
        [{"id": "q1", "text": "Where no who is he?", "fluent": "Who is he?"}],
    ),
    "sgd": (
        [{"dialogue_id": "1_0", "turns": [{"speaker": who, "utterance": said} for who, said in TURNS]}],
        [{"id": "1_0", "turns": DIALOGUE}],
    ),
    "taskmaster": (
        [{"conversation_id": "dlg-1", "utterances": [{"speaker": who.lower(), "text": said} for who, said in TURNS]}],
        [{"id": "dlg-1", "turns": DIALOGUE}],
    ),
    "topical_chat": (
        {"t1": {"content": [{"message": "Do you like dogs?", "agent": "agent_1"}]}},
        [{"text": "Do you like dogs?", "doc": "t1"}],
    ),
    "ami-meetings": (
        json.dumps(MEETING) + "\n",
        [{"text": "So we begin, right?", "doc": "meeting-0"}, {"text": "Yes, we do."}],
    ),
    "parliament-committees": (json.dumps(MEETING) + "\n", [{"text": "So we begin, right?"}, {"text": "Yes, we do."}]),
    "ljspeech": (
        "DUMMY/LJ001-0001.wav|Printing, in the only sense\n",
        [{"id": "LJ001-0001", "text": "Printing, in the only sense", "doc": "LJ001"}],
    ),
}


def copy_of(name: str, folder: Path, content: Any) -> Path:
    """A folder like the repository of the corpus; files after the first are empty of rows."""
    for number, path in enumerate(REPOSITORIES[name].paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            (content if isinstance(content, str) else json.dumps(content)) if not number else "[]", encoding="utf-8"
        )
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_every_corpus_is_exercised() -> None:
    assert set(FILES) == set(REPOSITORIES)


@pytest.mark.parametrize("name", FILES)
def test_a_corpus_becomes_a_source(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    copy = copy_of(name, tmp_path / "copy", content)
    command = ["data", "fetch", name, "--out", str(tmp_path / "corpora"), "--repo", str(copy)]
    assert main(command) == 0
    source = REPOSITORIES[name]
    found = rows_of(tmp_path / "corpora" / source.folder / f"{name}.jsonl.gz")
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert row.items() >= wanted.items()
        assert row["license"] == source.license
        assert row["id"]
    assert main(command) == 0, "it can be fetched again"


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    copy = copy_of("slurp", tmp_path / "copy", FILES["slurp"][0])
    path = fetch_files("slurp", tmp_path, 10, repo=str(copy))
    before = path.read_bytes()
    copy_of("slurp", copy, '{"sentence": "something else"}\n')
    with pytest.raises(BadData, match="has changed since it was first fetched"):
        fetch_files("slurp", tmp_path, 10, repo=str(copy))
    assert path.read_bytes() == before
    assert len(json.loads((tmp_path / LOCK).read_text())["slurp"]) == 1


@pytest.mark.parametrize("content", ['{"nothing": 1}\n', "[]", "no json\n"])
def test_files_of_another_format_are_named(content: str, tmp_path: Path) -> None:
    copy = copy_of("slurp", tmp_path / "copy", content)
    with pytest.raises(BadData, match=r"unexpected format|no usable row"):
        fetch_files("slurp", tmp_path, 10, repo=str(copy))
    with pytest.raises(BadData, match="cannot be read"):
        fetch_files("sgd", tmp_path, 10, repo=str(copy))


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown corpus"):
        fetch_files("nothing", tmp_path, 1)
    with pytest.raises(UsageError, match="limit"):
        fetch_files("slurp", tmp_path, 0)


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duologue.data.repositories._RAW", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9/pswietojanski/slurp/master/dataset/slurp/train\.jsonl"):
        fetch_files("slurp", tmp_path, 1)
    assert not (tmp_path / "queries" / "slurp.jsonl.gz").exists()
