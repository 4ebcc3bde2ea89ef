"""Render the tables of the documents from the result files.

A table stands between `<!-- table:NAME -->` and `<!-- end -->` in README.md, docs/*.md or benchmarks/README.md;
`document_tables.py` renders it from `benchmarks/results/*.json`. Without flags the script rewrites the documents. With
`--check` it writes nothing, and exits with status 1 if a document is out of date.
"""

import argparse
import re
from pathlib import Path

import measuring
from document_tables import TABLES

from duologue.evaluation.results import Results

_MARKED = re.compile(r"(<!-- table:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def render(text: str, results: Results) -> str:
    """`text` with every table between markers rendered anew. Raises `KeyError` for an unknown table."""
    return _MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m['name']](results)}\n\n{m[4]}", text)


def update(documents: list[Path], results: Results, *, check: bool) -> list[Path]:
    """Bring `documents` up to date, unless this is a `check`. Returns those that were not."""
    stale = []
    for path in documents:
        text = path.read_text(encoding="utf-8")
        new = render(text, results)
        if new != text:
            stale.append(path)
            if not check:
                path.write_text(new, encoding="utf-8")
    return stale


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    args = parser.parse_args()
    documents = [measuring.ROOT / "README.md", *sorted((measuring.ROOT / "docs").glob("*.md"))]
    documents.append(measuring.ROOT / "benchmarks" / "README.md")
    stale = update(documents, Results(measuring.RESULTS), check=args.check)
    state = "out of date, run benchmarks/tables.py" if args.check else "updated"
    for path in stale:
        print(f"{path.relative_to(measuring.ROOT)}: {state}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
