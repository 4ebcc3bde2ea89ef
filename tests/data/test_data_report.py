"""The report of a build counts all samples and keeps few of them."""

from duologue.data.report import PLACES, Report, markdown, place_of
from duologue.data.samples import Sample
from duologue.types import InputState, Role, Turn

PROCESS, IGNORE, STOP = InputState.PROCESS, InputState.IGNORE, InputState.STOP
TALK = (Turn(Role.USER, "hello there"), Turn(Role.ASSISTANT, "Hello, what"))
WORDS = ("lamp", "boat", "river", "stone", "paper", "candle", "window", "ladder")


def samples() -> list[Sample]:
    pairs = [(a, b) for a in WORDS for b in WORDS]
    asked = [Sample(f"where is the {a} and the {b}", PROCESS, "kitchen", "query") for a, b in pairs]
    told = [Sample(f"So the {a} fell, {b} too.", IGNORE, "harbour", "talk", (), TALK, True) for a, b in pairs]
    return [*asked, *told, Sample("stop it", STOP, "own", "stop", (PROCESS,), TALK)]


def filled(**settings: int) -> Report:
    report = Report(**settings)
    for sample in samples():
        report.add(sample)
    return report


def test_it_counts_states_places_sources_and_kinds() -> None:
    content = filled().to_json()
    assert content["num_samples"] == 129
    assert content["states"] == {"process": 64, "ignore": 64, "stop": 1}
    assert content["places"] == {
        "alone": {"process": 64},
        "over an answer": {"ignore": 64},
        "in a dialogue": {"stop": 1},
    }
    assert content["sources"] == {"harbour": {"ignore": 64}, "kitchen": {"process": 64}, "own": {"stop": 1}}
    assert content["kinds"]["talk"] == {"ignore": 64}
    assert content["share_spoken"] == {"process": 1.0, "ignore": 0.0, "stop": 1.0}
    assert content["num_accepting"] == {"stop": 1}
    assert {place_of(sample) for sample in samples()} == set(PLACES)


def test_percentiles_are_those_of_the_words() -> None:
    report = Report()
    for num_words in range(1, 101):
        report.add(Sample("go " * num_words, PROCESS, "made"))
    report.add(Sample("well", IGNORE, "made"))
    assert report.to_json()["num_words"] == {
        "process": {"p5": 5, "p50": 50, "p95": 95},
        "ignore": {"p5": 1, "p50": 1, "p95": 1},
    }


def test_what_was_dropped_is_counted_by_reason() -> None:
    report = filled()
    report.drop("exact duplicate")
    report.drop("exact duplicate", 4)
    report.drop("other label")
    assert report.to_json()["dropped"] == {"exact duplicate": 5, "other label": 1}
    assert "| exact duplicate | 5 |" in markdown(report.to_json())


def test_only_a_random_selection_is_kept_for_the_search_for_artifacts() -> None:
    artifacts = filled(max_kept=100).artifacts()
    assert artifacts is not None
    assert artifacts.num_train + artifacts.num_test <= 100
    assert set(artifacts.telling) == {"process", "ignore"}, "the end of the stream must be seen too"
    assert artifacts == filled(max_kept=100).artifacts()
    assert artifacts != filled(max_kept=100, seed=1).artifacts()
    assert Report().artifacts() is None


def test_the_tables_say_what_was_counted() -> None:
    text = markdown(filled().to_json())
    for line in (
        "| harbour | 0 | 64 | 0 | 64 |",
        "| all | 64 | 64 | 1 | 129 |",
        "| process | 7 | 7 | 7 | 100 % |",
        "| case and punctuation only | 100.0 | ",
    ):
        assert line in text


def test_every_table_has_as_many_cells_in_each_row() -> None:
    tables = [block.splitlines() for block in markdown(filled().to_json()).split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table


def test_an_empty_build_has_a_report_too() -> None:
    assert "Too few samples" in markdown(Report().to_json())
