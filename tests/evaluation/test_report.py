"""`duologue report`: stages are commands, finished ones are not repeated, and what is missing is said."""

import json
import struct
import zlib
from pathlib import Path

import pytest

from duologue import __version__
from duologue.cli.main import main, parser
from duologue.cli.report import stages
from duologue.evaluation.results import Measurement
from duologue.evaluation.stages import Outcome, Stage, run, write

VERSION = Stage("version", "Version", ["--version"])
BROKEN = Stage("broken", "Broken", ["eval", "states", "no-such-file.jsonl"])
MISSING = Stage("missing", "Missing", ["eval", "states", "None"], "it needs labelled rows: --rows")


def nothing(_: str) -> None:
    pass


def test_each_stage_runs_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    outcomes = run([BROKEN, MISSING, VERSION], tmp_path, nothing)
    assert [outcome.status for outcome in outcomes] == ["failed", "skipped", "done"]
    assert "no-such-file.jsonl" in outcomes[0].text
    assert outcomes[2].text == f"duologue {__version__}\n"


def test_a_finished_stage_is_not_repeated_unless_its_command_changed(tmp_path: Path) -> None:
    run([VERSION], tmp_path, nothing)
    (tmp_path / "version" / "output.md").write_text("kept\n", encoding="utf-8")
    said: list[str] = []
    assert run([VERSION], tmp_path, said.append)[0].text == "kept\n"
    assert said == []
    (again,) = run([Stage("version", "Version", ["--help"])], tmp_path, said.append)
    assert "usage: duologue" in again.text
    assert said == ["version"]


def test_an_unfinished_stage_is_repeated(tmp_path: Path) -> None:
    run([VERSION], tmp_path, nothing)
    (tmp_path / "version" / "stage.json").write_text('{"comm', encoding="utf-8")
    (tmp_path / "version" / "output.md").write_text("half", encoding="utf-8")
    assert run([VERSION], tmp_path, nothing)[0].text == f"duologue {__version__}\n"


def picture(path: Path) -> Path:
    """A PNG of one pixel."""
    chunks = [(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_the_page_is_one_file_with_tables_and_pictures(tmp_path: Path) -> None:
    text = "n = 3 <rows>\n\n| name | a \\| b |\n| ---- | -----: |\n| **x** | 1 |\n"
    drawn = picture(tmp_path / "cost" / "cost.png")
    outcomes = [
        Outcome(Stage("cost", "Cost", ["bench", "cost"]), "done", text, 3.2, [drawn]),
        Outcome(MISSING, "skipped", "it needs labelled rows: --rows"),
        Outcome(BROKEN, "failed", "the file is <damaged>"),
    ]
    result = write("A & B", outcomes, Measurement("report", seed=0), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in page
    assert "<td>x</td><td>1</td>" in page
    assert "<th>a | b</th>" in page
    assert "n = 3 &lt;rows&gt;" in page
    assert "the file is &lt;damaged&gt;" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.partition("<script>")[0]
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![cost](cost/cost.png)" in markdown
    assert "Skipped: it needs labelled rows: --rows" in markdown
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["stages"] == result["stages"]
    assert [stage["reason"] for stage in result["stages"]] == [None, MISSING.missing, "the file is <damaged>"]


@pytest.mark.parametrize("size", ["smoke", "paper"])
@pytest.mark.parametrize("further", [[], ["--run-code", "--model", "m", "--adapter", "a", "--threads", "2"]])
def test_every_stage_is_a_command_that_exists(size: str, further: list[str]) -> None:
    args = parser().parse_args(["report", "--size", size, "--data", "d", "--rows", "r", "--timing", "t", *further])
    built = stages(args)
    assert all(stage.missing is None for stage in built)
    for stage in built:
        read = parser().parse_args(stage.command(Path("out")))
        assert (read.model, read.adapter, read.threads) == (args.model, args.adapter, args.threads)
    assert stages(parser().parse_args(["report"]))[1].missing == "it needs labelled rows: --rows"


def test_programs_run_only_with_the_flag() -> None:
    for further, is_allowed in (([], False), (["--run-code"], True)):
        args = parser().parse_args(["report", "--size", "paper", "--data", "d", *further])
        read = parser().parse_args(stages(args)[0].command(Path("out")))
        assert read.run_code is is_allowed
        assert ("paper" in read.tasks) is is_allowed


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be created" in capsys.readouterr().err
