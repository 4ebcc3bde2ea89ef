"""Examples on the default model: the conversations of the README, and the snippets of the README and the tutorial."""

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from documents import blocks, run_snippets
from duologue.cli.main import main
from duologue.errors import ModelNotFound
from duologue.evaluation.server_process import server_process
from duologue.models.catalogue import DEFAULT, find
from duologue.testing.tiny_models import tiny_model
from endpoint import says, standing_in_beside
from tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.jsonl"))
SHOWN_IN = {"mandarin": ROOT / "docs" / "languages.md"}  # the others in the README
MODELS = {"mandarin": os.environ.get("DUOLOGUE_QWEN", "")}  # a file or folder of Qwen2.5-Coder-0.5B-Instruct


def facts(text: str) -> list[str]:
    """The lines of a replay without answer texts and probabilities, which depend on rounding."""
    lines = [line for line in text.splitlines() if re.match(r" *\d+\.\d\d  ", line) and " assistant " not in line]
    return [re.sub(r" \d\.\d\d\]|; \d+ words? unheard\]", "]", line).rstrip() for line in lines]


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_comes_out_as_the_documents_show(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    model = MODELS.get(name, DEFAULT)
    if not model:
        pytest.skip("DUOLOGUE_QWEN names no model")
    try:
        find(model)
    except ModelNotFound as error:
        pytest.skip(str(error))
    path = SHOWN_IN.get(name, ROOT / "README.md")
    shown = re.search(rf"examples/{name}\.jsonl[`<].*?```text\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None, f"{path} does not show {name}"
    assert main(["replay", str(ROOT / "examples" / f"{name}.jsonl"), "--backend", "torch", "--model", model]) == 0
    assert facts(capsys.readouterr().out) == facts(shown[1])
    assert len(facts(shown[1])) >= 4


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with the default model."""
    pytest.importorskip("torch")
    try:
        find(DEFAULT)
    except ModelNotFound as error:
        pytest.skip(str(error))
    flags = [
        "--max-sessions",
        "2",
        "--context",
        "1024",
        "--max-answer",
        "120",
        "--threads",
        "2",
        "--words-per-second",
        "40",
    ]
    with server_process(flags) as process:
        yield process.url


@pytest.fixture(scope="module")
def llama_cpp_server() -> Iterator[str]:
    """The address of llama-cpp-python's own server, with the default model."""
    for name in ("llama_cpp", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(name)
    path = find(DEFAULT).path
    assert path is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "llama_cpp.server", "--model", path, "--port", port, "--n_ctx", 2048, "--n_threads", 1]
    words = [sys.executable, *map(str, command), "--host", "127.0.0.1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/v1/models", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server that is starting answers at `url`."""
    for _ in range(600):
        assert process.poll() is None, "the server did not start"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError("the server did not start in time")


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
@pytest.mark.parametrize("name", ["asides", "interruption", "stop_and_go_on"])
@pytest.mark.parametrize("endpoint", ["llama_cpp_server", "server"])
def test_an_endpoint_s_answers_are_interrupted_as_those_of_the_default_model(
    endpoint: str, name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real endpoint answers in other words, and a part arrives sooner; what is decided on the user's is the same."""
    url = request.getfixturevalue(endpoint)
    shown = re.search(rf"examples/{name}\.jsonl[`<].*?```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    script = str(ROOT / "examples" / f"{name}.jsonl")
    assert main(["replay", script, "--speaker", f"{url}/v1", "--speaker-model", "a-model"]) == 0
    out = capsys.readouterr().out
    assert decided(out) == decided(shown[1])
    assert ("asked in words to go on" in out) is (name == "stop_and_go_on")
    assert "failed" not in out


def decided(text: str) -> list[str]:
    """What the user says in a replay and what comes of it, without times and what the speaker notices."""
    return [line.split(maxsplit=1)[1] for line in facts(text) if "[the speaker " not in line]


def snippets(name: str, kind: str, url: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return [snippet.replace("http://127.0.0.1:8080", url) for snippet in blocks(text, kind)]


@pytest.mark.smollm2
def test_the_client_of_the_manual_interrupts_one_answer(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = snippets("serving.md", "python", server)[0]
    exec(compile(client, "serving.md", "exec"), {})
    output = capsys.readouterr().out
    assert output.count("[cut after: ") == 1
    assert output.count("role=<Role.USER: 'user'>") == 2
    assert "text='wait, what about the sun'" in output


@pytest.mark.smollm2
def test_openai_s_client_gets_an_answer(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippets("serving.md", "python", server)[1], "serving.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 2


@pytest.mark.smollm2
def test_the_realtime_example_is_interrupted_by_a_question_only(server: str) -> None:
    (snippet,) = snippets("realtime.md", "python realtime", server)
    out = io.StringIO()
    lines = [(0, "tell me a long story about a fisherman"), (60, "mhm"), (150, "wait, what is the capital of france?")]

    def typed() -> str:
        """Each line when so much has been said; then nothing, when the second answer has ended."""
        if not lines:
            while out.getvalue().count("\n") < 2:
                time.sleep(0.05)
            return ""
        until, text = lines.pop(0)
        while len(out.getvalue()) < until:
            time.sleep(0.01)
        return text

    names: dict[str, Any] = {"input": typed}
    with contextlib.redirect_stdout(out):
        exec(compile(snippet, "realtime.md", "exec"), names)
    story, answer = out.getvalue().splitlines()[:2]
    assert len(story) >= 150
    assert "Paris" in answer


@pytest.mark.smollm2
def test_lines_in_a_pipe_are_answered_one_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    (command,) = [
        line for line in blocks((ROOT / "docs" / "chat.md").read_text("utf-8"), "bash")[0].splitlines() if line
    ]
    shell = command.replace("duologue chat", f"{sys.executable} -m duologue chat --max-answer 30")
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300, check=True)
    asked = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert asked == ["> what is a cat", "> what is a dog"]
    assert done.stdout.count("[process ") == 2
    assert "[cut" not in done.stdout


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the reader of GGUF files
@pytest.mark.parametrize("name", ["library.md", "engine.md", "replay.md", "cost.md"])
def test_snippets_of_the_manual_run_on_the_default_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_snippets(ROOT / "docs" / name, tmp_path, monkeypatch)
    output = capsys.readouterr().out
    shown = {
        "library.md": r"1 Turn\(role=<Role.ASSISTANT: 'assistant'>, text=(['\"]).+\1\)",  # interrupted by "stop"
        "engine.md": r"\['.+', '.+', '.+'\]",
        "replay.md": r"Suspended\(.*\n(.*\n)*.*Resumed\(",
        "cost.md": r"Committed\(",
    }
    assert re.search(shown[name], output), output[-2000:]


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


@pytest.mark.smollm2
@pytest.mark.filterwarnings("ignore")  # from the client's event loop
def test_the_notebook_runs_from_a_fresh_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(ROOT / "examples" / "interrupt.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is stored without outputs"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    told = "".join(
        part["text"] for cell in notebook.cells for part in cell.get("outputs", []) if part.get("name") == "stdout"
    )
    assert "dropped 'mhm'; the answer goes on" in told
    assert "cut after" in told
    assert "user | Wait, what is the capital of France?" in told
    assert "Paris" in told
    assert told.rstrip().splitlines()[-1].endswith("cut"), "the last thing that is said stops an answer"
