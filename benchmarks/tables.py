"""Render the tables of the documents from the result files.

A table stands between `<!-- table:NAME -->` and `<!-- end -->` in README.md, docs/*.md or benchmarks/README.md; the
function of that name below renders it from `benchmarks/results/*.json`. Without flags the script rewrites the
documents. With `--check` it writes nothing, and exits with status 1 if a document is out of date. Times that were
measured while other programs used the cores are marked with †.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import measuring
import server_tables
import voice_tables

from duologue.evaluation import cost_report
from duologue.evaluation.markdown import table
from duologue.evaluation.results import Result, Results, busy_mark

_MARKED = re.compile(r"(<!-- table:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


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
    return table(header, rows)


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
            _name(result) + busy_mark(result),
            _pair(result["decision_ms"]["speaking, live"]),
            _pair(result["decision_ms"]["speaking, direct"]),
            _pair(result["decision_ms"]["silent, direct"]),
            _pair(result["pass_ms"]["speech alone"]),
            f"{result['ratio']:.2f}",
        )
        for _, result in results.of("latency")
    ]
    return table(header, rows)


def import_time(results: Results) -> str:
    """What starting costs."""
    header = ("", "adds (s)", "heavy libraries loaded")
    rows = [
        (f"`{name}`{busy_mark(result)}", f"{case['adds_s']:.3f}", ", ".join(case["heavy_libraries"]) or "none")
        for _, result in results.of("import_time")
        for name, case in result["cases"].items()
    ]
    return table(header, rows)


def cost(results: Results) -> str:
    """The kinds of sessions side by side, for every run of the cost benchmark."""
    parts = []
    for name, result in results.of("cost"):
        where = f"{_name(result)}, {result['model']['name']}{busy_mark(result)}"
        parts.append(f"{where} ([{name}](../benchmarks/results/{name})):")
        parts.append(cost_report.summary(result["sessions"]))
    return "\n\n".join(parts) or "No run has been committed yet."


def cost_growth(results: Results) -> str:
    """How it grows, from the first run of the cost benchmark; on other backends it is the same."""
    for _, result in results.of("cost"):
        return cost_report.growth(result["sessions"])
    return "No run has been committed yet."


def cost_short(results: Results) -> str:
    """The figures that matter, from the first run of the cost benchmark."""
    for _, result in results.of("cost"):
        return f"{_name(result)}{busy_mark(result)}:\n\n{cost_report.short(result['sessions'])}"
    return "No run has been committed yet."


def readme(results: Results) -> str:
    """One row per claim and run, each with the file it comes from."""
    rows: list[tuple[str, str, str, str]] = []
    for name, result in results.of("exactness"):
        what = f"{result['tokens_identical']:,} tokens of {result['conversations']} disturbed conversations identical"
        odd = f"{result['exceptions']} rounding ties" if result["exceptions"] else "no rounding ties"
        rows.append(("disturbances leave no trace", _name(result), f"{what}, {odd}, {_failures(result)}", _link(name)))
    for name, result in results.of("latency"):
        live, direct = (result["decision_ms"][f"speaking, {how}"] for how in ("live", "direct"))
        what = f"p50 {live['p50']:.0f} ms, p95 {live['p95']:.0f} ms (between two passes: p95 {direct['p95']:.0f} ms)"
        rows.append(("words to decision while speaking", _name(result) + busy_mark(result), what, _link(name)))
        added, most = result["passes_added_while_answering"], result["passes_per_decision_in_silence"]
        what = f"{added} in {direct['n']} decisions (in silence: {most} per decision)"
        rows.append(("passes added by listening", _name(result), what, _link(name)))
    for name, result in results.of("import_time"):
        case = result["cases"]["import duologue"]
        heavy = ", ".join(case["heavy_libraries"]) or "no heavy library loaded"
        rows.append(("`import duologue`", "–", f"{case['adds_s']:.2f} s, {heavy}{busy_mark(result)}", _link(name)))
    header = ("claim", "engine, adapter", "measured", "file")
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * 4, *rows))


_STATES = ("process", "incomplete", "ignore", "stop")


def states(results: Results) -> str:
    """The shipped adapters on rows of sources that they were not trained on."""
    header = ("adapter, engine", "where", "n", *_STATES, "answer F1", "false answers", "false waits", "ECE")
    rows = [
        (
            f"{_kind(result)}, {_engine(result)}",
            {"idle": "assistant silent", "speaking": "over an answer"}[place],
            result[place]["n"],
            *(_percent(result[place]["recall"][state]) for state in _STATES),
            _percent(result[place]["answer"]["f1"]),
            _percent(result[place]["false_answer_rate"]),
            _percent(result[place]["false_wait_rate"]),
            _percent(result[place]["ece"]),
        )
        for _, result in results.of("states")
        if "baselines" not in result
        for place in ("idle", "speaking")
    ]
    return table(header, rows)


def state_kinds(results: Results) -> str:
    """Every kind of row apart, over an answer and outside of one."""
    chosen = [result for _, result in results.of("states") if result["model"]["backend"] == "torch"]
    header = ("kind of row", "where", "n", *(f"{_kind(result)}: right" for result in chosen))
    rows = []
    for place, name in (("idle", "silent"), ("speaking", "over an answer")):
        for kind, group in chosen[0][place]["per_kind"].items() if chosen else ():
            right = [_percent(result[place]["per_kind"][kind]["accuracy"]) for result in chosen]
            rows.append((kind, name, group["n"], *right))
    return table(header, rows)


def state_sources(results: Results) -> str:
    """Every source apart."""
    chosen = [result for _, result in results.of("states") if result["model"]["backend"] == "torch"]
    header = ("source", "n", *(f"{_kind(result)}: right" for result in chosen))
    rows = [
        (source, group["n"], *(_percent(result["per_source"][source]["accuracy"]) for result in chosen))
        for source, group in (chosen[0]["per_source"].items() if chosen else ())
    ]
    return table(header, rows)


def state_baselines(results: Results) -> str:
    """Other ways to decide, on the same rows."""
    header = ("decided by", "n", "answer F1", "false answers", "respond F1", *_STATES)
    rows = []
    for _, result in results.of("states"):
        if "baselines" in result:
            rows += [(name, result["n"], *_decided(found)) for name, found in result["baselines"].items()]
            rows.append((f"**{_kind(result)}**", result["n"], *_decided(result)))
    for _, result in results.of("smart_turn"):
        found = result["rows"]["smart turn"]
        rows.insert(-1, ("Smart Turn 3.2, spoken by Piper", found["n"], *_decided(found)))
    return table(header, rows)


def smart_turn(results: Results) -> str:
    """Recorded orders, whole and cut."""
    rows = [
        (name, found["n"], *(_percent(found["recall"][state]) for state in ("process", "incomplete")))
        for _, result in results.of("smart_turn")
        for name, found in (
            ("Smart Turn 3.2, by sound", result["orders"]["smart turn"]),
            (f"{result['model']['adapter']['kind']}, by words", result["orders"]["adapter"]),
        )
    ]
    return table(("decided by", "n", "whole orders: right", "cut orders: right"), rows)


def _decided(found: Result) -> tuple[str, ...]:
    if "unavailable" in found:
        return ("not available", *[""] * (2 + len(_STATES)))
    return (
        _percent(found["answer"]["f1"]),
        _percent(found["false_answer_rate"]),
        _percent(found["respond"]["f1"]),
        *(_percent(found["recall"][state]) for state in _STATES),
    )


def paper(results: Results) -> str:
    """Answer or ignore, beside the published figures (DUO, table 3; false answers follow from its counts)."""
    header = ("answer or ignore", "F1", "ignored rows answered or waited for", "trained", "rows")
    rows: list[tuple[object, ...]] = [
        ("always answering, on the paper's mix", "87.07", 100, "nothing", "1,683 answer, 500 ignore"),
        ("MiniCPM-Duo 2.4 B (DUO)", "92.68", 53.2, "all weights, 10,000 samples", "the same"),
        ("MiniCPM 2.4 B, 5 examples (DUO)", "81.99", 95, "nothing", "the same"),
    ]
    unseen = {source for _, build in results.of("build") for source in build["recipe"]["unseen"]}
    for _, result in results.of("states"):
        if result["model"]["backend"] == "torch":
            confusions = [each["confusion"] for name, each in result["idle"]["per_source"].items() if name in unseen]
            asked, ignored = (
                sum((Counter(each.get(label, {})) for each in confusions), Counter[str]())
                for label in ("process", "ignore")
            )
            kept, dropped = ignored.total() - ignored["ignore"], asked["ignore"]
            f1 = 2 * (asked.total() - dropped) / (2 * (asked.total() - dropped) + kept + dropped)
            trained = "rows and a LoRA at one position" if _kind(result) == "alora" else "rows"
            n = f"{asked.total():,} answer, {ignored.total()} ignore, unseen sources"
            share = f"{100 * kept / ignored.total():.1f}"
            rows.append((f"{_kind(result)}, SmolLM2 135 M", _percent(f1), share, trained, n))
    return table(header, rows)


def agreement(results: Results) -> str:
    """Whether backends decide alike."""
    rows = [
        (
            f"{_kind(result)}, {_engine(result)} and {result['compare']['backend']} {result['compare']['weights']}",
            result["n"],
            _percent(result["compare"]["equal_decisions"], digits=2),
        )
        for _, result in results.of("states")
        if "compare" in result
    ]
    return table(("adapter, engines", "rows", "equal decisions, %"), rows)


def unchanged(results: Results) -> str:
    """The base with an adapter and without."""
    header = (
        "adapter, engine",
        "prompts",
        "tokens",
        "decisions on the way",
        "answers that differ",
        "margins that differ",
    )
    rows = [
        (
            f"{_kind(result)}, {_engine(result)}",
            result["prompts"],
            f"{result['tokens']:,}",
            f"{result['decisions']:,}",
            result["answers_that_differ"],
            result["margins_that_differ"],
        )
        for _, result in results.of("unchanged")
    ]
    return table(header, rows)


def scale(results: Results) -> str:
    """Live sessions side by side."""
    header = (
        "engine, adapter",
        "history",
        "sessions",
        "decision (ms, p50 / p95)",
        "tokens/s each, least",
        "missed",
        "KV (MiB)",
        "in real time",
    )
    rows = [
        (
            _name(result) + busy_mark(result),
            f"{outcome['context_tokens']:,}",
            outcome["sessions"],
            f"{outcome['decision_ms']['p50']:.0f} / {outcome['decision_ms']['p95']:.0f}",
            f"{outcome['tokens_per_second']['min']:.2f}",
            outcome["missed_deadlines"],
            f"{outcome['kv_bytes'] / 2**20:,.0f}",
            "yes" if outcome["realtime"] else "no",
        )
        for _, result in results.of("scale")
        for outcome in result["outcomes"]
    ]
    return table(header, rows)


def scale_largest(results: Results) -> str:
    """The most live sessions in real time."""
    found = [(name, result) for name, result in results.of("scale")]
    contexts = sorted({int(context) for _, result in found for context in result["largest"]})
    header = ("most sessions in real time", *(f"{context:,} tokens of history" for context in contexts), "file")
    rows = [
        (
            _name(result) + busy_mark(result),
            *(result["largest"].get(str(context), "–") for context in contexts),
            f"[{name}](../benchmarks/results/{name})",
        )
        for name, result in found
    ]
    return table(header, rows)


def plain_loop(results: Results) -> str:
    """One session beside the loops of the same library."""
    header = ("engine", "loop", "tokens/s (median)", "least … most", "Duologue / this loop")
    rows = [
        (
            _engine(result) + busy_mark(result),
            name if name in result["ratio"] else "Duologue",
            f"{rate['median']:.1f}",
            f"{rate['min']:.1f} … {rate['max']:.1f}",
            f"{result['ratio'][name]:.2f}" if name in result["ratio"] else "",
        )
        for _, result in results.of("plain_loop")
        for name, rate in result["tokens_per_second"].items()
    ]
    return table(header, rows)


def attention(results: Results) -> str:
    """llama.cpp's two ways to compute attention."""
    header = (
        "engine",
        "history",
        "sessions",
        "speaking: flash (ms)",
        "stored",
        "with listening: flash",
        "stored",
    )
    rows = [
        (
            _engine(result) + busy_mark(result),
            f"{row['context_tokens']:,}",
            row["sessions"],
            *(f"{row[what][how]:.1f}" for what in ("speaking_ms", "listening_ms") for how in ("flash", "stored")),
        )
        for _, result in results.of("attention")
        for row in result["passes"]
    ]
    return table(header, rows)


def caches(results: Results) -> str:
    """llama.cpp's cache, shared by all sessions or by a few."""
    ways = ("one cache", "contexts of four", "one each")
    header = (
        "engine",
        "sessions",
        "history",
        *(f"{what}: {way} (ms)" if way == ways[0] else way for what in ("speaking", "overlap") for way in ways),
    )
    rows = [
        (
            _engine(result) + busy_mark(result),
            row["sessions"],
            f"{row['context_tokens']:,}",
            *(
                f"{row[what][per]:.1f}" if per in row[what] else "–"
                for what in ("speaking_ms", "overlap_ms")
                for per in (str(row["sessions"]), "4", "1")
            ),
        )
        for _, result in results.of("caches")
        for row in result["passes"]
    ]
    return table(header, rows)


def lora_shapes(results: Results) -> str:
    """What a LoRA of each shape costs at the probe."""
    header = ("engine", "LoRA", "decision (ms, p50 / p95)", "of rows")
    rows = [
        (_engine(result) + busy_mark(result), shape, _pair(row), f"{row['ratio']:.2f}")
        for _, result in results.of("lora_shapes")
        for shape, row in result["decision_ms"].items()
    ]
    return table(header, rows) if rows else "No run has been committed yet."


def exports(results: Results) -> str:
    """What exported files say of themselves."""
    header = (
        "weights, adapter",
        "tokens looked at",
        "an added token won",
        "smallest lead (logits)",
        "greedy tokens as the base",
        "decision error",
    )
    rows = [
        (
            f"{result['model']['weights']}, {result['model']['adapter']['kind']}",
            f"{result['tokens']:,}",
            result["won"],
            f"{result['smallest_lead']:.2f}",
            result["greedy_tokens_as_the_base"],
            f"{result['decision_error']:.4f}",
        )
        for _, result in results.of("export")
    ]
    return table(header, rows) if rows else "No run has been committed yet."


def experiments(_: Results) -> str:
    """Every experiment, one table each."""
    header = ("variant", "samples", "numbers trained", "s", *_STATES, "F1", "false", "F1 over", "false over")
    parts = []
    for path in sorted((measuring.ROOT / "experiments").glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (
                row["variant"],
                row["samples"],
                f"{row['trained_numbers']:,}",
                row["training_s"],
                *(_percent(row["idle"]["recall"][state]) for state in _STATES),
                _percent(row["idle"]["answer_f1"]),
                _percent(row["idle"]["false_answers"]),
                _percent(row["over_an_answer"]["answer_f1"]),
                _percent(row["over_an_answer"]["false_answers"]),
            )
            for row in result["results"]
        ]
        about = (
            f"**{path.parent.name}** – {result['question']} ([result](../experiments/{path.parent.name}/result.json))"
        )
        parts.append(f"{about}\n\n{table(header, rows)}")
    return "\n\n".join(parts) or "No run has been committed yet."


def _kind(result: Result) -> str:
    adapter = result["model"]["adapter"]
    return str(adapter["kind"] if isinstance(adapter, dict) else adapter).partition(" ")[0]


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


TABLES: dict[str, Callable[[Results], str]] = {
    "exactness": exactness,
    "latency": latency,
    "import": import_time,
    "cost": cost,
    "cost-growth": cost_growth,
    "cost-short": cost_short,
    "readme": readme,
    "states": states,
    "state-kinds": state_kinds,
    "state-sources": state_sources,
    "state-baselines": state_baselines,
    "smart-turn": smart_turn,
    "paper": paper,
    "agreement": agreement,
    "unchanged": unchanged,
    "scale": scale,
    "scale-largest": scale_largest,
    "plain-loop": plain_loop,
    "attention": attention,
    "caches": caches,
    "lora-shapes": lora_shapes,
    "exports": exports,
    "experiments": experiments,
    "serve": server_tables.serve,
    "voice": voice_tables.voice,
    "voice-stages": voice_tables.stages,
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


def _name(result: Result) -> str:
    """Engine, weights and adapter."""
    return f"{_engine(result)}, {_kind(result)}"


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
