"""A report as stages: each runs one command of this package in a process of its own, and keeps what that printed.

A stage that is finished is not run again, one that fails does not stop the others, and one that lacks its data says so.
"""

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.evaluation import html
from duologue.evaluation.results import Measurement, Result

_OUTPUT = "output.md"
_STATE = "stage.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One command, and its section of the report."""

    name: str  # of its folder
    title: str
    arguments: Sequence[str]  # of `duologue`; `{folder}` stands for the stage's folder
    missing: str | None = None  # what it needs and was not given

    def command(self, folder: Path) -> list[str]:
        """The arguments, for a report in `folder`."""
        return [each.replace("{folder}", str(folder / self.name)) for each in self.arguments]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a stage."""

    stage: Stage
    status: str  # "done", "failed" or "skipped"
    text: str  # what the command printed, or why there is nothing
    seconds: float = 0.0
    pictures: Sequence[Path] = ()

    def to_json(self) -> dict[str, Any]:
        """For the result file; the figures are in the folders of the stages."""
        return {
            "stage": self.stage.name,
            "status": self.status,
            "seconds": round(self.seconds, 1),
            "command": shlex.join(["duologue", *self.stage.arguments]),
            "reason": None if self.status == "done" else self.text,
        }


def run(stages: Sequence[Stage], folder: Path, say: Callable[[str], None]) -> list[Outcome]:
    """Run every stage that is not finished in `folder`."""
    outcomes = []
    for stage in stages:
        if stage.missing is not None:
            outcomes.append(Outcome(stage, "skipped", stage.missing))
            continue
        outcome = _finished(stage, folder)
        if outcome is None:
            say(stage.title.lower())
            outcome = _run(stage, folder)
        outcomes.append(outcome)
    return outcomes


def _finished(stage: Stage, folder: Path) -> Outcome | None:
    """The outcome of an earlier run of the same command; None if there is none."""
    own = folder / stage.name
    try:
        state = json.loads((own / _STATE).read_text(encoding="utf-8"))
        text = (own / _OUTPUT).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    if state.get("command") != stage.command(folder):
        return None
    return Outcome(stage, "done", text, float(state["seconds"]), sorted(own.glob("*.png")))


def _run(stage: Stage, folder: Path) -> Outcome:
    own, command = folder / stage.name, stage.command(folder)
    own.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "duologue", *command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    seconds = time.monotonic() - began
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        return Outcome(stage, "failed", last[0], seconds)
    (own / _OUTPUT).write_text(done.stdout, encoding="utf-8")
    state = {"command": command, "seconds": round(seconds, 1)}
    (own / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")  # last: now it is finished
    return Outcome(stage, "done", done.stdout, seconds, sorted(own.glob("*.png")))


def write(title: str, outcomes: Sequence[Outcome], measurement: Measurement, folder: Path) -> Result:
    """Write `report.md`, `index.html` and `result.json` to `folder`, and return the result."""
    result = measurement.result({"title": title, "stages": [outcome.to_json() for outcome in outcomes]})
    (folder / "report.md").write_text(_markdown(title, outcomes, result, folder), encoding="utf-8")
    (folder / "index.html").write_text(_page(title, outcomes, result), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _facts(result: Result) -> str:
    hardware = result["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['date']}, {hardware['cpu']}, {hardware['cores']} cores. {versions}."


def _note(outcome: Outcome) -> str:
    if outcome.status != "done":
        return f"{outcome.status.capitalize()}: {outcome.text}"
    return f"{outcome.seconds:.0f} s"


def _markdown(title: str, outcomes: Sequence[Outcome], result: Result, folder: Path) -> str:
    parts = [f"# {title}", _facts(result)]
    for outcome in outcomes:
        parts += [f"## {outcome.stage.title}", _note(outcome)]
        if outcome.status == "done":
            parts += [f"```\n{outcome.to_json()['command']}\n```", _blocks_as_markdown(outcome.text)]
            parts += [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in outcome.pictures]
    return "\n\n".join(parts) + "\n"


def _blocks(text: str) -> list[tuple[bool, str]]:
    """The text as (is a table, lines) in turn."""
    found: list[tuple[bool, str]] = []
    for line in text.rstrip().splitlines():
        is_table = line.startswith("|")
        if found and found[-1][0] is is_table:
            found[-1] = is_table, f"{found[-1][1]}\n{line}"
        else:
            found.append((is_table, line))
    return [(is_table, lines.strip("\n")) for is_table, lines in found if lines.strip()]


def _blocks_as_markdown(text: str) -> str:
    return "\n\n".join(lines if is_table else f"```\n{lines}\n```" for is_table, lines in _blocks(text))


def _page(title: str, outcomes: Sequence[Outcome], result: Result) -> str:
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_facts(result))}</p>"]
    for outcome in outcomes:
        body += [f"<h2>{html.escape(outcome.stage.title)}</h2>", f"<p>{html.escape(_note(outcome))}</p>"]
        if outcome.status == "done":
            body.append(f"<pre><code>{html.escape(outcome.to_json()['command'])}</code></pre>")
            for is_table, lines in _blocks(outcome.text):
                body.append(_html_table(lines) if is_table else f"<pre>{html.escape(lines)}</pre>")
            body += [_picture(path) for path in outcome.pictures]
    style = "pre { overflow-x: auto; } img { max-width: 100%; }\n"
    return html.page(title, "\n".join(body), style=style, data=result)


def _html_table(lines: str) -> str:
    rows = [[_cell(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.splitlines()]
    return html.table(rows[0], rows[2:])


def _cell(text: str) -> str:
    return text.strip().replace("\\|", "|").replace("**", "")


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
