"""Code blocks of the documents, and how they are run."""

import re
from pathlib import Path

import pytest


def blocks(text: str, kind: str) -> list[str]:
    """The code blocks that are marked `kind`."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_snippets(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the snippets of a document one after the other in `folder`, with its scripts beside them."""
    text = document.read_text(encoding="utf-8")
    for script in blocks(text, "jsonl script"):
        (folder / "talk.jsonl").write_text(script, encoding="utf-8")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for number, snippet in enumerate(blocks(text, "python run"), 1):
        exec(compile(snippet, f"{document.name}, snippet {number}", "exec"), names)
