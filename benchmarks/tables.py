"""Tables of the documents, from the result files.

Between `<!-- table:NAME -->` and `<!-- end -->` in README.md, docs/*.md and benchmarks/README.md stands what the
function of that name below makes of `benchmarks/results/*.json`. Without flags the documents are rewritten; with
`--check` nothing is written, and the exit status is 1 if a document is out of date.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measuring

from duologue.evaluation import cost_tables

_MARKED = re.compile(r"(<!-- table:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
Result = dict[str, Any]


class Results:
    """The result files of a folder, by benchmark."""

    def __init__(self, folder: Path) -> None:
        self._found: list[tuple[str, Result]] = [
            (path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))
        ]

    def of(self, benchmark: str) -> Iterator[tuple[str, Result]]:
        """File names and contents, in the order of the names."""
        return ((name, result) for name, result in self._found if result["benchmark"] == benchmark)


def exactness(results: Results) -> str:
    """Every run of the exactness benchmark."""
    header = (
        "backend, weights",
        "conversations",
        "tokens identical",
        "exceptions",
        "failures",
        "passes added",
        "noise",
    )
    rows = [
        (
            _engine(result) + (f", against {result['against']}" if result["against"] != _backend(result) else ""),
            result["conversations"],
            f"{result['tokens_identical']:,}",
            result["exceptions"],
            result["failures"],
            result["passes_added_by_listening"],
            f"{result['noise']['max']:.2g}",
        )
        for _, result in results.of("exactness")
    ]
    return measuring.table(header, rows)


def latency(results: Results) -> str:
    """Every run of the latency benchmark."""
    header = (
        "ms (p50 / p95)",
        "decision, live",
        "decision, direct",
        "decision in silence",
        "speech alone",
        "× listening",
    )
    rows = [
        (
            _engine(result),
            _pair(result["decision_ms"]["speaking, live"]),
            _pair(result["decision_ms"]["speaking, direct"]),
            _pair(result["decision_ms"]["silent, direct"]),
            _pair(result["pass_ms"]["speech alone"]),
            f"{result['ratio']:.2f}",
        )
        for _, result in results.of("latency")
    ]
    return measuring.table(header, rows)


def import_time(results: Results) -> str:
    """What starting costs."""
    header = ("", "adds (s)", "heavy libraries loaded")
    rows = [
        (f"`{name}`", f"{case['adds_s']:.3f}", ", ".join(case["heavy_libraries"]) or "none")
        for _, result in results.of("import_time")
        for name, case in result["cases"].items()
    ]
    return measuring.table(header, rows)


def cost(results: Results) -> str:
    """The kinds of sessions side by side, for every run of the cost benchmark."""
    parts = []
    for name, result in results.of("cost"):
        parts.append(f"{_engine(result)}, {result['model']['name']} ([{name}](../benchmarks/results/{name})):")
        parts.append(cost_tables.summary(result["sessions"]))
    return "\n\n".join(parts) or "No run has been committed yet."


def cost_growth(results: Results) -> str:
    """How it grows, from the first run of the cost benchmark; on other backends it is the same."""
    for _, result in results.of("cost"):
        return cost_tables.growth(result["sessions"])
    return "No run has been committed yet."


def readme(results: Results) -> str:
    """One row a claim, each with the file it comes from."""
    rows: list[tuple[str, str, str]] = []
    for name, result in results.of("exactness"):
        what = f"{result['tokens_identical']:,} tokens of {result['conversations']} disturbed conversations identical"
        odd = f"{result['exceptions']} rounding ties" if result["exceptions"] else "no exception"
        rows.append((f"Exactness, {_engine(result)}", f"{what}, {odd}, {_failures(result)}", _link(name)))
    for name, result in results.of("latency"):
        live, direct = (result["decision_ms"][f"speaking, {how}"] for how in ("live", "direct"))
        what = f"p50 {live['p50']:.0f} ms, p95 {live['p95']:.0f} ms (between two passes: p95 {direct['p95']:.0f} ms)"
        rows.append((f"Words to decision while speaking, {_engine(result)}", what, _link(name)))
        added, most = result["passes_added_while_answering"], result["passes_per_decision_in_silence"]
        rows.append(
            (f"Passes that listening adds, {_engine(result)}", f"{added}; in silence {most} a decision", _link(name))
        )
    for name, result in results.of("import_time"):
        case = result["cases"]["import duologue"]
        heavy = ", ".join(case["heavy_libraries"]) or "no heavy library"
        rows.append(("`import duologue`", f"{case['adds_s']:.2f} s, {heavy}", _link(name)))
    return "\n".join(["| what | measured | file |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def adapter(_: Results) -> str:
    """What the shipped adapter gets right on sources it was not trained on; its figures are in its own file."""
    shipped = measuring.ROOT / "src" / "duologue" / "assets" / "adapters" / "smollm2-135m-instruct" / "adapter.json"
    training = json.loads(shipped.read_text(encoding="utf-8"))["training"]
    groups = {
        "assistant silent": training["unseen_equal_thresholds"]["idle"],
        "over an answer": training["unseen"]["over_an_answer"],
    }
    header = (
        "recall on unseen sources, %",
        "n",
        "process",
        "incomplete",
        "ignore",
        "stop",
        "answer F1",
        "false answers",
    )
    rows = [
        (
            name,
            group["n"],
            *(f"{100 * group['recall'][state]:.1f}" for state in ("process", "incomplete", "ignore", "stop")),
            f"{100 * group['answer_f1']:.1f}",
            f"{100 * group['false_answer_rate']:.1f}",
        )
        for name, group in groups.items()
    ]
    return measuring.table(header, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "exactness": exactness,
    "latency": latency,
    "import": import_time,
    "cost": cost,
    "cost-growth": cost_growth,
    "readme": readme,
    "adapter": adapter,
}


def render(text: str, results: Results) -> str:
    """`text` with every table between markers made anew. Raises `KeyError` for a table that nobody knows."""
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


def _failures(result: Result) -> str:
    return f"**{result['failures']} failures**" if result["failures"] else "no failure"


def _backend(result: Result) -> str:
    return str(result["model"]["backend"])


def _engine(result: Result) -> str:
    name = {"llamacpp": "llama.cpp"}.get(_backend(result), _backend(result))
    return f"{name} {result['model']['weights']}"


def _pair(row: dict[str, float]) -> str:
    return f"{row['p50']:.1f} / {row['p95']:.1f}"


def _link(name: str) -> str:
    return f"[{name.removesuffix('.json')}](benchmarks/results/{name})"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a table is out of date")
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
