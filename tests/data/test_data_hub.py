"""Datasets of the hub, on local files with the same columns and made-up rows."""

import dataclasses
import functools
import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from duologue.data import hub
from duologue.data.corpus import dialogues, source_files, utterances
from duologue.data.hub import SOURCES, fetch, transcript
from duologue.errors import BadData, MissingDependency, RemoteError, UsageError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# What the cards of the datasets say of their columns.
VOICE_CARD = """---
dataset_info:
  features:
  - {name: split_name, dtype: string}
  - {name: index, dtype: string}
  - {name: round, dtype: string}
  - {name: question, dtype: string}
  - {name: question_audio, dtype: audio}
  - {name: answer, dtype: string}
  - {name: answer_snac, dtype: string}
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
---
"""
GIGA_CARD = """---
dataset_info:
- config_name: xl
  features:
  - {name: segment_id, dtype: string}
  - {name: speaker, dtype: string}
  - {name: text, dtype: string}
  - {name: audio, dtype: {audio: {sampling_rate: 16000}}}
  - {name: audio_id, dtype: string}
  - {name: source, dtype: {class_label: {names: {'0': audiobook, '1': podcast, '2': youtube}}}}
configs:
- config_name: xl
  data_files:
  - {split: train, path: xl/train-*}
---
"""


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def write(path: Path, rows: list[dict[str, Any]], card: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if card:
        (path.parent.parent / "README.md").write_text(card)


def audio(num: int) -> dict[str, Any]:
    return {"bytes": b"no audio", "path": f"{num}.wav"}  # decoding it would fail


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    """Queries in two files; every tenth is the second round of the one before."""
    rows = []
    for i in range(60):
        group, turn = ("multi", str(i % 2)) if i % 10 < 2 else ("single", "None")
        index = str(i - i % 2 if group == "multi" else i)
        row = {"split_name": group, "index": index, "round": turn, "question": f" Where is lake {i}? "}
        rows.append(row | {"question_audio": audio(i), "answer": f"In land {i}.", "answer_snac": "# 1 2"})
    write(tmp_path / "voice" / "data" / "train-00000-of-00002.parquet", rows[:30], VOICE_CARD)
    write(tmp_path / "voice" / "data" / "train-00001-of-00002.parquet", rows[30:])
    return tmp_path / "voice"


def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_queries_come_with_answers_and_rounds_with_their_document(voice: Path, tmp_path: Path) -> None:
    path = fetch("voiceassistant", tmp_path / "out", 1000, repo=str(voice))
    assert path == tmp_path / "out" / "queries" / "voiceassistant.jsonl.gz"
    found = {row["id"]: row for row in rows_of(path)}
    assert len(found) == 60
    first, later, alone = found["multi-10-0"], found["multi-10-1"], found["single-13-None"]
    assert alone["answer"] == "In land 13."
    assert alone["text"].strip() == "Where is lake 13?"
    assert [row["kind"] for row in (first, later, alone)] == ["assistant_query", "assistant_turn", "assistant_query"]
    assert set(alone) == {"id", "text", "answer", "kind", "doc", "source", "license", "position"}
    parts = {item.text: item.part for item in utterances(path, "voiceassistant", 1000, random.Random(0), {})}
    assert parts["Where is lake 10?"] == parts["Where is lake 11?"]
    assert len(set(parts.values())) > 40


def test_background_is_written_as_people_write(tmp_path: Path) -> None:
    texts = ["SO I'M LATE <COMMA> AND HE LEFT <PERIOD> WHY <QUESTIONMARK>", "<MUSIC>", "<SIL>", "GO <NOISE> HOME"]
    rows = [
        {"segment_id": f"POD1_{i}", "speaker": "N/A", "text": text, "audio": audio(i), "audio_id": "POD1", "source": 1}
        for i, text in enumerate(texts)
    ]
    write(tmp_path / "giga" / "xl" / "train-00000-of-00001.parquet", rows, GIGA_CARD)
    path = fetch("gigaspeech", tmp_path / "out", 10, repo=str(tmp_path / "giga"), config="xl")
    found = sorted((row["id"], row["text"], row["doc"], row["kind"]) for row in rows_of(path))
    assert found == [
        ("POD1_0", "So I'm late, and he left. Why?", "POD1", "podcast"),
        ("POD1_3", "Go home", "POD1", "podcast"),
    ]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_dialogues_keep_the_two_sides(tmp_path: Path, suffix: str) -> None:
    def message(role: str, content: str) -> dict[str, str]:
        return {"content": content, "role": role}

    talk = [message("user", "Name a lake."), message("assistant", "The long one."), message("user", "Thanks")]
    rows = [
        {"prompt": "Name a lake.", "prompt_id": "a1", "messages": [message("system", "Be kind."), *talk]},
        {"prompt": "Name a sea.", "prompt_id": "a2", "messages": [*talk, message("tool", "{}")]},
    ]
    write(tmp_path / "chat" / "data" / f"train_sft-00000-of-00001.{suffix}", rows)
    path = fetch("ultrachat", tmp_path / "out", 10, repo=str(tmp_path / "chat"))
    [row] = rows_of(path)
    assert row["id"] == "a1"
    assert row["turns"][0] == {"role": "user", "text": "Name a lake."}
    assert len(dialogues(path, "ultrachat", 10, random.Random(0))[0].turns) == 3


def test_the_order_is_shuffled_and_the_same_each_time(voice: Path, tmp_path: Path) -> None:
    first = rows_of(fetch("voiceassistant", tmp_path / "one", 20, repo=str(voice)))
    again = rows_of(fetch("voiceassistant", tmp_path / "two", 20, repo=str(voice)))
    assert first == again
    numbers = [int(row["answer"].removeprefix("In land ").removesuffix(".")) for row in first]
    assert numbers != sorted(numbers)
    assert {number < 30 for number in numbers} == {True, False}


class Killed(BaseException):
    pass


def test_a_killed_fetch_goes_on_and_a_larger_limit_continues(voice: Path, tmp_path: Path) -> None:
    whole = rows_of(fetch("voiceassistant", tmp_path / "whole", 50, repo=str(voice)))

    def kill(num_rows: int) -> None:
        if num_rows == 17:
            raise Killed

    out, told = tmp_path / "out", list[int]()
    with pytest.raises(Killed):
        fetch("voiceassistant", out, 40, repo=str(voice), on_row=kill)
    assert not list(out.glob("*/*.gz")), "what is not finished must not be taken for a source"
    [part] = out.glob("*/*")
    part.write_bytes(part.read_bytes()[:-9])
    path = fetch("voiceassistant", out, 40, repo=str(voice), on_row=told.append)
    assert told == list(range(17, 41))
    assert rows_of(path) == whole[:40]
    assert rows_of(fetch("voiceassistant", out, 50, repo=str(voice))) == whole
    assert rows_of(fetch("voiceassistant", out, 5, repo=str(voice))) == whole, "nothing is thrown away"
    assert [file.name for file in out.glob("*/*")] == ["voiceassistant.jsonl.gz"]


def test_the_builder_finds_what_was_fetched(voice: Path, tmp_path: Path) -> None:
    path = fetch("voiceassistant", tmp_path, 5, repo=str(voice))
    (tmp_path / "background").mkdir()
    (tmp_path / "background" / "talk.jsonl").write_text("")
    assert source_files(tmp_path)["queries"] == {"voiceassistant": path}


def test_audio_is_not_read(voice: Path) -> None:
    data, _ = hub._stream(dataclasses.replace(SOURCES["voiceassistant"], repo=str(voice)))
    assert set(data.column_names) == {"split_name", "index", "round", "question", "answer"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("AS THEY GO <COMMA> CAN I COME <QUESTIONMARK>", "As they go, can I come?"),
        ("WELL <EXCLAMATIONPOINT> I'LL SEE <PERIOD>", "Well! I'll see."),
        ("<COMMA> AND THEN", "And then"),
        ("<NOISE>", ""),
        ("<sil> Already written, by Ann.", "Already written, by Ann."),
        ("IN NINETEEN OH TWO", "In nineteen oh two"),
    ],
)
def test_transcripts(text: str, written: str) -> None:
    assert transcript(text) == written


def test_what_is_wrong_with_a_dataset_is_said(tmp_path: Path, voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="voiceassistant, gigaspeech, ultrachat"):
        fetch("voices", out, 5)
    with pytest.raises(UsageError, match="limit of 0"):
        fetch("ultrachat", out, 0)
    with pytest.raises(BadData, match="train_sft"):
        fetch("ultrachat", out, 5, repo=str(voice))
    write(tmp_path / "other" / "data" / "train-00000-of-00001.parquet", [{"query": "Where?"}])
    with pytest.raises(BadData, match="'question'"):
        fetch("voiceassistant", out, 5, repo=str(tmp_path / "other"))
    with pytest.raises(RemoteError, match=r"gpt-omni/VoiceAssistant-400K cannot be read.*hf auth login"):
        fetch("voiceassistant", out, 5)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"duologue\[hub\]"):
        fetch("voiceassistant", out, 5)


def test_a_dataset_without_a_usable_row_makes_no_source(tmp_path: Path) -> None:
    row = {"segment_id": "a", "text": "<SIL>", "audio_id": "b", "source": "youtube"}
    write(tmp_path / "giga" / "data" / "train.jsonl", [row])
    with pytest.raises(BadData, match="no usable row"):
        fetch("gigaspeech", tmp_path / "out", 5, repo=str(tmp_path / "giga"))
    assert not list(tmp_path.glob("out/*/*.gz"))


def test_rows_of_another_dataset_are_not_continued(voice: Path, tmp_path: Path) -> None:
    path = fetch("voiceassistant", tmp_path / "out", 5, repo=str(voice))
    before = rows_of(path)
    with pytest.raises(BadData, match=r"line 1 .*not fetched from gpt-omni"):
        fetch("voiceassistant", tmp_path / "out", 50)
    assert rows_of(path) == before


def test_a_revision_is_read_stored_and_not_mixed_with_another(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []

    def recording(load: Any, *args: Any, revision: str | None, **options: Any) -> Any:
        read.append(revision)
        return load(*args, **options)

    for name in ("load_dataset_builder", "load_dataset"):
        monkeypatch.setattr(datasets, name, functools.partial(recording, getattr(datasets, name)))
    path = fetch("voiceassistant", tmp_path / "out", 5, repo=str(voice), revision="1a2b")
    assert read == ["1a2b", "1a2b"]
    assert {row["revision"] for row in rows_of(path)} == {"1a2b"}
    for other in ("3c4d", None):
        with pytest.raises(BadData, match=r"not fetched from .* at the same revision"):
            fetch("voiceassistant", tmp_path / "out", 9, repo=str(voice), revision=other)
    assert len(rows_of(fetch("voiceassistant", tmp_path / "out", 9, repo=str(voice), revision="1a2b"))) == 9
