"""`duologue eval timing`: waits are those of the policy, figures are worked out by hand, and bad rows are named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.cli import eval_timing
from duologue.cli.main import main
from duologue.core.events import Decided
from duologue.core.policy import Policy
from duologue.data.samples import Sample
from duologue.errors import AdapterMismatch, BadData
from duologue.evaluation.timing import probabilities, read_timing, report
from duologue.evaluation.timing_report import tables
from duologue.models.adapters import prompted
from duologue.models.model import Model
from duologue.types import InputState
from scripted import TIMED, Talk

ENDS = {
    "Is it open?": 0.9,
    "I am in Leeds. Is it open?": 0.8,
    "I am in Leeds": 0.2,
    "We like it": 0.5,
    "That is all": 0.6,
    "I want rice": 0.1,
}
ROWS: list[dict[str, Any]] = [
    {"text": "Is it open?", "ends": True},
    {"text": "I am in Leeds", "ends": False, "context": [{"role": "user", "text": "hi"}]},
    {"text": "I am in Leeds. Is it open?", "ends": True, "system": "Be brief."},
    {"text": "We like it", "ends": False},
    {"text": "That is all", "ends": True},
    {"text": "I want rice", "ends": False},
]


def scripted_model(*, timed: bool = True) -> Model:
    talk = Talk(ends=ENDS.__getitem__)
    backend = ScriptedBackend(talk._speak, talk._judge, vocab_size=258, num_added=7)
    probe = TIMED if timed else dataclasses.replace(TIMED, timing=())
    return Model("a script", backend, talk.template, prompted(), probe, 4096)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_the_wait_of_a_row_is_that_of_a_session(tmp_path: Path) -> None:
    rows = read_timing(write(tmp_path / "rows.jsonl", ROWS))
    p_ends = probabilities(rows, scripted_model())
    assert p_ends.tolist() == pytest.approx([ENDS[row["text"]] for row in ROWS])
    for sample, p in zip(rows.samples, p_ends, strict=True):
        talk = Talk(history=sample.context, system=sample.system, ends=ENDS.__getitem__)
        talk.hear(sample.text)
        talk.tick(2)
        decision = next(event.decision for event in talk.events if isinstance(event, Decided))
        assert decision.p_ends == pytest.approx(p)
        wait = Policy().wait_s(decision, final=True)
        assert talk.session.next_deadline == (pytest.approx(wait) if wait else None)
        assert ("Released" in talk.kinds()) == (wait == 0)


def test_figures_are_those_worked_out_by_hand() -> None:
    samples = [Sample(row["text"], InputState.PROCESS, "", ends=row["ends"]) for row in ROWS]
    p_ends = np.array([ENDS[row["text"]] for row in ROWS], np.float32)
    found = report(samples, p_ends, Policy(p_goes_on=0.25))
    # 3 times the odds are 1/3, 3/4 and 2 behind the ends, so only the last waits, for ln 2 = 0.69 s
    # they are 12, 3 and 27 at the joints: 2 s (the longest), ln 3 = 1.1 s and 2 s
    assert found["n"] == 6
    assert found["early"] == {"0.6": 0.0, "1.2": pytest.approx(1 / 3, abs=1e-4), "2.0": pytest.approx(1 / 3, abs=1e-4)}
    assert found["delay_ms"] == {"p50": 0, "p95": 693}
    assert (found["auc"], found["auc_statements"], found["questions"]["auc"]) == (1.0, 1.0, None)
    assert found["questions"]["n"] == 2
    assert found["questions"]["early"]["1.2"] is None
    assert found["questions"]["delay_ms"] == {"p50": 0, "p95": 0}
    assert found["statements"]["delay_ms"] == {"p50": 693, "p95": 693}
    # no pause is taken if ln 3 grows to 2 s, by a step of the dial to 2.07 s; then ln 2 is 1.66 s, and ln 3/4 0.68 s
    assert found["points"] == {"0.05": 782, "0.10": 782}
    assert found["constant"] == {"0.05": 2000.0, "0.10": 2000.0}
    hasty = report(samples, p_ends, Policy(longest_wait_ms=100))
    assert hasty["points"] == {"0.05": None, "0.10": None}


def test_the_command_prints_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "id": 3}])
    monkeypatch.setattr(eval_timing, "load_model", lambda args: scripted_model())
    assert main(["eval", "timing", str(path)]) == 0
    out = capsys.readouterr()
    assert "| statements " in out.out
    assert "Only 7 rows: these figures say little." in out.out
    assert "unknown fields are ignored: id" in out.err
    assert main(["eval", "timing", str(path), "--json", "--eagerness", "1"]) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert (found["n"], found["eagerness"], found["delay_ms"]["p95"]) == (7, 1.0, 0)
    assert tables(found) in out.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ends": true}', 'line 2: a row has no "text"'),
        ('{"text": "yes"}', 'line 2: a row has no "ends" .true or false.'),
        ('{"text": "yes", "ends": "no"}', "line 2: .*ends must be true or false"),
        ('{"text": " ", "ends": true}', "line 2: the text is empty"),
        ('{"text": "yes", "ends": true, "context": "hi"}', "line 2: .*context must be a list"),
        ('{"text": "yes"', "line 2"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        read_timing(write(tmp_path / "rows.jsonl", [ROWS[0], line + "\n", ROWS[1]]))


def test_rows_of_both_kinds_are_needed_and_a_timing_pair(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no row in which the speaker goes on"):
        read_timing(write(tmp_path / "ends.jsonl", ROWS[::2]))
    with pytest.raises(BadData, match="no row in which the speaker ends"):
        read_timing(write(tmp_path / "joints.jsonl", ROWS[1::2]))
    with pytest.raises(BadData, match="no rows"):
        read_timing(write(tmp_path / "none.jsonl", []))
    rows = read_timing(write(tmp_path / "rows.jsonl", ROWS))
    with pytest.raises(AdapterMismatch, match=r"prompted.* has no timing pair"):
        probabilities(rows, scripted_model(timed=False))
