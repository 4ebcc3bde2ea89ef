"""The documents are true: snippets run, names and links exist, tables and figures come from the code."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from test_repository import LAYERS

import duologue
from documents import blocks, run_snippets
from duologue.cli.main import main
from duologue.core import events
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.transitions import PROTECTED, TABLE, Floor, figure
from duologue.engine.replay import read_script
from duologue.evaluation.behaviour.cases import case_from
from duologue.models.adapters import prompted
from duologue.models.model import Model
from duologue.types import InputState
from scripted import PROBE, Talk

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "duologue"
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PAGES = sorted(
    [
        *DOCUMENTS,
        *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "experiments/README.md")),
    ]
)
"""All documents of the site but the changelog."""
RUNNABLE = [path for path in DOCUMENTS if "```python run" in path.read_text(encoding="utf-8")]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
NUM_SENTENCES = {"2": 8, "2.1": 13, "2.2": 13, "2.3": 17, "3.1": 17}
"""Of the paper, captions in these sections included. In 3.1, the eleven sentences on benchmarks share one row."""


def table(text: str, *, after: str) -> list[list[str]]:
    """Cells of the rows of the first table behind `after`, header and rule left out."""
    lines = text.split(after, 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows[2:]


# ---------------------------------------------------------------------------------------------------------- snippets


class Stand(Talk):
    """A loaded model without a model."""

    def model(self) -> Model:
        limit = self.session.config.max_length
        return Model("a script", self.backend, self.template, prompted(), PROBE, limit)


@pytest.mark.parametrize("document", RUNNABLE, ids=lambda path: path.name)
def test_snippets_run_on_a_script(document, tmp_path, monkeypatch):
    monkeypatch.setattr("duologue.models.model.load", lambda *_, **__: Stand().model())
    run_snippets(document, tmp_path, monkeypatch)


def test_the_toy_corpus_of_the_tutorial_can_be_built(tmp_path, monkeypatch, capsys):
    tutorial = ROOT / "docs" / "own-adapter.md"
    run_snippets(tutorial, tmp_path, monkeypatch)
    (command,) = re.findall(r"^duologue (data build .*--cuts-by rules)$", tutorial.read_text("utf-8"), re.MULTILINE)
    assert main(command.split()) == 0
    assert {path.name for path in (tmp_path / "samples").iterdir()} >= {"train.jsonl", "dev.jsonl", "report.md"}


def test_the_script_of_the_manual_has_every_kind_of_line(tmp_path):
    (source,) = blocks((ROOT / "docs" / "replay.md").read_text(encoding="utf-8"), "jsonl script")
    path = tmp_path / "talk.jsonl"
    path.write_text(source, encoding="utf-8")
    script = read_script(path)
    keys = {key for line in source.splitlines() if not line.startswith("#") for key in json.loads(line)}
    assert keys == {"system", "history", "at", "say", "text", "utterance", "final", "command", "edit"}
    assert script.system is not None
    assert script.history
    assert {cue.command for cue in script.cues} >= {"resume"}


def test_the_case_in_the_manual_is_one():
    (row,) = blocks((ROOT / "docs" / "behaviour.md").read_text(encoding="utf-8"), "json")
    assert [one.action for one in case_from(json.loads(row)).expect] == ["go_on", "stop"]


# ---------------------------------------------------------------------------------------------------- names and links


def anchors(text: str) -> set[str]:
    """The anchors that a document's headings get."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{document.name} links to {link}"


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = re.findall(r": ([\w-]+\.md)$", nav, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)


def test_the_api_page_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {path.rsplit(".", 1)[1] for path in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
    assert set(duologue.__all__) - listed == {"__version__"}


def test_the_generated_reference_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert reference.render(text) == text, f"{path.name} is out of date; run scripts/reference.py"


def test_tables_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    documents = [*DOCUMENTS, ROOT / "benchmarks" / "README.md"]
    assert tables.update(documents, tables.Results(ROOT / "benchmarks" / "results"), check=True) == [], (
        "run benchmarks/tables.py"
    )


def test_the_layout_that_contributing_draws_is_the_checked_one():
    rows = table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), after="## Layout")
    assert {name: int(layer) for layer, names, _ in rows for name in re.findall(r"`(\w+)`", names)} == LAYERS


def test_every_environment_variable_is_listed():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    used = {
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r"\bDUOLOGUE_[A-Z]+(?:_[A-Z]+)*\b", path.read_text(encoding="utf-8"))
    }
    assert {"DUOLOGUE_CACHE", "DUOLOGUE_TOKEN"} <= used
    assert [name for name in used if f"`{name}`" not in text and not name.startswith("DUOLOGUE_SERVE_")] == []


def defined(body: list[ast.stmt], name: str) -> list[ast.stmt] | None:
    """The body of what `name` names among these statements (empty for a value), or None."""
    for node in body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                return node.body
            case ast.Assign(targets=targets) if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return []
            case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return []
    for node in body:  # attributes that a constructor sets
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and part.attr == name:
                    return []
    return None


def exists(reference: str) -> bool:
    """Whether `module:Name` or `module:Class.name` is in the package. Modules are read, not imported."""
    module, _, path = reference.partition(":")
    file = SOURCE / (module.replace(".", "/") + ".py")
    if not file.is_file():
        return False
    body: list[ast.stmt] | None = ast.parse(file.read_text(encoding="utf-8")).body
    top = body
    for name in path.split("."):
        body = None if body is None else defined(body, name)
        body = body and with_bases(top, name, body)
    return body is not None


def with_bases(module: list[ast.stmt], name: str, body: list[ast.stmt]) -> list[ast.stmt]:
    """`body` of the class `name`, and what it inherits from classes of the same module or of others in the package."""
    for node in module:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            return body + [inherited for base in bases for inherited in inherited_from(module, base)]
    return body


def inherited_from(module: list[ast.stmt], base: str) -> list[ast.stmt]:
    """The body of the class `base`, which the statements `module` define or import."""
    for node in module:
        if isinstance(node, ast.ImportFrom) and base in [alias.name for alias in node.names]:
            file = (ROOT / "src").joinpath(*str(node.module).split(".")).with_suffix(".py")
            module = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
            break
    return defined(module, base) or []


def test_what_exists_is_told_from_what_does_not():
    assert exists("core.session:Session.hear"), "inherited"
    assert exists("core.session:Session._judge")
    assert exists("core.prompt:Probe.tokens")
    assert exists("engine.trace:Trace.passes")
    assert not exists("core.session:Session.listen")
    assert not exists("core.session:Session.promote")
    assert not exists("core.conversation:Session")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_documents_exist(document):
    found = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)*:[A-Za-z_][\w.]*)`", document.read_text(encoding="utf-8"))
    references = [name for name in found if name != "module:Name"]
    assert [name for name in references if not exists(name)] == []
    if document.name == "method.md":
        assert len(references) > 60


def test_modules_named_in_documents_exist():
    for document in DOCUMENTS:
        for name in re.findall(r"`duologue\.([a-z_.]+)`", document.read_text(encoding="utf-8")):
            place = SOURCE / name.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), f"{document.name}: duologue.{name}"


def test_the_manual_lists_every_event_and_every_field_of_the_policy():
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for event in events.EVENT_TYPES.values():
        assert f"`{event.__name__}`" in text
    listed = {name for row in table(text, after="## Policy") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == {field.name for field in fields(Policy) if field.init}
    told = {name for row in table(text, after="## A session") for name in re.findall(r"`(\w+)\(", row[0])}
    assert all(callable(getattr(duologue.Session, name)) for name in told)


# --------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("section", NUM_SENTENCES)
def test_every_sentence_of_the_paper_has_a_row(section):
    rows = table(METHOD, after=f"### {section} ")
    assert len(rows) == NUM_SENTENCES[section]
    for said, where, verdict in rows:
        assert said
        assert re.match(r"(same|differs|claim)\b", verdict), verdict
        assert ":" in where or verdict.startswith("claim"), f"no name for: {said}"


def test_choices_that_are_referred_to_exist():
    headings = set(re.findall(r"^### (\w+)\. ", METHOD, re.MULTILINE))
    referred = set(re.findall(r"choice (\d+|[A-Z])\b", METHOD))
    assert referred <= headings
    assert {str(number) for number in range(1, 13)} <= headings


def test_the_transition_table_is_that_of_the_code():
    rows = table(METHOD, after="<!-- transitions -->")
    written = {(floor, InputState(row[0])): row[1 + column] for row in rows for column, floor in enumerate(list(Floor))}
    assert written == {key: change.value for key, change in TABLE.items()}
    assert [f"{floor}" for floor in Floor] == ["silent", "prepared", "speaking"]


def test_the_table_of_protected_answers_is_that_of_the_code():
    rows = {tuple(row) for row in table(METHOD, after="<!-- protected -->")}
    assert rows == {(kind.value, plain.value, change.value) for (kind, plain), change in PROTECTED.items()}


def test_the_figure_is_that_of_the_code():
    assert blocks(METHOD, "mermaid") == [figure() + "\n"]


def test_the_layout_is_what_is_fed():
    seen: dict[str, str] = {}

    def text(ids: list[int]) -> str:
        return "".join("[PRED]" if token == PROBE.tokens[0] else talk.tokenizer.decode([token]) for token in ids)

    def judge(words: str) -> InputState:
        return InputState.PROCESS

    talk = Talk({"what is a cat": "A cat is a small animal."}, judge=judge, config=SessionConfig(heard="reported"))
    look = talk.backend._judge

    def seeing(ids: list[int]) -> object:
        seen["input" if "question" in seen else "question"] = text(ids)
        return look(ids)

    talk.backend._judge = seeing
    talk.hear("what is a cat")
    talk.tick(1)
    said = "A cat is a s"
    talk.tick(len(said))
    heard = "A cat is "
    talk.told(talk.session.heard(len(heard)))
    running = talk.session.running
    assert running is not None
    items = running.sequence.items
    seen["running"] = f"{text(items[: running.heard_at])}│{text(items[running.heard_at :])}"
    talk.hear("and a dog", "second")
    talk.tick(1)
    assert talk.session.running is not None
    seen["promoted"] = text(talk.session.running.sequence.items)
    written = blocks(METHOD.split("<!-- layout -->")[1], "text")[0]
    lines = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in written.splitlines()}
    assert {key: value.replace("\n", "⏎") for key, value in seen.items()} == lines
