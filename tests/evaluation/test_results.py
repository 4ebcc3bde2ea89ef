"""Result files and what is written from them: facts of a run, quiet machines, tables and pages."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from duologue.errors import MissingDependency
from duologue.evaluation import html, results
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.evaluation.results import Measurement, Results, busy_mark, was_quiet
from duologue.pictures import draw

FACTS = [
    *("benchmark", "command", "commit", "source_changed_since_commit"),
    *("date", "hardware", "versions", "seed"),
]


def test_a_result_begins_with_the_facts_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/project/benchmarks/speed.py", "--out", "a b.json"])
    result = Measurement("speed", seed=3).result({"figure": 0.5})
    assert list(result) == [*FACTS, "figure"]
    assert result["command"] == "python benchmarks/speed.py --out 'a b.json'"
    assert (result["benchmark"], result["seed"], result["figure"]) == ("speed", 3, 0.5)
    hardware = result["hardware"]
    assert {"cpu", "cores", "load_average", "load_average_at_end", "others_used_cores", "quiet"} == hardware.keys()
    assert hardware["quiet"] is was_quiet(result)
    assert "numpy" in result["versions"]
    path = tmp_path / "new" / "speed.json"
    results.write(result, path)
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert [found for _, found in Results(path.parent).of("speed")] == [result]
    assert list(Results(path.parent).of("size")) == []


def test_the_command_line_is_named_as_one_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/usr/lib/python/duologue/__main__.py", "eval", "states", "/home/me/samples/test.jsonl"]
    )
    assert Measurement("states", seed=0).result({})["command"] == "duologue eval states samples/test.jsonl"


def test_cores_that_others_use_are_counted_without_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, used = iter([100.0, 106.0]), iter([0.0, 4.0])
    monkeypatch.setattr(results, "_cpu_seconds_of_others", lambda: next(busy))
    monkeypatch.setattr(results.time, "monotonic", lambda: next(used))
    result = Measurement("speed", seed=0).result({})
    assert result["hardware"]["others_used_cores"] == 1.5
    assert result["hardware"]["quiet"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/stat")
def test_our_own_work_does_not_count_as_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    busy = {"user": 5, "nice": 1, "system": 3, "idle": 90, "iowait": 7, "irq": 1, "softirq": 1}  # seconds
    line = "cpu  " + " ".join(str(seconds * ticks) for seconds in busy.values()) + " 0 0 0\ncpu0 1 2\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: line)
    monkeypatch.setattr(os, "times", lambda: os.times_result((2.0, 0.5, 1.0, 0.25, 99.0)))
    assert results._cpu_seconds_of_others() == pytest.approx(11 - 3.75)


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({"others_used_cores": 0.02, "load_average": 5.0}, True),  # the load of what ran before
        ({"others_used_cores": 1.86, "load_average": 12.5}, False),
        ({"load_average": 0.9}, True),
        ({"load_average": 3.8}, False),
        ({}, True),
    ],
)
def test_a_busy_machine_is_marked(hardware: dict[str, Any], expected: bool) -> None:
    result = {"hardware": hardware}
    assert was_quiet(result) is expected
    assert busy_mark(result) == ("" if expected else " †")


def test_tables_align_and_escape() -> None:
    assert table(("", "n"), [("a|b", 1), ("c", "10")]) == "\n".join(
        ["|      |   n |", "| ---- | --: |", "| a\\|b |   1 |", "| c    |  10 |"]
    )
    assert (percent(0.1234), percent(0.1234, 2), percent(None)) == ("12.3", "12.34", MISSING)


def test_pages_hold_any_text() -> None:
    text = "a < b & </script>"
    page = html.page(text, html.table(("x",), [(text,)]), script="show(DATA)", data={"text": text})
    assert page.count("</script>") == 1, "the text does not end the script"
    assert "<title>a &lt; b &amp; &lt;/script&gt;</title>" in page
    assert "<td>a &lt; b &amp; &lt;/script&gt;</td>" in page
    data = page.partition("const DATA = ")[2].partition(";\n")[0]
    assert json.loads(data) == {"text": text}


def test_pictures_have_one_panel_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    seen: list[Any] = []
    draw(tmp_path / "two.png", [seen.append, seen.append], width=6.0)
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert len(set(map(id, seen))) == 2
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match="matplotlib"):
        draw(tmp_path / "none.png", [seen.append])
