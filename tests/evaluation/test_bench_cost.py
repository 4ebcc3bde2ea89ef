"""`duologue bench cost`: the same words in every kind of session, and counts that can be checked by hand."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from duologue.baselines.sessions import NAMES
from duologue.baselines.tdm import SLICE_TOKENS
from duologue.cli.main import main
from duologue.core.backend import Backend
from duologue.core.base_session import Phase
from duologue.core.events import Received, Suspended
from duologue.engine.trace import Pass
from duologue.evaluation.cost import CountingBackend, Meter, Runner, measure
from duologue.evaluation.cost_report import draw, growth, short, tables
from duologue.evaluation.oracle_script import OracleScript, oracle_script, oracle_scripts, overheard
from duologue.models.adapters import prompted
from duologue.models.model import Model
from duologue.types import InputState
from scripted import PROBE, Talk

EXPECTED_KEYS = {
    "passes",
    "overlap_passes",
    "tokens_fed",
    "spoken_tokens",
    "seconds",
    "kv_bytes_peak",
    "first_word_passes",
    "interruption_passes",
}
STORY = 120  # tokens of the story of `overheard`


@pytest.fixture(scope="module")
def talk() -> Talk:
    return Talk()


def scripted(backend: Backend, talk: Talk) -> Model:
    return Model("scripted", backend, talk.template, prompted(), PROBE, 1 << 14)


@pytest.fixture(scope="module")
def runner(talk: Talk) -> Runner:
    return Runner(scripted(talk.backend, talk))


def quiet(what: str, share: float | None = None) -> None:
    pass


@pytest.fixture(scope="module")
def result(talk: Talk) -> dict:
    return measure(scripted(talk.backend, talk), conversations=1, exchanges=6, progress=quiet)


# ------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("num_slices", [0, 1, 5])
def test_in_overlap_channel_division_makes_the_passes_of_speaking_alone(talk: Talk, runner: Runner, num_slices: int):
    runs = {name: runner.run(name, overheard(talk.template, num_slices)) for name in ("cdm", "sequential")}
    # one pass reads the question and one the header; the last draws the end; and one had fed the system prompt
    alone = 1 + STORY + 1 + (1 if talk.template.begin else 0)
    assert runs["cdm"].trace.num_passes == alone
    assert runs["cdm"].trace.passes[Phase.OVERLAP] == num_slices
    assert runs["sequential"].trace.num_passes == alone + num_slices
    assert runs["sequential"].trace.passes[Phase.OVERLAP] == 2 * num_slices
    assert runs["cdm"].num_spoken == runs["sequential"].num_spoken == STORY


def test_the_passes_of_probes_are_counted_where_they_are_made_apart(talk: Talk):
    counted = CountingBackend(talk.backend)
    counted._info = dataclasses.replace(counted.info, probe_passes=1)
    apart = Runner(scripted(counted, talk))
    cdm, sequential = (apart.run(name, overheard(talk.template, 3)) for name in ("cdm", "sequential"))
    assert cdm.trace.passes[Phase.OVERLAP] == 2 * 3
    assert sequential.trace.passes[Phase.OVERLAP] == 3 * 3


def test_time_division_reads_a_slice_in_the_pass_that_draws(talk: Talk, runner: Runner):
    run = runner.run("tdm", overheard(talk.template, 4))
    speech = run.trace.passes[Phase.LISTENING] + run.trace.passes[Phase.SPEAKING] + run.trace.passes[Phase.OVERLAP]
    assert run.trace.passes[Phase.OVERLAP] == 4
    assert speech == STORY + 1, "ten tokens a slice, and the slice in which it has nothing left to say"


def test_only_kept_idles_grow_in_an_hour_of_silence(result: dict):
    sessions = result["sessions"]
    grown = {name: one["kv_entries_of_hour"] for name, one in sessions.items()}
    pair = 6 + 1 + 13 + 1 + 2  # user's opener, idle, header, idle, closer, in bytes of ChatML
    assert grown.pop("tdm") == 1800 * pair
    assert set(grown.values()) == {0}
    assert {one["passes_of_hour"] for name, one in sessions.items() if name.startswith("tdm")} == {1800}
    assert {one["passes_of_hour"] for name, one in sessions.items() if not name.startswith("tdm")} == {0}


def test_reactions_are_counted_from_the_last_words(result: dict):
    reactions = {
        name: (one["first_word_passes"], one["interruption_passes"]) for name, one in result["sessions"].items()
    }
    # channel division judges in one pass, and draws in the next; a pass that is under way comes before
    assert reactions["cdm"] == (2, 2)
    assert reactions["sequential"] == (2, 3)
    assert reactions["turns"] == (1, None)
    assert reactions["vad"] == (1, 0)
    assert reactions["tdm"][0] == 1
    assert 1 <= reactions["tdm"][1] <= 11
    assert result["sessions"]["vad"]["first_word_wait_ms"] == 600
    assert 0 < result["sessions"]["tdm"]["first_word_wait_ms"] <= 2000


def test_the_same_words_are_said_as_far_as_they_are_said(result: dict):
    sessions = result["sessions"]
    assert sessions["turns"]["spoken_tokens"] > sessions["cdm"]["spoken_tokens"] > sessions["vad"]["spoken_tokens"]
    spread = [sessions[name]["spoken_tokens"] for name in ("cdm", "sequential", "tdm", "tdm_skip_idle")]
    assert max(spread) - min(spread) <= 3 * SLICE_TOKENS, "three interruptions are noticed within a slice"


def test_phases_add_up_to_the_whole(result: dict):
    for one in result["sessions"].values():
        assert sum(one["passes_by_phase"].values()) == one["passes"]
        assert sum(one["tokens_by_phase"].values()) == one["tokens_fed"]
        assert one["by_exchange"][-1]["passes"] == one["passes"]
        assert len(one["by_exchange"]) == 6


def test_what_is_counted_on_ids_is_what_the_backend_counts(talk: Talk, runner: Runner):
    told = oracle_scripts(talk.template, conversations=1, exchanges=3, seed=1)[0]
    for name in NAMES:
        real, counted = (runner.run(name, told, counted=counted) for counted in (False, True))
        assert real.trace.passes == counted.trace.passes
        assert real.trace.tokens_fed == counted.trace.tokens_fed
        assert real.trace.kv_entries_peak == counted.trace.kv_entries_peak
        assert real.kv_entries == counted.kv_entries


def test_nothing_is_left_on_the_backend(talk: Talk, runner: Runner):
    for name in NAMES:
        runner.run(name, overheard(talk.template, 2))
        assert talk.backend.usage().num_seqs == 0


# ------------------------------------------------------------------------------------------------------- lessons


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_session_says_the_answer_of_the_lesson(talk: Talk, runner: Runner, name: str):
    row = {"say": "what do owls eat at night", "answer": "Mice for the most part."}
    told = oracle_script(talk.template, [row], random.Random(3))
    assert runner.run(name, told).said == row["answer"]


def test_a_lesson_judges_words_as_they_grow(talk: Talk):
    told = oracle_scripts(talk.template, conversations=1, exchanges=6)[0]
    assert told.decide("why do people run") is InputState.INCOMPLETE
    assert told.decide("why do people run a marathon at all") is InputState.PROCESS
    assert told.decide("yes I will be there") is InputState.IGNORE
    assert told.decide("okay that is") is InputState.INCOMPLETE
    assert told.decide("okay that is enough stop") is InputState.STOP


def test_the_same_seed_gives_the_same_conversations(talk: Talk):
    def made(seed: int) -> list[OracleScript]:
        return oracle_scripts(talk.template, conversations=2, exchanges=8, seed=seed)

    assert made(4) == made(4)
    assert made(4) != made(5)
    assert len({told.script for told in made(4)}) == 2


def test_who_stops_at_the_first_sound_is_not_timed_from_the_last():
    meter = Meter([10.0])
    meter(Received(1.0, "cut0", "wait", False))
    meter(Suspended(1.0, 0, "It is", " a"))
    meter(Received(3.0, "cut0", "wait what", True))
    meter(Pass(3.0, Phase.LISTENING, 1, 1, 0, 0, 0.5, 1, 0))
    assert [reaction.passes for reaction in meter.interruptions] == [0]


# ------------------------------------------------------------------------------------------------------- told


def test_tables_and_picture_say_it(result: dict, tmp_path: Path):
    pytest.importorskip("matplotlib")
    text = tables(result["sessions"])
    assert "forced" in text
    assert f"{result['sessions']['tdm']['kv_entries_after_hour']:,}" in text
    assert growth(result["sessions"]) in text
    assert len([line for line in text.splitlines() if line.startswith("| channel division")]) == 3
    draw(result["sessions"], tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_short_table_says_what_a_slice_heard_costs(result: dict):
    rows = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in short(result["sessions"]).splitlines()}
    assert (rows["channel division (ours)"], rows["sequential"], rows["turns"]) == ("0", "1", "–")


def test_the_tables_of_the_documents_come_from_result_files(
    result: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import tables as documents

    model = {"name": "scripted", "backend": "torch", "weights": "f32", "adapter": {"kind": "rows"}}
    facts = {"benchmark": "cost", "hardware": {"load_average": 12.5}, "model": model}
    (tmp_path / "cost-torch-f32.json").write_text(json.dumps({**facts, **result}))
    text = documents.TABLES["cost"](documents.Results(tmp_path))
    assert text.startswith("torch f32, rows, scripted †"), "it was measured on a busy machine"
    assert "| sequential" in text
    assert "| sequential" in documents.TABLES["cost-short"](documents.Results(tmp_path))
    assert "| slices" in documents.TABLES["cost-growth"](documents.Results(tmp_path))


def test_the_command_measures_a_model_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("transformers")
    from tiny_chat import tiny_chat_folder

    tiny_chat_folder(tmp_path, num_hidden_layers=1)
    options = ["--model", str(tmp_path), "--weights", "f32", "--conversations", "1", "--exchanges", "1"]
    assert main(["bench", "cost", *options, "--json"]) == 0
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last.keys() == {"sessions"}
    assert list(last["sessions"]) == list(NAMES)
    for one in last["sessions"].values():
        assert one.keys() >= EXPECTED_KEYS
        assert one["kv_bytes_peak"] > 0
        assert one["seconds"] > 0
    assert "| channel division (ours)" in captured.err


def test_a_picture_without_a_folder_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", "cost", "--picture", str(tmp_path / "no" / "cost.png")]) == 2
    assert "create it first" in capsys.readouterr().err
