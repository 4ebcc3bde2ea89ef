"""Examples on the default model: the conversations of the README, and the snippets of the README and the tutorial."""

import os
import re
import shlex
from pathlib import Path

import pytest

from documents import run_snippets
from duologue.cli.main import main
from duologue.errors import ModelNotFound
from duologue.models.catalogue import DEFAULT, find
from duologue.testing.tiny_models import tiny_model
from endpoint import says, standing_in_beside
from tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.jsonl"))


def facts(text: str) -> list[str]:
    """The lines of a replay without answer texts and probabilities, which depend on rounding."""
    lines = [line for line in text.splitlines() if re.match(r" *\d+\.\d\d  ", line) and " assistant " not in line]
    return [re.sub(r" \d\.\d\d\]|; \d+ words? unheard\]", "]", line).rstrip() for line in lines]


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_comes_out_as_the_readme_shows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    try:
        find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(rf"examples/{name}\.jsonl.*?```text\n(.*?)```", readme, re.DOTALL)
    assert shown is not None, f"the README does not show {name}"
    assert main(["replay", str(ROOT / "examples" / f"{name}.jsonl"), "--backend", "torch"]) == 0
    assert facts(capsys.readouterr().out) == facts(shown[1])
    assert len(facts(shown[1])) >= 4


@pytest.mark.smollm2
def test_the_readme_runs_on_the_default_model(tmp_path, monkeypatch, capsys):
    run_snippets(ROOT / "README.md", tmp_path, monkeypatch)
    assert "assistant | " in capsys.readouterr().out


@pytest.mark.smollm2
def test_the_tutorial_interrupts_an_answer(tmp_path, monkeypatch, capsys):
    run_snippets(ROOT / "docs" / "first-answer.md", tmp_path, monkeypatch)
    output = capsys.readouterr().out
    assert re.search(r"Suspended\(.*unheard=", output)
    assert "user | Wait, what is the capital of France?" in output
    assert re.search(r"Dropped\(.*text='mhm', reason='ignore'", output)


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
def test_the_first_commands_of_the_readme_work_as_they_stand(tmp_path, monkeypatch, capfd):
    pytest.importorskip("torch")
    try:
        find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^duologue chat.*$", readme, re.MULTILINE)[:3]]
    assert [command[2:3] for command in commands] == [[], ["-m"], ["--speaker"]]
    monkeypatch.chdir(tmp_path)
    write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "model.gguf")
    with standing_in_beside(says("It is", " a cat.")) as stand_in:
        for command in commands:
            argv = [stand_in.url if word.startswith("http://") else word for word in command[1:]]
            lines, writer = os.pipe()
            os.write(writer, b"What is a cat?\n")
            os.close(writer)
            with os.fdopen(lines) as words:
                monkeypatch.setattr("sys.stdin", words)
                assert main([*argv, "--plain", "--max-answer", "8", "--context", "512"]) == 0
            out = capfd.readouterr().out
            assert "> What is a cat?" in out
            assert re.search(r"\[process 0\.\d\d", out), "the default model decides"
    assert "It is a cat." in out
    assert stand_in.asked[0].messages == [("user", "What is a cat?")]
    assert stand_in.asked[0].body["model"] == "qwen3"
