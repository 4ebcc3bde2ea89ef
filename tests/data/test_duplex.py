"""Dialogues in slices: every word is traced to its source, and the same command gives the same rows."""

import gzip
import itertools
import json
import random
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chat_server import completion, serving
from duologue.cli.main import main
from duologue.data.duplex import build as building
from duologue.data.duplex import transitions
from duologue.data.duplex.build import Workshop, build, read_dialogues, split_files
from duologue.data.duplex.categories import CATEGORIES, sentence_ends
from duologue.data.duplex.dialogues import MAX_TURN, SourceDialogue, source_files, stream
from duologue.data.duplex.languages import language_of
from duologue.data.duplex.planning import DuplexRecipe
from duologue.data.duplex.rewriting import MAX_FAILURES, ModelRewriter, Rewriter, Rules
from duologue.data.duplex.slicer import ASSISTANT_TOKENS, USER_WORDS, Slicer
from duologue.data.duplex.timeline import DuplexDialogue
from duologue.data.duplex.transitions import SECTIONS
from duologue.data.ray_workers import LOCAL, RayWorkers
from duologue.data.workers import Here, Processes, Workers
from duologue.errors import BadData, RemoteError, UsageError
from duologue.text.slicing import slice_spans
from duologue.types import Role, Turn

SUBJECTS = ["bread", "rivers", "bees", "steel", "opera", "chess", "glass", "tides", "moss", "kites", "salt", "owls"]


def tiny() -> Tokenizer:
    """Byte-level BPE, in which many characters take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["what can you tell me about the history of it, and how is it made?"], trainer)
    return tokenizer


def english(subject: str, number: int) -> dict[str, Any]:
    turns = []
    for n in range(3):
        turns.append(f"Hello, can you tell me fact number {n} about {subject} of kind {number}?")
        turns.append(
            f"Well, {subject} are old. People have known {subject} for {n + 2} thousand years, as we can read. "
            f"There is more to say of the kind {number}, of course."
        )
    roles = ["user", "assistant"] * 3
    return {"id": f"{subject}-{number}", "turns": [{"role": r, "text": t} for r, t in zip(roles, turns, strict=True)]}


def pair(asked: str, answer: str) -> dict[str, Any]:
    return {"turns": [{"role": "user", "text": asked}, {"role": "assistant", "text": answer}]}


CHINESE = {
    "id": "茶",
    "turns": [
        {"role": "user", "text": "你好，请问龙井茶是哪里出产的，有什么特点？"},
        {"role": "assistant", "text": "龙井茶产于浙江杭州的西湖一带。它的外形扁平光滑，颜色翠绿。" * 4},
        {"role": "user", "text": "那么应该用多热的水来泡呢？"},
        {"role": "assistant", "text": "一般用八十五度左右的水。" * 9},
    ],
}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    rows = [english(subject, number) for subject in SUBJECTS for number in range(5)]
    return write(tmp_path / "talks.jsonl", rows)


def workshop(rewriter: Rewriter | None = None, **settings: Any) -> Workshop:
    return Workshop(Slicer(tiny()), transitions.shipped(), rewriter or Rules(), **settings)


def built(folder: Path, *sources: Path, rewriter: Rewriter | None = None, **settings: Any) -> list[DuplexDialogue]:
    """The training rows of a build."""
    build(sources, folder, DuplexRecipe(**settings), workshop(rewriter), made_by={})
    return rows_of(folder)


def rows_of(folder: Path, split: str = "train") -> list[DuplexDialogue]:
    return [row for path in split_files(folder, split) for row in read_dialogues(path)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


def said(row: DuplexDialogue, side: int) -> list[str]:
    return [pair[side] for pair in row.output if pair[side] is not None]


# ------------------------------------------------------------------------------------------------------------- slices


def test_user_slices_have_four_to_six_words_and_lose_none() -> None:
    text = "  one two three,  four five\nsix seven eight nine ten eleven twelve thirteen. fourteen "
    cut = [text[a:b].split() for a, b in slice_spans(text, chance=random.Random(3))]
    assert " ".join(" ".join(words) for words in cut).split() == text.split()
    assert all(USER_WORDS[0] <= len(words) <= USER_WORDS[1] for words in cut[:-1])


@pytest.mark.parametrize(
    "text",
    ["龙井茶产于浙江杭州的西湖一带，它的外形扁平光滑。", "ภาษาไทยไม่มีช่องว่างระหว่างคำในประโยคยาวๆแบบนี้เลยครับ", "x" * 900],
)
def test_scripts_without_spaces_are_cut_too(text: str) -> None:
    spans = slice_spans(text, chance=random.Random(0))
    assert len(spans) > 1
    assert "".join(text[a:b] for a, b in spans) == text


def test_assistant_slices_have_ten_tokens_and_whole_characters() -> None:
    tokenizer = tiny()
    for text in (
        " what can you tell me about 龙井茶 and 🎉🎉🎉🎉? \n\n It is made of naïve 茶叶, as ever. ",
        "龙井茶" * 9,
        "a",
    ):
        spans = Slicer(tokenizer).assistant(text)
        cut = [text[a:b] for a, b in spans]
        assert "".join(cut) == text.strip()
        sizes = [len(tokenizer.encode(piece).ids) for piece in cut]
        assert max(sizes) <= ASSISTANT_TOKENS
        # as full as characters of up to four tokens allow
        assert all(size > ASSISTANT_TOKENS - 4 for size in sizes[:-1])


def test_a_slice_is_never_white_space_alone() -> None:
    text = "what" + "\n \t" * 40 + "can you tell me about the history"
    assert all(text[a:b].strip() for a, b in Slicer(tiny()).assistant(text))


def test_an_answer_goes_on_where_it_was_cut() -> None:
    text = "What can you tell me about the history of it?  And how is it made, if you can tell me about it?"
    slicer, at = Slicer(tiny()), text.index("  And")
    assert "".join(text[a:b] for a, b in slicer.assistant(text, at)) == text[at:].strip()


# -------------------------------------------------------------------------------------------------------- categories


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_word_is_traced_to_its_source(category: str, talks: Path, tmp_path: Path) -> None:
    chinese = write(tmp_path / "zh.jsonl", [{**CHINESE, "id": n} for n in range(6)])
    rows = built(tmp_path / "out", talks, chinese, shares={category: 1.0}, dev=0)
    sources = {f"talks/{row['id']}": row["turns"] for row in map(json.loads, talks.read_text("utf-8").splitlines())}
    sources |= {f"zh/{n}": CHINESE["turns"] for n in range(6)}
    assert {row.language for row in rows} == {"en", "zh"}
    for row in rows:
        assert row.category == category
        slices = [one for pair in row.output for one in pair]
        assert len(slices) == len(row.trace)
        for number, (text, where) in enumerate(zip(slices, row.trace, strict=True)):
            assert (text is None) == (where is None)
            if text is None or where is None:
                continue
            part = row.parts[where[0]]
            assert part["role"] == ("user", "assistant")[number % 2]
            whole = part.get("text", sources[part["dialogue"]][part["turn"]]["text"])
            assert " ".join(whole[where[1] : where[2]].split()) == " ".join(text.split())
            if "text" not in part:
                assert sources[part["dialogue"]][part["turn"]]["role"] == part["role"]


def test_a_basic_dialogue_loses_nothing_and_answers_in_the_period_of_the_last_words(
    talks: Path, tmp_path: Path
) -> None:
    [row] = built(tmp_path / "out", write(tmp_path / "one.jsonl", [english("bread", 1)]), dev=0, shares={"basic": 1})
    turns = english("bread", 1)["turns"]
    assert " ".join(said(row, 0)) == " ".join(turn["text"] for turn in turns[::2])
    assert "".join(said(row, 1)) == "".join(turn["text"] for turn in turns[1::2])
    both = [pair for pair in row.output if None not in pair]
    assert [user.split()[-1] for user, _ in both if user] == ["1?", "1?", "1?"]


def test_interweaving_keeps_the_order_of_each_dialogue(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, shares={"topic_interweaving": 1.0}, dev=0)
    assert rows
    for row in rows:
        turns: dict[str, list[int]] = {}
        for part in row.parts:
            turns.setdefault(part["dialogue"], []).append(part["turn"])
        assert 3 <= len(turns) <= 5
        assert all(numbers == list(range(6)) for numbers in turns.values())
    assert any(one["dialogue"] != two["dialogue"] for row in rows for one, two in itertools.pairwise(row.parts[::2]))


def interruptions(row: DuplexDialogue) -> list[int]:
    """Pairs in which the user speaks after a pair in which the assistant did, while its answer has more to say."""
    found = []
    for at in range(1, len(row.output)):
        before, now = row.trace[2 * at - 1], row.trace[2 * at]
        if before is None or now is None:
            continue
        part = row.parts[before[0]]
        if "text" not in part and FULL[part["dialogue"]][part["turn"]][before[2] :].strip():
            found.append(at)
    return found


FULL = {f"talks/{s}-{n}": [t["text"] for t in english(s, n)["turns"]] for s in SUBJECTS for n in range(5)}


@pytest.mark.parametrize("category", [name for name, one in CATEGORIES.items() if one.interrupts])
def test_the_assistant_stops_in_the_period_of_an_interruption(category: str, talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, shares={category: 1.0}, dev=0)
    for row in rows:
        cuts = interruptions(row)
        assert cuts, "there is one in each"
        for at in cuts:
            words = row.parts[row.trace[2 * at][0]].get("text", "")  # type: ignore[index]
            is_whole = row.output[at][0] is not None and len(words.split()) <= USER_WORDS[1]
            assert row.output[at][1] is None or is_whole


def test_after_a_plain_stop_the_assistant_is_silent_until_it_is_asked(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, shares={"generation_termination": 1.0}, dev=0)
    lines = set(transitions.shipped()["en"].sections["stop"])
    num = 0
    for row in rows:
        for part, one in enumerate(row.parts):
            if one.get("transition") in lines:
                num += 1
                at = max(i for i, where in enumerate(row.trace) if where is not None and where[0] == part) // 2
                assert row.output[at][1] is None
                assert row.output[at + 1] == (None, None)
    assert num


def test_a_regenerated_answer_begins_anew(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, shares={"regeneration": 1.0}, dev=0)
    for row in rows:
        again = [n for n, part in enumerate(row.parts) if part.get("transition")]
        assert again
        for number in again:
            cut, asked, anew = row.parts[number - 1 : number + 2]
            assert (cut["dialogue"], cut["turn"]) == (anew["dialogue"], anew["turn"])
            assert "Hello" not in asked["text"], "nobody greets again"
            starts = [where[1] for where in row.trace if where is not None and where[0] == number + 1]
            assert starts[0] == 0


def test_back_on_topic_says_the_sentence_again_and_goes_on_behind_it(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, shares={"back_on_topic": 1.0}, dev=0)
    for row in rows:
        at = next(n for n, part in enumerate(row.parts) if "{statement}" in str(part.get("transition")))
        answer, asked, again, _, rest = row.parts[at - 2 : at + 3]
        whole = FULL[answer["dialogue"]][answer["turn"]]
        assert asked["role"] == "user"
        start = min(where[1] for where in row.trace if where is not None and where[0] == at + 2)
        statement = again["text"].removeprefix(again["transition"].partition("{")[0])
        assert whole[:start].rstrip().endswith(statement)
        assert (rest["dialogue"], rest["turn"]) == (answer["dialogue"], answer["turn"])


def test_sentences_end_at_marks_in_both_languages() -> None:
    text = 'It costs 3.50 pounds. "Really?" Yes!\nNext'
    assert [text[:end].strip() for end in sentence_ends(text)] == [
        "It costs 3.50 pounds.", 'It costs 3.50 pounds. "Really?"', 'It costs 3.50 pounds. "Really?" Yes!',
    ]  # fmt: skip
    assert sentence_ends("好。再来。完") == [2, 5]


# -------------------------------------------------------------------------------------------- languages, transitions


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Can you tell me what the weather is like in the north?", "en"),
        ("请问北京的天气怎么样，明天会下雨吗？ OK", "zh"),
        ("これは日本語の文章です。漢字もあります。", "other"),
        ("Können Sie mir sagen, wie das Wetter morgen im Norden wird?", "other"),
        ("Где находится ближайшая библиотека?", "other"),
        ("12 34", "other"),
        ("", "other"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert language_of(text) == language


def test_other_languages_are_sliced_but_not_interrupted(tmp_path: Path) -> None:
    rows = [pair("Где находится библиотека?", "Она там. " * 20) for _ in range(40)]
    found = built(tmp_path / "out", write(tmp_path / "ru.jsonl", rows), dev=0)
    assert {row.category for row in found} == {"basic", "topic_interweaving"}
    assert {row.language for row in found} == {"other"}


def test_a_file_of_ones_own_adds_a_language(tmp_path: Path) -> None:
    lines = {name: f"[{name}]\nNein {' '.join(f'{{{slot}}}' for slot in slots)}\n" for name, slots in SECTIONS.items()}
    path = tmp_path / "de.txt"
    path.write_text("# Deutsch\n" + "".join(lines.values()), encoding="utf-8")
    rows = [pair(f"Wie alt ist Brot Nummer {n}?", "Sehr alt. " * 20) for n in range(9)]
    ws = Workshop(Slicer(tiny()), transitions.shipped() | {"de": transitions.read(path)})
    recipe = DuplexRecipe(language="de", shares={"regeneration": 1.0}, dev=0)
    build([write(tmp_path / "talks.jsonl", rows)], tmp_path / "out", recipe, ws, made_by={})
    assert all("Nein Wie alt ist Brot" in " ".join(said(row, 0)) for row in rows_of(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[stop]", "[halt]"), r"no lines in \[stop\]"),
        (lambda text: text.replace("[terminate]", "[terminate]\nOkay."), r"'Okay.' must contain \{turn\}"),
        (lambda text: text.replace("[stop]", "[stop]\nStop {turn}"), r"must contain no slot"),
        (lambda text: "nothing", r"no lines in \[terminate\]"),
    ],
)
def test_a_broken_file_of_transitions_is_explained(change: Callable[[str], str], message: str, tmp_path: Path) -> None:
    shipped = (Path(transitions.__file__).parent / "lines" / "en.txt").read_text(encoding="utf-8")
    path = tmp_path / "xx.txt"
    path.write_text(change(shipped), encoding="utf-8")
    with pytest.raises(BadData, match=message):
        transitions.read(path)


def test_shipped_transitions_are_many_and_in_the_paper_languages() -> None:
    assert set(transitions.shipped()) == {"en", "zh"}
    for found in transitions.shipped().values():
        assert all(len(lines) >= 6 for lines in found.sections.values())
        lines = [line for section in found.sections.values() for line in section if line != "{turn}"]
        assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("line", "turn", "expected"),
    [
        ("By the way, {turn}", "What is a fox?", "By the way, what is a fox?"),
        ("By the way, {turn}", "Paris is where?", "By the way, Paris is where?"),
        ("By the way, {turn}", "I like it.", "By the way, I like it."),
        ("Never mind. {turn}", "Hi there, what is a fox?", "Never mind. What is a fox?"),
        ("Never mind. {turn}", "what is a fox", "never mind what is a fox"),
        ("How about {topic}? {turn}", "Tell me about red foxes.", "How about red foxes? Tell me about red foxes."),
        ("{turn}", "Hello", "Hello"),
    ],
)  # fmt: skip
def test_rules_join_a_line_and_a_turn(line: str, turn: str, expected: str) -> None:
    assert Rules().fuse(line, turn, transitions.shipped()["en"]).text == expected


# ------------------------------------------------------------------------------------------------------------ models


class Writer:
    """A model that answers by a function, and what it was asked."""

    def __init__(self, reply: Callable[[str], str | None]) -> None:
        self.reply, self.asked = reply, list[str]()

    def __call__(self, system: str, request: str) -> str:
        self.asked.append(request)
        answer = self.reply(request)
        if answer is None:
            raise RemoteError("no answer")
        return answer


def fused(reply: str | None) -> Any:
    rewriter = ModelRewriter(Writer(lambda _: reply), "writer")
    return rewriter.fuse("Never mind. {turn}", "Where do red foxes sleep?", transitions.shipped()["en"])


def test_a_model_writes_the_interruption() -> None:
    found = fused('"Oh never mind, where do red foxes sleep?"')
    assert (found.text, found.by, found.refused) == ("Oh never mind, where do red foxes sleep?", "writer", None)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        ("   \n ", "empty"),
        (None, "no answer"),
        ("<html><body>502</body></html>", "not speech"),
        ("Output: Where do red foxes sleep?", "not speech"),
        ("I cannot help with that.", "another subject"),
        ("red foxes sleep " * 60, "too long"),
    ],
)
def test_nonsense_of_a_model_is_replaced_by_the_rules_and_the_reason_kept(reply: str | None, reason: str) -> None:
    found = fused(reply)
    assert (found.text, found.by, found.refused) == ("Never mind. Where do red foxes sleep?", "rules", reason)


def test_a_server_that_never_answers_ends_the_build_with_a_message(talks: Path, tmp_path: Path) -> None:
    writer = Writer(lambda _: None)
    with pytest.raises(RemoteError, match="repeat the command"):
        built(tmp_path / "out", talks, rewriter=ModelRewriter(writer, "writer"), shares={"regeneration": 1.0})
    assert len(writer.asked) == MAX_FAILURES


def test_a_model_answers_anew_and_asks_about_statements(talks: Path, tmp_path: Path) -> None:
    def reply(request: str) -> str:
        if request.startswith("STATEMENT"):
            return "Q: Which people?\nA: Those who lived there."
        if request.startswith("FIRST"):
            return request.partition("SECOND: ")[2] + " please"
        return "Here is a new answer."

    rewriter = ModelRewriter(Writer(reply), "writer")
    rows = built(tmp_path / "out", talks, rewriter=rewriter, shares={"regeneration": 1.0, "back_on_topic": 1.0}, dev=0)
    texts = {row.category: Counter[str]() for row in rows}
    for row in rows:
        texts[row.category].update(part["text"] for part in row.parts if part.get("by") == "writer")
    assert texts["regeneration"]["Here is a new answer."]
    assert texts["back_on_topic"]["Which people?"] == texts["back_on_topic"]["Those who lived there."] > 0
    again = [" ".join(said(row, 0)) for row in rows if row.category == "regeneration"]
    assert all("please" in text for text in again)


def test_a_model_is_told_what_was_said(talks: Path, tmp_path: Path) -> None:
    writer = Writer(lambda request: "Yes, of course.")
    ModelRewriter(writer, "w").answer([Turn(Role.USER, "what is moss"), Turn(Role.ASSISTANT, "a plant")])
    assert writer.asked == ["User: what is moss\nAssistant: a plant"]


# ------------------------------------------------------------------------------------------------------------ builds


@pytest.mark.parametrize(
    "workers",
    [
        Processes(2),
        pytest.param(RayWorkers(LOCAL, 2), marks=[pytest.mark.ray, pytest.mark.filterwarnings("ignore")]),
    ],
    ids=["processes", "ray"],
)
def test_the_same_rows_come_from_one_worker_and_from_two(
    workers: Workers, talks: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("duologue.data.duplex.planning.SHARD", 8)
    recipe = DuplexRecipe(num_dialogues=40)
    build([talks], tmp_path / "one", recipe, workshop(), made_by={})
    build([talks], tmp_path / "two", recipe, workshop(), made_by={}, workers=workers)
    assert len(content(tmp_path / "one")) > 4
    assert content(tmp_path / "one") == content(tmp_path / "two")
    names = ("statistics.json", "report.md")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


class Stumbling:
    """A rewriter with a bug."""

    name = "stumbling"

    def fuse(self, line: str, turn: str, transitions: Any) -> Any:
        raise KeyError(turn)

    answer = ask = fuse


@pytest.mark.parametrize("workers", [Here(), Processes(2)], ids=["here", "processes"])
def test_an_error_names_the_row_and_its_sources(workers: Workers, talks: Path, tmp_path: Path) -> None:
    recipe, rewriter = DuplexRecipe(shares={"dialogue_reset": 1.0}, dev=0), Stumbling()
    with pytest.raises(KeyError) as found:
        build([talks], tmp_path / "out", recipe, workshop(rewriter), made_by={}, workers=workers)
    (note,) = found.value.__notes__
    assert re.fullmatch(r"in row train-00000-000, made of (talks/[^,]+, ){4}talks/[^,]+", note)


def test_ray_is_named_where_it_is_missing(
    talks: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--out", str(tmp_path / "out"), "--tokenizer", str(model), "--ray", "local"]
    assert main(["data", "build-duplex", "--sources", str(talks), *options]) == 2
    assert "pip install 'duologue[ray]'" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer_is_explained(
    talks: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["--out", str(tmp_path / "out"), "--tokenizer", str(model), "--ray", f"127.0.0.1:{port}"]
    assert main(["data", "build-duplex", "--sources", str(talks), *options]) == 2
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in capsys.readouterr().err


def test_rows_at_once_are_the_same_rows(talks: Path, tmp_path: Path) -> None:
    build([talks], tmp_path / "one", DuplexRecipe(), workshop(), made_by={})
    build([talks], tmp_path / "many", DuplexRecipe(), workshop(at_once=4), made_by={})
    assert content(tmp_path / "one") == content(tmp_path / "many")


def test_an_interrupted_build_is_continued(talks: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("duologue.data.duplex.planning.SHARD", 8)
    build([talks], tmp_path / "whole", DuplexRecipe(), workshop(), made_by={})
    made = building.Workshop.make
    num_made = 0

    def killed(self: Workshop, plan: Any) -> DuplexDialogue:
        nonlocal num_made
        num_made += 1
        if num_made == 20:
            raise KeyboardInterrupt
        return made(self, plan)

    monkeypatch.setattr(building.Workshop, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        build([talks], tmp_path / "out", DuplexRecipe(), workshop(), made_by={})
    done = content(tmp_path / "out")
    assert 0 < len(done) < len(content(tmp_path / "whole"))
    before = num_made
    build([talks], tmp_path / "out", DuplexRecipe(), workshop(), made_by={})
    assert num_made - before < len(rows_of(tmp_path / "whole")) + len(rows_of(tmp_path / "whole", "dev"))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert (tmp_path / "out" / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_another_seed_gives_other_rows_and_needs_another_folder(talks: Path, tmp_path: Path) -> None:
    first = built(tmp_path / "out", talks)
    with pytest.raises(UsageError, match="another recipe or of other sources"):
        built(tmp_path / "out", talks, seed=1)
    assert built(tmp_path / "other", talks, seed=1) != first
    assert built(tmp_path / "out", talks) == first


def test_no_source_is_in_both_splits(talks: Path, tmp_path: Path) -> None:
    train = built(tmp_path / "out", talks, dev=0.3, num_dialogues=80)
    held_out = rows_of(tmp_path / "out", "dev")
    used, kept = ({part["dialogue"] for row in rows for part in row.parts} for rows in (train, held_out))
    assert len(train) == 80
    assert used
    assert kept
    assert not used & kept


def test_statistics_count_what_the_rows_have(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks, dev=0)
    found = json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))["train"]
    assert found["dialogues"] == Counter(row.category for row in rows)
    assert sum(found["pairs"].values()) == sum(len(row.output) for row in rows)
    tokens = tiny()
    assert sum(found["tokens"].values()) == sum(
        1 if text is None else len(tokens.encode(text).ids) for row in rows for pair in row.output for text in pair
    )
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    basic = next(line for line in report.splitlines() if line.startswith("| basic"))
    assert [cell.strip() for cell in basic.split("|")][3] == str(found["dialogues"]["basic"])


# --------------------------------------------------------------------------------------------------------- bad input


def renamed(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": turn["role"], "content": turn["text"]}


def read_all(path: Path) -> tuple[list[SourceDialogue], Counter[str]]:
    skipped = Counter[str]()
    return list(stream({"x": path}, seed="0", skipped=skipped)), skipped


def test_bad_rows_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    good = english("bread", 1)
    turns: list[Mapping[str, Any]] = good["turns"]
    path = write(
        tmp_path / "bad.jsonl",
        [
            good,
            "not json",
            "[1, 2]",
            '{"id": "half',
            {"id": "one turn", "turns": turns[:1]},
            {"id": "answers only", "turns": [turns[1]]},
            {"id": "no turns"},
            {"id": "null", "turns": None},
            {"id": "empty", "turns": [turns[0], {"role": "assistant", "text": "  "}]},
            {"id": "robot", "turns": [*turns[:2], {"role": "robot", "text": "beep"}, *turns[2:]]},
            {"id": "number", "turns": [*turns[:2], {"role": "user", "text": 3}, *turns[2:]]},
            {"id": "enormous", "turns": [*turns[:2], {"role": "user", "text": "a" * (MAX_TURN + 1)}]},
            {"messages": [{"role": "system", "content": "Be brief."}, *map(renamed, turns)]},
        ],
    )  # fmt: skip
    with path.open("ab") as file:
        file.write(b'{"id": "\xff\xfe", "turns": []}\n')
    found, skipped = read_all(path)
    assert sorted(dialogue.id for dialogue in found) == ["x/13", "x/bread-1", "x/enormous", "x/number", "x/robot"]
    assert {dialogue.id: len(dialogue.rounds) for dialogue in found} == {
        "x/13": 3, "x/bread-1": 3, "x/enormous": 1, "x/number": 1, "x/robot": 1,
    }  # fmt: skip
    assert skipped == {
        "a line that is not a JSON object": 4,
        "no list of turns": 2,
        "no user turn with an answer": 5,
        "an empty turn": 1,
        "a turn of an unknown role, and all after it": 1,
        "a turn without text, and all after it": 1,
        f"a turn of more than {MAX_TURN} characters, and all after it": 1,
    }


def test_a_line_that_is_too_long_is_counted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("duologue.data.jsonl.MAX_LINE", 5000)
    path = write(tmp_path / "long.jsonl", [english("a", 1), "[" * 20000, english("b", 2)])
    found, skipped = read_all(path)
    assert sorted(dialogue.id for dialogue in found) == ["x/a-1", "x/b-2"]
    assert skipped == {"a line that is not a JSON object": 1}


def test_sources_that_cannot_be_used_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        source_files([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \*\.jsonl"):
        source_files([tmp_path / "empty"])
    write(tmp_path / "a" / "talks.jsonl", [english("a", 1)])
    write(tmp_path / "b" / "talks.jsonl.gz", [english("a", 1)])
    with pytest.raises(BadData, match="both called talks"):
        source_files([tmp_path / "a", tmp_path / "b"])
    one_turn = write(tmp_path / "c.jsonl", [{"turns": [{"role": "user", "text": "hello"}]}])
    with pytest.raises(BadData, match=r"no dialogue that can be used \(no user turn with an answer: 1\)"):
        built(tmp_path / "out", one_turn)
    broken = write(tmp_path / "d.jsonl.gz", [english("a", 1)] * 50)
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(BadData, match="cannot be read after line"):
        built(tmp_path / "out2", broken)


def test_a_folder_of_sources_is_searched(tmp_path: Path) -> None:
    write(tmp_path / "corpora" / "dialogues" / "zh" / "tea.jsonl.gz", [CHINESE])
    write(tmp_path / "corpora" / "queries" / "q.jsonl", [{"id": "q", "text": "hi"}])
    assert list(source_files([tmp_path / "corpora"])) == ["zh/tea"]


def test_short_answers_are_not_interrupted_and_that_is_said(tmp_path: Path) -> None:
    turns = [{"role": "user", "text": "What is the time?"}, {"role": "assistant", "text": "Four."}]
    rows = built(
        tmp_path / "out", write(tmp_path / "t.jsonl", [{"turns": turns}] * 9), shares={"regeneration": 1}, dev=0
    )
    assert {(row.category, row.instead_of) for row in rows} == {("basic", "regeneration")}
    assert "Basic instead" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": {"shouting": 1}}, "no category shouting; there are basic"),
        ({"shares": {"basic": -1}}, "must not be negative"),
        ({"shares": {"basic": 0}}, "at least one category"),
        ({"num_dialogues": 0}, "at least one dialogue"),
        ({"dev": 0.7}, "share of dev"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DuplexRecipe(**settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs output"),
        ({"output": []}, "needs output"),
        ({"output": [{"role": "assistant", "content": "hi"}]}, r"slice 0 .* must be \{'role': 'user'"),
        ({"output": [{"role": "user", "content": "hi"}]}, "ends with a slice of the user"),
        ({"output": [{"role": "user"}]}, "slice 0"),
    ],
)
def test_rows_that_are_no_dialogues_are_refused(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=rf"line 1: .*{message}"):
        list(read_dialogues(write(tmp_path / "x.jsonl", [row])))


def test_rows_of_duplex_ultrachat_are_read(tmp_path: Path) -> None:
    output = [("user", "Can you"), ("assistant", "<idle>"), ("user", "help me?"), ("assistant", "Of course.")]
    row = {"output": [{"role": role, "content": text} for role, text in output]}
    [found] = read_dialogues(write(tmp_path / "x.jsonl", [row]))
    assert found.output == (("Can you", None), ("help me?", "Of course."))


def test_a_row_is_read_as_it_was_written(talks: Path, tmp_path: Path) -> None:
    rows = built(tmp_path / "out", talks)
    assert all(DuplexDialogue.from_json(json.loads(json.dumps(row.to_json()))) == row for row in rows)
    assert not any(re.search("<idle>", text) for row in rows for side in (0, 1) for text in said(row, side))


# ----------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tiny()).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    return folder


def test_the_command_builds_a_folder_and_prints_the_table(
    talks: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--dialogues", "20", "--workers", "1", "--tokenizer", str(model)]
    command = ["data", "build-duplex", "--sources", str(talks), "--out", str(out), *options]
    assert main(command) == 0
    assert len(rows_of(out)) == 20
    printed = capsys.readouterr().out
    assert "| category" in printed
    assert f"duologue train tdm --data {out}" in printed
    assert main([*command, "--seed", "2"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_command_lets_a_server_rewrite(
    talks: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def reply(request: str) -> tuple[int, str]:
        turn = request.partition("SECOND: ")[2]
        return 200, completion("nonsense" if "bread" in turn else f"<think>hm</think>Well then, {turn}")

    out = tmp_path / "out"
    with serving(reply) as server:
        options = ["--rewrite-url", server.url, "--rewrite-model", "writer", "--tokenizer", str(model)]
        options += ["--workers", "1", "--categories", "generation_termination", "--dev", "0"]
        assert main(["data", "build-duplex", "--sources", str(talks), "--out", str(out), *options]) == 0
    found = [part for row in rows_of(out) for part in row.parts if "{turn}" in str(part.get("transition"))]
    written = [part for part in found if part["by"] == "writer"]
    assert written
    assert all(part["text"].startswith("Well then, ") for part in written)
    assert {part.get("refused") for part in found if "bread" in part["text"]} <= {"another subject", None}
    assert "another subject" in (out / "report.md").read_text(encoding="utf-8")


def test_the_command_lets_a_model_of_its_own_rewrite(
    talks: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    class Closed:
        def close(self) -> None:
            loaded.append("closed")

    def load(name: str, **options: Any) -> Any:
        loaded.append(name)
        return Closed()

    monkeypatch.setattr("duologue.models.model.load", load)
    monkeypatch.setattr("duologue.models.completion.complete", lambda model, system, text: f"So, {text[-90:]}")
    out = tmp_path / "out"
    options = ["--rewrite-model", "small", "--tokenizer", str(model), "--categories", "dialogue_reset", "--dev", "0"]
    assert main(["data", "build-duplex", "--sources", str(talks), "--out", str(out), *options]) == 0
    assert loaded == ["small", "closed"]
    assert {part["by"] for row in rows_of(out) for part in row.parts if "by" in part} == {"small", "rules"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rewrite-url", "http://127.0.0.1:9/v1"], "needs --rewrite-model"),
        (["--rewrite-url", "nowhere", "--rewrite-model", "m"], "a rewriter's URL starts with http"),
        (["--categories", "shouting"], "no category 'shouting'"),
        (["--language", "fr"], "--language fr has no transitions"),
        (["--transitions", "fr.txt"], "fr.txt cannot be read"),
        (["--dev", "2"], "share of dev"),
        (["--ray", "nowhere"], "no Ray cluster has the address 'nowhere'"),
        (["--ray", "auto", "--rewrite-model", "m"], "serve it, and give --rewrite-url"),
    ],
)
def test_options_that_make_no_sense_are_explained(
    options: list[str], message: str, talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "build-duplex", "--sources", str(talks), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
