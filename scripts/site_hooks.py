"""MkDocs hooks: the pages in docs/ stay plain Markdown that GitHub renders; the site gets what it needs beyond that.

* The READMEs, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md become pages.
* Links that leave docs/, such as those to result files, point to copies under files/. A target that does not exist
  fails the build.
* The second word of a code fence (`python run`), which tells the tests what to do with it, is removed.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
    "benchmarks/README.md": "benchmarks.md",
    "experiments/README.md": "experiments.md",
}
"""Files outside of docs/ that become pages, and the names of these pages."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^```(\w+) (?:run|script|exchange|realtime)$", re.MULTILINE)
_LANGUAGES = {"jsonl": "json"}
_log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of docs/, and a copy of every file outside of docs/ that a page links to."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    linked = {
        target
        for path in [*DOCS.glob("*.md"), *(ROOT / source for source in PAGES)]
        for link, _ in _LINK.findall(path.read_text(encoding="utf-8"))
        if (target := _resolve(path, link)).is_file() and not target.is_relative_to(DOCS)
    }
    for target in sorted(linked):
        name = target.relative_to(ROOT).as_posix()
        if name not in PAGES:
            files.append(File.generated(config, f"files/{name}", abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links and fences of one page."""
    source = next((ROOT / path for path, name in PAGES.items() if name == page.file.src_uri), DOCS / page.file.src_uri)
    markdown = _LINK.sub(lambda found: _relinked(source, found[1]) + (found[2] or ""), markdown)
    return _FENCE.sub(lambda found: f"```{_LANGUAGES.get(found[1], found[1])}", markdown)


def _resolve(source: Path, link: str) -> Path:
    """The file that a relative link in `source` points to."""
    return Path(os.path.normpath(source.parent / link))


def _relinked(source: Path, link: str) -> str:
    """The link as it reads from a page of the site, all of which are in one folder."""
    target = _resolve(source, link)
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else link
    if not target.is_file():
        _log.warning("%s links to %s, which is not a file", source.name, link)
    return PAGES.get(name, f"files/{name}")
