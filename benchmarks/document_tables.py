"""The tables of the documents: one function per table, from result files to Markdown.

Times that were measured while other programs used the cores are marked with †.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import published

from duologue.decisions.metrics import Detection
from duologue.evaluation import cost_report
from duologue.evaluation.behaviour import report as behaviour_report
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.evaluation.results import Result, Results, busy_mark

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
TABLES: dict[str, Callable[[Results], str]] = {}
"""Name of a table → what renders it."""

Row: TypeAlias = tuple[object, ...]
_NOTHING = "No run has been committed yet."
_STATES = ("process", "incomplete", "ignore", "stop")


def whole(name: str) -> Callable[[Callable[[Results], str]], Callable[[Results], str]]:
    """Register a function that renders the table `name` from all result files."""

    def register(render: Callable[[Results], str]) -> Callable[[Results], str]:
        TABLES[name] = render
        return render

    return register


def by_result(name: str, *header: str, of: str | None = None) -> Callable[[Callable[[Result], Iterator[Row]]], None]:
    """Register a function that yields the rows of one result; the table `name` holds those of all results `of` a
    benchmark, by default the one that is named like the table.
    """

    def register(rows_of: Callable[[Result], Iterator[Row]]) -> None:
        def render(results: Results) -> str:
            rows = [row for _, result in results.of(of or name) for row in rows_of(result)]
            return table(header, rows) if rows else _NOTHING

        TABLES[name] = render

    return register


# ------------------------------------------------------------------------------------------------- names and figures


def _kind(result: Result) -> str:
    """Of the adapter."""
    adapter = result["model"]["adapter"]
    return str(adapter["kind"] if isinstance(adapter, dict) else adapter).partition(" ")[0]


def _engine(result: Result) -> str:
    """Engine and weights."""
    model = result["model"]
    return f"{'llama.cpp' if model['backend'] == 'llamacpp' else model['backend']} {model['weights']}"


def _name(result: Result) -> str:
    """Engine, weights and adapter."""
    is_one_pass = result["model"]["name"].endswith("one-pass")
    return f"{_engine(result)}, {_kind(result)}{', one-pass file' if is_one_pass else ''}"


def _pair(row: dict[str, float] | None, digits: int = 1) -> str:
    """Median and 95th percentile."""
    return MISSING if row is None else f"{row['p50']:.{digits}f} / {row['p95']:.{digits}f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _link(name: str) -> str:
    """From a document in `docs`."""
    return f"[{name}](../benchmarks/results/{name})"


# --------------------------------------------------------------------------------------------------------- the README


@whole("readme")
def readme(results: Results) -> str:
    """One row per claim and run, each with the file it comes from."""
    rows: list[tuple[str, str, str, str]] = []
    for name, result in results.of("exactness"):
        what = f"{result['tokens_identical']:,} tokens of {result['conversations']} disturbed conversations identical"
        odd = f"{result['exceptions']} rounding ties" if result["exceptions"] else "no rounding ties"
        failures = f"**{result['failures']} failures**" if result["failures"] else "no failure"
        rows.append(("disturbances leave no trace", _name(result), f"{what}, {odd}, {failures}", name))
    for name, result in results.of("latency"):
        live, direct = (result["decision_ms"][f"speaking, {how}"] for how in ("live", "direct"))
        what = f"p50 {live['p50']:.0f} ms, p95 {live['p95']:.0f} ms (between two passes: p95 {direct['p95']:.0f} ms)"
        rows.append(("words to decision while speaking", _name(result) + busy_mark(result), what, name))
        added, most = result["passes_added_while_answering"], result["passes_per_decision_in_silence"]
        what = f"{added} in {direct['n']} decisions (in silence: {most} per decision)"
        rows.append(("passes added by listening", _name(result), what, name))
    for name, result in results.of("import_time"):
        case = result["cases"]["import duologue"]
        heavy = ", ".join(case["heavy_libraries"]) or "no heavy library loaded"
        rows.append(("`import duologue`", MISSING, f"{case['adds_s']:.2f} s, {heavy}{busy_mark(result)}", name))
    linked = [(*row[:3], f"[{row[3].removesuffix('.json')}](benchmarks/results/{row[3]})") for row in rows]
    header = ("claim", "engine, adapter", "measured", "file")
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * 4, *linked))


# ------------------------------------------------------------------------------------------------ the method's claims


@by_result(
    "exactness",
    *("backend, weights", "conversations", "tokens identical", "exceptions", "failures", "passes added", "noise"),
)
def exactness(result: Result) -> Iterator[Row]:
    """Disturbed conversations beside undisturbed ones."""
    against = "" if result["against"] == result["model"]["backend"] else f", against {result['against']}"
    yield (
        _engine(result) + against,
        result["conversations"],
        f"{result['tokens_identical']:,}",
        result["exceptions"],
        result["failures"],
        result["passes_added_by_listening"],
        f"{result['noise']['max']:.2g}",
    )


@by_result(
    "vllm",
    "",
    *("answer tokens with equal log-probabilities", "decisions", "largest difference, f32", "bf16"),
    *("other decisions, f32", "bf16", "tokens recomputed a decision (mean / largest)"),
    of="vllm_exactness",
)
def vllm(result: Result) -> Iterator[Row]:
    """An exported model in vLLM beside the torch backend and the stock model."""
    exact, rounded, recomputed = result["f32"], result["bf16"], result["recomputed_tokens"]
    yield (
        result["model"]["name"],
        f"{result['tokens_with_equal_log_p']} of {result['tokens']}",
        result["decisions"],
        f"{exact['largest_difference']:.2g}",
        f"{rounded['largest_difference']:.2g}",
        exact["other_states"],
        rounded["other_states"],
        f"{recomputed['mean']:.1f} / {recomputed['max']}",
    )


@by_result(
    "latency",
    *("ms (p50 / p95)", "decision, live", "decision, direct", "decision in silence", "speech alone", "× listening"),
)
def latency(result: Result) -> Iterator[Row]:
    """From words to a decision."""
    decisions = (result["decision_ms"][name] for name in ("speaking, live", "speaking, direct", "silent, direct"))
    alone = _pair(result["pass_ms"]["speech alone"])
    yield (_name(result) + busy_mark(result), *map(_pair, decisions), alone, f"{result['ratio']:.2f}")


@by_result("import", "", "adds (s)", "heavy libraries loaded", of="import_time")
def import_time(result: Result) -> Iterator[Row]:
    """The cost of starting."""
    for name, case in result["cases"].items():
        heavy = ", ".join(case["heavy_libraries"]) or "none"
        yield f"`{name}`{busy_mark(result)}", f"{case['adds_s']:.3f}", heavy


@by_result(
    "unchanged",
    *("adapter, engine", "prompts", "tokens", "decisions on the way", "answers that differ", "margins that differ"),
)
def unchanged(result: Result) -> Iterator[Row]:
    """The base model with an adapter and without."""
    yield (
        f"{_kind(result)}, {_engine(result)}",
        result["prompts"],
        f"{result['tokens']:,}",
        f"{result['decisions']:,}",
        result["answers_that_differ"],
        result["margins_that_differ"],
    )


# --------------------------------------------------------------------------------------------------------------- cost


@whole("cost")
def cost(results: Results) -> str:
    """The kinds of sessions side by side, for every run."""
    parts = []
    for name, result in results.of("cost"):
        parts.append(f"{_name(result)}, {result['model']['name']}{busy_mark(result)} ({_link(name)}):")
        parts.append(cost_report.summary(result["sessions"]))
    return "\n\n".join(parts) or _NOTHING


@whole("cost-growth")
def cost_growth(results: Results) -> str:
    """Growth with the conversation, of the first run; it does not depend on the backend."""
    return next((cost_report.growth(result["sessions"]) for _, result in results.of("cost")), _NOTHING)


@whole("cost-short")
def cost_short(results: Results) -> str:
    """The figures that matter, of the first run."""
    for _, result in results.of("cost"):
        return f"{_name(result)}{busy_mark(result)}:\n\n{cost_report.short(result['sessions'])}"
    return _NOTHING


@by_result(
    "scale",
    *("engine, adapter", "history", "sessions", "decision (ms, p50 / p95)", "tokens/s each, least", "missed"),
    *("KV (MiB)", "in real time"),
)
def scale(result: Result) -> Iterator[Row]:
    """Live sessions at the same time."""
    for one in result["outcomes"]:
        yield (
            _name(result) + busy_mark(result),
            f"{one['context_tokens']:,}",
            one["sessions"],
            _pair(one["decision_ms"], 0),
            f"{one['tokens_per_second']['min']:.2f}",
            one["missed_deadlines"],
            f"{one['kv_bytes'] / 2**20:,.0f}",
            _yes(one["realtime"]),
        )


@whole("scale-largest")
def scale_largest(results: Results) -> str:
    """The most live sessions in real time."""
    contexts = sorted({int(context) for _, result in results.of("scale") for context in result["largest"]})
    header = ("most sessions in real time", *(f"{context:,} tokens of history" for context in contexts), "file")
    rows = [
        (
            _name(result) + busy_mark(result),
            *(result["largest"].get(str(context), MISSING) for context in contexts),
            _link(name),
        )
        for name, result in results.of("scale")
    ]
    return table(header, rows)


@by_result(
    "capacity",
    *("engine, adapter", "sessions", "words → decision, live (ms, p50 / p95)", "simulated", "difference"),
    *("in real time, live", "simulated"),
)
def capacity(result: Result) -> Iterator[Row]:
    """Live sessions beside simulated ones."""
    kinds = ("live", "simulated")
    for one in result.get("outcomes", ()):
        yield (
            _name(result) + busy_mark(result),
            one["sessions"],
            *(_pair(one[kind]["decision_ms"], 0) for kind in kinds),
            f"{one['difference']['p50']:+.0%} / {one['difference']['p95']:+.0%}",
            *(_yes(one[kind]["realtime"]) for kind in kinds),
        )
    found = result["largest"]
    if "live" in found:
        yield (
            *(_name(result) + busy_mark(result), "largest in real time", MISSING, MISSING),
            *(f"{found['difference']:+.0%}", found["live"], found["simulated"]),
        )


@by_result(
    "fleet",
    *("records", "what ended", "conversations", "completed", "lost their replica", "went on at another"),
    *("back after (s, median / most)", "lost connections", "found their replica again"),
)
def fleet(result: Result) -> Iterator[Row]:
    """Conversations on two replicas, of which one is killed, or all are replaced."""
    for part, what in (("killed", "one replica, by SIGKILL"), ("deployed_again", "all, one by one")):
        one = result[part]
        yield (
            *(result["store"] + busy_mark(result), what, one["conversations"], one["completed"]),
            *(one["lost_their_replica"], one["went_on_at_another"]),
            MISSING if one["back_s"] is None else f"{one['back_s']['median']:.1f} / {one['back_s']['max']:.1f}",
            *(one["connections_cut"], one["found_their_replica_again"]),
        )


@whole("capacity-fleet")
def capacity_fleet(results: Results) -> str:
    """Simulated fleets."""
    header = (
        *("costs", "largest of a replica", "sessions", "replicas", "on each", "in real time"),
        *("words → decision (ms, p50 / p95)", "memory of a simulated session (kB)", "file"),
    )
    rows = []
    for name, result in results.of("capacity"):
        fleet, each = result["fleet"], result["fleet"]["sessions_per_replica"]
        rows.append(
            (
                result["costs"]["source"],
                result["largest"]["simulated"],
                f"{fleet['sessions']:,}",
                f"{fleet['replicas']:,}",
                f"{each['min']}–{each['max']}",
                f"{percent(fleet['share_in_realtime'])} %",
                _pair(fleet["decision_ms"], 0),
                " / ".join(f"{kb:.0f} ({number} on one)" for number, kb in fleet["memory_kb"].items()),
                _link(name),
            )
        )
    return table(header, rows) if rows else _NOTHING


@whole("serve")
def serve(results: Results) -> str:
    """The load of many clients on a server."""
    header = (
        *("engine", "clients", "minutes", "decisions", "words → decision (ms, p50 / p95)"),
        *("longest wait for words (s)", "lost", "server (MB, first / last twentieth)", "in real time", "file"),
    )
    rows = []
    for name, result in results.of("serve"):
        model, memory = result["model"], result["memory_mb"]
        rows.append(
            (
                f"{model['backend']} {model['weights']}, {model['adapter']}{busy_mark(result)}",
                result["clients"],
                f"{result['seconds'] / 60:g}",
                f"{result['decisions']:,}",
                _pair(result["decision_ms"], 0),
                f"{result['longest_wait_s']:.2f}",
                result["lost"],
                f"{memory[0]:.0f} / {memory[-1]:.0f}" if memory else MISSING,
                _yes(result["realtime"]),
                _link(name),
            )
        )
    return table(header, rows) if rows else _NOTHING


@by_result(
    "speaker",
    *("listener", "first word, directly (ms, p50)", "added in a program (p50 / p95)", "added by a server"),
    *("decision → request closed (ms, p50 / p95)", "conversations", "words → decision (ms, p50 / p95)", "lost"),
)
def speaker(result: Result) -> Iterator[Row]:
    """What a remote speaker costs."""
    yield (
        _name(result) + busy_mark(result),
        f"{result['direct_first_word_ms']['p50']:.1f}",
        *(_pair(result["overhead_ms"][where]) for where in ("library", "server")),
        _pair(result["cut_to_closed_ms"]),
        f"{result['clients']}, {result['seconds'] / 60:g} min",
        _pair(result["decision_ms"], 0),
        result["lost"],
    )


@whole("attacks")
def attacks(results: Results) -> str:
    """What an attack did to another client, before the server was hardened and now."""
    found: dict[str, dict[str, dict[str, Any]]] = {"before": {}, "now": {}}
    for name, result in sorted(results.of("attacks"), key=lambda item: str(item[1]["date"])):  # the newest counts
        found["before" if "before" in name else "now"] |= {row["attack"]: row for row in result["attacks"]}
    found = {when: measured for when, measured in found.items() if measured}
    header = ["attack"]
    for when in found:
        header += [f"{when}: p95, calm → attacked (ms)", "ratio", "memory, at most / after (MB)"]
    rows: dict[str, list[str]] = {}
    for measured in found.values():
        for attack in measured:
            rows.setdefault(attack, [attack]).extend(_attack(measured[attack]))
    return table(header, rows.values()) if rows else _NOTHING


def _attack(row: dict[str, Any]) -> tuple[str, str, str]:
    """Cells of one attack."""
    shown = [MISSING if row[name] is None else f"{row[name]:.0f}" for name in ("calm_p95_ms", "p95_ms")]
    ratio = MISSING if row["ratio"] is None else f"{row['ratio']:.2f}"
    failures = f", {row['honest_failures']} failures" if row["honest_failures"] else ""
    memory = f"+{row['rss_growth_mb']:.0f} / {row['rss_after_mb'] - row['rss_before_mb']:+.0f}"
    return " → ".join(shown), ratio + failures, memory if row["survived"] else "the server died"


@by_result(
    "plain-loop",
    *("engine", "loop", "tokens/s (median)", "least … most", "Duologue / this loop"),
    of="plain_loop",
)
def plain_loop(result: Result) -> Iterator[Row]:
    """One session beside the loops of the same library."""
    for name, rate in result["tokens_per_second"].items():
        ratio = result["ratio"].get(name)
        yield (
            _engine(result) + busy_mark(result),
            "Duologue" if ratio is None else name,
            f"{rate['median']:.1f}",
            f"{rate['min']:.1f} … {rate['max']:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
        )


@by_result(
    "attention",
    *("engine", "processor", "history", "sessions"),
    *("speaking: flash (ms)", "stored", "with listening: flash", "stored"),
)
def attention(result: Result) -> Iterator[Row]:
    """llama.cpp's two ways to compute attention."""
    for row in result["passes"]:
        yield (
            _engine(result) + busy_mark(result),
            result["hardware"]["cpu"].replace("(R)", "").removesuffix(" Processor"),
            f"{row['context_tokens']:,}",
            row["sessions"],
            *(f"{row[what][how]:.1f}" for what in ("speaking_ms", "listening_ms") for how in ("flash", "stored")),
        )


@by_result(
    "caches",
    *("engine", "sessions", "history", "speaking: one cache (ms)", "contexts of four", "one each"),
    *("overlap: one cache (ms)", "contexts of four", "one each"),
)
def caches(result: Result) -> Iterator[Row]:
    """llama.cpp's cache, shared by all sessions or by a few."""
    for row in result["passes"]:
        yield (
            _engine(result) + busy_mark(result),
            row["sessions"],
            f"{row['context_tokens']:,}",
            *(
                f"{row[what][per]:.1f}" if per in row[what] else MISSING
                for what in ("speaking_ms", "overlap_ms")
                for per in (str(row["sessions"]), "4", "1")
            ),
        )


@by_result("lora-shapes", "engine", "LoRA", "decision (ms, p50 / p95)", "of rows", of="lora_shapes")
def lora_shapes(result: Result) -> Iterator[Row]:
    """The cost of a LoRA at the probe, by its shape."""
    for shape, row in result["decision_ms"].items():
        yield _engine(result) + busy_mark(result), shape, _pair(row), f"{row['ratio']:.2f}"


# ------------------------------------------------------------------------------------------------------------- states


@by_result(
    "states", "adapter, engine", "where", "n", *_STATES, "answer F1", "false answers", "false waits", "ECE", of="states"
)
def states(result: Result) -> Iterator[Row]:
    """The shipped adapters on sources that they were not trained on."""
    is_elsewhere = "baselines" in result or "compare" in result or _rows_of(result)  # these have tables of their own
    for where, *figures in () if is_elsewhere else _places(result):
        yield (f"{_kind(result)}, {_engine(result)}", where, *figures)


def _rows_of(result: Result) -> str | None:
    """The rows of a result that belongs to another table than the default adapter."""
    if "starter" in str(result["model"]["adapter"]):
        return "starter corpus, its own adapter"
    others = {"test-third.jsonl": "English, every third row", "test-zh-half.jsonl": "Mandarin, every second row"}
    return others.get(result["file"])


@by_result(
    "state-models",
    "model",
    "rows",
    "where",
    "n",
    *_STATES,
    "answer F1",
    "false answers",
    "false waits",
    "ECE",
    of="states",
)
def state_models(result: Result) -> Iterator[Row]:
    """The shipped adapters of several models on the same rows."""
    rows = _rows_of(result)
    for figures in _places(result) if rows else ():
        yield (result["model"]["name"], rows, *figures)


def _places(result: Result) -> Iterator[Row]:
    """Where, n, and the figures in percent."""
    for place, where in (("idle", "assistant silent"), ("speaking", "over an answer")):
        found = result[place]
        shares = [found["recall"][state] for state in _STATES]
        shares += [found["answer"]["f1"], found["false_answer_rate"], found["false_wait_rate"], found["ece"]]
        yield (where, found["n"], *map(percent, shares))


@whole("state-kinds")
def state_kinds(results: Results) -> str:
    """By kind of row, over an answer and outside of one."""
    chosen = _on_torch(results)
    rows = []
    for place, where in (("idle", "silent"), ("speaking", "over an answer")):
        for kind, group in chosen[0][place]["per_kind"].items() if chosen else ():
            right = [percent(result[place]["per_kind"][kind]["accuracy"]) for result in chosen]
            rows.append((kind, where, group["n"], *right))
    return table(("kind of row", "where", "n", *(f"{_kind(result)}: right" for result in chosen)), rows)


@whole("state-sources")
def state_sources(results: Results) -> str:
    """By source."""
    chosen = _on_torch(results)
    rows = [
        (source, group["n"], *(percent(result["per_source"][source]["accuracy"]) for result in chosen))
        for source, group in (chosen[0]["per_source"].items() if chosen else ())
    ]
    return table(("source", "n", *(f"{_kind(result)}: right" for result in chosen)), rows)


def _on_torch(results: Results) -> list[Result]:
    """Those on PyTorch that have all rows of the test."""
    found = [result for _, result in results.of("states") if result["model"]["backend"] == "torch"]
    return [result for result in found if result["n"] == max(other["n"] for other in found)]


@whole("state-baselines")
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


def _decided(found: Result) -> tuple[str, ...]:
    if "unavailable" in found:
        return ("not available", *[""] * (2 + len(_STATES)))
    shares = [found["answer"]["f1"], found["false_answer_rate"], found["respond"]["f1"]]
    return tuple(map(percent, shares + [found["recall"][state] for state in _STATES]))


@by_result(
    "timing",
    "adapter, engine",
    "words that end with",
    "n",
    "AUC",
    "early at 0.6 s",
    "at 1.2 s",
    "at 2.0 s",
    "wait, p50",
    "p95",
)
def timing(result: Result) -> Iterator[Row]:
    """Waits at the policy's own eagerness."""
    parts = (("anything", result), ("a question", result["questions"]), ("a statement", result["statements"]))
    for name, part in parts:
        waits = [f"{part['delay_ms'][key] / 1000:.2f} s" for key in ("p50", "p95")]
        early = [percent(part["early"][pause]) for pause in ("0.6", "1.2", "2.0")]
        yield f"{_kind(result)}, {_engine(result)}", name, part["n"], percent(part["auc"]), *early, *waits


@by_result(
    "timing-points", "adapter, engine", "early, at most", "by the words", "the same wait everywhere", of="timing"
)
def timing_points(result: Result) -> Iterator[Row]:
    """The least mean delay on the dial, and that of a constant wait."""
    for share, constant in result["constant"].items():
        point = result["points"][share]
        reached = "not reached" if point is None else f"{point / 1000:.2f} s"
        yield f"{_kind(result)}, {_engine(result)}", f"{float(share):.0%}", reached, f"{constant / 1000:.2f} s"


@by_result("timing-curve", "eagerness", "early", "mean delay", of="timing")
def timing_curve(result: Result) -> Iterator[Row]:
    """The dial in steps of a quarter."""
    for point in result["curve"]:
        if point["eagerness"] % 0.25 == 0:
            yield f"{point['eagerness']:+.2f}", percent(point["early"]), f"{point['delay_ms'] / 1000:.2f} s"


@by_result("acoustic", "told by", "AUC", "cut in a pause", "between words", "within a word", "cut-offs at 90 %")
def acoustic(result: Result) -> Iterator[Row]:
    """Complete and cut clips, told apart by words and by sound."""
    for name in ("words", "words and sound", "words + head", "sound alone", "Smart Turn 3.2"):
        if name in result:
            found = result[name]
            by_kind = (f"{found['by_kind'].get(kind, 0):.3f}" for kind in ("pause", "word end", "in a word"))
            yield name, f"{found['auc']:.3f}", *by_kind, percent(found["cut_offs"])


@by_result("smart-turn", "decided by", "n", "whole orders: right", "cut orders: right", of="smart_turn")
def smart_turn(result: Result) -> Iterator[Row]:
    """Recorded orders, whole and cut."""
    names = {"Smart Turn 3.2, by sound": "smart turn", f"{_kind(result)}, by words": "adapter"}
    for name, who in names.items():
        found = result["orders"][who]
        yield (name, found["n"], *(percent(found["recall"][state]) for state in ("process", "incomplete")))


@whole("paper")
def paper(results: Results) -> str:
    """Answer or ignore, beside the published figures (DUO, table 3; false answers follow from its counts)."""
    header = ("answer or ignore", "precision", "recall", "F1", "ignored rows answered or waited for", "trained", "rows")
    mix = f"{published.ASKED:,} answer, {published.IGNORED} ignore"
    always = Detection.of(hits=published.ASKED, false=published.IGNORED, missed=0)
    rows: list[Row] = [("always answering, on the paper's mix", *_detected(always, 1.0), "nothing", mix)]
    for one in published.TABLE_3:
        shares = (f"{share:.2f}" for share in (one.precision, one.recall, one.f1))
        rows.append((f"{one.model} (DUO, not run here)", *shares, f"{one.ignored_kept:.1f}", one.trained, mix))
    for _, result in results.of("states"):
        for name, what in (("prompted", ""), ("prompted-5", ", 5 examples")):
            if found := result.get("baselines", {}).get(name):
                figures = _responded([found["confusion"]])
                model, n = f"{_short(result)}, prompted{what}", f"{figures[-1]}, an earlier test"
                rows.append((model, *figures[:-1], "nothing", n))
    unseen = {source for _, build in results.of("build") for source in build["recipe"]["unseen"]}
    others = [result for _, result in results.of("states") if _rows_of(result) == "English, every third row"]
    for result in [*_on_torch(results), *(other for other in others if "Qwen" in other["model"]["name"])]:
        confusions = [each["confusion"] for name, each in result["idle"]["per_source"].items() if name in unseen]
        trained = "rows and a LoRA at one position" if _kind(result) == "alora" else "rows"
        figures = _responded(confusions)
        rows.append((f"{_kind(result)}, {_short(result)}", *figures[:-1], trained, f"{figures[-1]}, unseen sources"))
    return table(header, rows)


def _short(result: Result) -> str:
    """The model's name as people write it."""
    name = str(result["model"]["name"]).removesuffix("-Instruct")
    return name.replace("-135M", " 135 M").replace("-0.5B", " 0.5 B")


def _responded(confusions: Iterable[dict[str, dict[str, int]]]) -> tuple[str, ...]:
    """Of decisions on rows to process or ignore: precision, recall, F1, the share of ignored rows, and the counts."""
    asked, ignored = Counter[str](), Counter[str]()
    for each in confusions:
        asked.update(each.get("process", {}))
        ignored.update(each.get("ignore", {}))
    kept, dropped = ignored.total() - ignored["ignore"], asked["ignore"]
    respond = Detection.of(hits=asked.total() - dropped, false=kept, missed=dropped)
    return (*_detected(respond, kept / ignored.total()), f"{asked.total():,} answer, {ignored.total()} ignore")


def _detected(found: Detection, kept: float) -> tuple[str, ...]:
    return tuple(map(percent, (found.precision, found.recall, found.f1, kept)))


# -------------------------------------------------------------------------------------------------- standard benchmarks


@whole("standard")
def standard(results: Results) -> str:
    """Standard benchmarks with the adapter and without, beside the published figures (DUO, table 1)."""
    header = ("benchmark", "n", "base", "with the adapter", "difference", *published.TABLE_1_MODELS)
    runs: dict[str, list[Result]] = {}
    for _, result in results.of("standard"):
        for name in result["tasks"]:
            runs.setdefault(name, []).append(result)
    rows: list[Row] = []
    for name in (*published.TABLE_1, *(name for name in runs if name not in published.TABLE_1)):
        quoted = [f"{share:.2f}" for share in published.TABLE_1.get(name, ())] or [MISSING] * 4
        for result in runs.get(name, [None]):
            figures = (name, *[MISSING] * 4) if result is None else _scored(name, result)
            rows.append((*figures, *quoted))
    return table(header, rows)


def _scored(name: str, result: Result) -> tuple[str, ...]:
    """The benchmark, n, both scores in percent with the standard error, and what the adapter changed."""
    ours, base, change = result["tasks"][name], result["base"][name], result["differences"][name]
    metric = next(iter(ours))
    scores = (f"{percent(each[metric])} ± {percent(each['stderr'])}" for each in (base, ours))
    changed = f"{100 * change['mean']:+.2f}, {change['gained'] + change['lost']} rows"
    return (f"{name}, `{metric}`{busy_mark(result)}", f"{ours['n']} of {ours['of']:,}", *scores, changed)


@by_result(
    "standard-tokens",
    *("adapter, engine", "benchmarks", "tokens", "tokens that differ", "log-probabilities or margins that differ"),
    *("ties", "decisions on the way"),
    of="standard",
)
def standard_tokens(result: Result) -> Iterator[Row]:
    """Token by token: the model with the adapter beside its base."""
    same = result["identical_tokens"]
    counts = (f"{same[name]:,}" for name in ("tokens", "different", "inexact", "ties", "decisions"))
    yield (_name(result) + busy_mark(result), ", ".join(result["tasks"]), *counts)


@whole("voicebench")
def voicebench(results: Results) -> str:
    """Instructions followed, beside the published figures by speech (DUO, table 2)."""
    rows: list[Row] = [
        (f"{model} (DUO, not run here)", "by speech", *(f"{figure:.2f}" for figure in figures))
        for model, figures in published.TABLE_2.items()
    ]
    ifeval = published.TABLE_2_COLUMNS.index("IFEval, prompts")
    for _, result in results.of("standard"):
        for which, name in (("base", _short(result)), ("tasks", f"{_short(result)}, {_kind(result)}")):
            if found := result.get(which, {}).get("ifeval"):
                figures = [MISSING] * len(published.TABLE_2_COLUMNS)
                figures[ifeval] = f"{percent(found['prompt_level_strict_acc'])} ± {percent(found['stderr'])}"
                figures[ifeval + 1] = percent(found["inst_level_strict_acc"])
                rows.append((name + busy_mark(result), f"by text, {found['n']} prompts", *figures))
    return table(("model", "asked", *published.TABLE_2_COLUMNS), rows)


@by_result("agreement", "adapter, engines", "rows", "equal decisions, %", of="states")
def agreement(result: Result) -> Iterator[Row]:
    """Whether backends decide alike."""
    if "compare" in result:
        other = result["compare"]
        engines = f"{_engine(result)} and {other['backend']} {other['weights']}"
        yield f"{_kind(result)}, {engines}", result["n"], percent(other["equal_decisions"], digits=2)


QUESTIONS = {
    "probe_tokens": (
        "Do more prediction tokens help? One token initialised from words; several, initialised from one word "
        "each; several, initialised from an instruction."
    ),
    "kinds": "What does a LoRA at the prediction token add to rows alone, and which layers and rank does it need?",
    "positions": "With several prediction tokens, does it help to read the states at each of them?",
    "state_rows": "Does a state gain from more than one output row? Its probability is the sum over its rows.",
    "samples": "How many samples are enough?",
    "context": "Do samples within a dialogue and over a running answer matter?",
    "hard_negatives": "Do asides matter, that is, lines that sound like requests but address somebody else?",
    "unseen_sources": (
        "What narrows the gap to sources that no sample comes from? The same number of samples from more sources, one "
        "form of writing instead of two, a larger rank, more dropout. Our own lines are used for stop commands only."
    ),
    "learning_rates": "How sensitive is training to the learning rates?",
    "lora_rates": "Does the best learning rate of the LoRA change with more samples?",
    "rows_to_alora": "How close do rows come to a LoRA with longer training, or trained on the LoRA's probabilities?",
    "tuned": (
        "A frozen base beside recipes that train it: a LoRA on every position, and all weights (the paper's "
        "recipes for the states alone, one epoch, with a separate learning rate for the rows)."
    ),
    "another_model": "Do the same recipes work on a base with another architecture and tokenizer (--model)?",
    "no_probe": (
        "Does the state need a prediction token? A linear layer on the hidden state of the last word (the "
        "paper's audio variant, on a frozen base) beside one prediction row."
    ),
}
"""What each experiment asks."""


@by_result(
    "convergence",
    "model",
    "rates",
    "runs without success",
    "held-out loss",
    "by chance",
    "ECE, %",
    "answer F1",
    "false answers, %",
    "mean recall",
    "prompted",
)
def convergence(result: Result) -> Iterator[Row]:
    """One row per model; without figures where every run diverged."""
    for row in result["results"]:
        kind = "of the default model" if result["unscaled"] else "scaled"
        failed = sum("did not converge" in line for line in row["said"])
        if not row["dev"]:
            yield row["model"], kind, failed, *[MISSING] * 7
            continue
        every, compared = row["dev"]["all"], row["compared"]
        recalls = [percent(compared[of]["mean_recall"]) if compared else MISSING for of in ("adapter", "prompted")]
        losses = f"{every['loss']:.2f}", f"{every['chance']:.2f}"
        shares = [percent(every[name]) for name in ("ece", "answer_f1", "false_answer_rate")]
        yield row["model"], kind, failed, *losses, *shares, *recalls


@whole("experiments")
def experiments(_: Results) -> str:
    """All experiments, one table each."""
    parts = []
    for path in sorted(EXPERIMENTS.glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        name = path.parent.name
        about = f"**{name}** – {QUESTIONS[name]} ([result](../experiments/{name}/result.json))"
        parts.append(f"{about}\n\n{experiment_table(result)}")
    return "\n\n".join(parts) or _NOTHING


def experiment_table(result: Result) -> str:
    """The variants of one experiment."""
    rows: list[Row] = []
    for row in result["results"]:
        idle, over = row["idle"], row["over_an_answer"]
        shares = [*(idle["recall"][state] for state in _STATES), idle["answer_f1"], idle["false_answers"]]
        shares += [over["answer_f1"], over["false_answers"]]
        trained = f"{row['trained_numbers']:,}"
        rows.append((row["variant"], row["samples"], trained, row["training_s"], *map(percent, shares)))
    header = (
        "variant",
        "samples",
        "numbers trained",
        f"s{busy_mark(result)}",
        *_STATES,
        "F1",
        "false",
        "F1 over",
        "false over",
    )
    return table(header, rows)


# -------------------------------------------------------------------------------------------------------------- voice

_SOUNDS = {
    "questions": "synthetic questions, in silence",
    "commands": "recorded orders of coffee, in silence",
    "interruptions": "synthetic interruptions",
    "command_interruptions": "recorded orders over an answer about coffee",
    "command_interruptions_of_stories": "recorded orders over a story",
    "backchannels": "backchannels",
    "asides": "words to somebody else",
    "coughs": "coughs",
    "noise": "noises",
    "background": "background talk",
}


VOICE_HEADER = (
    *("seconds, p50 / p95", "n", "outcome", "yielded"),
    *("onset → ducked", "onset → silence", "end of speech → first sound"),
)


@whole("voice")
def voice(results: Results) -> str:
    """Delays of a conversation by voice, and what interrupts it."""
    parts = []
    for name, result in results.of("voice"):
        how = "an oracle recogniser" if result["oracle"] else "Whisper base"
        loads, cores = result["load_averages"], result["hardware"]["cores"]
        parts.append(f"With {how}, load average {min(loads)} to {max(loads)} on {cores} cores ({_link(name)}):")
        parts.append(table(VOICE_HEADER, voice_rows(result)))
    return "\n\n".join(parts) or _NOTHING


def voice_rows(result: Result) -> Iterator[Row]:
    """One row per kind of sound."""
    for key, found in result.items():
        if isinstance(found, dict) and "trials" in found:
            kind, _, level = key.partition("_") if key.startswith(("noise", "background")) else (key, "", "")
            what = _SOUNDS[kind] + (f", {level.replace('dB', ' dB')}" if level else "")
            yield (what, found["trials"], *_voice_row(found))


def _voice_row(found: Result) -> tuple[str, ...]:
    yielded = str(found.get("yielded", ""))
    if "got_through" in found:
        outcome = f"{found['got_through']} got through"
        return outcome, yielded, _pair(found["onset_to_duck_s"], 2), _pair(found["onset_to_silence_s"], 2), ""
    if "survived" in found:
        return f"{found['survived']} survived, {found['untouched']} untouched", yielded, "", "", ""
    return f"{found['answered']} answered", "", "", "", _pair(found["end_of_speech_to_first_sound_s"], 2)


@whole("voice-stages")
def voice_stages(results: Results) -> str:
    """Seconds of work of each stage per second of sound."""
    header = ("stage", "real-time factor", "one piece takes (s, p50 / p95)")
    for _, result in results.of("voice"):
        if result["oracle"] or "interruptions" not in result:
            continue
        found = result["stages"]
        frame = f"{found['detector']['frame_ms'] / 1000:.4f} (a frame)"
        rows = [
            ("detector", found["detector"]["real_time_factor"], frame),
            ("recogniser", found["recogniser"]["real_time_factor"], _pair(found["recogniser"]["one_decoding_s"], 2)),
            ("words → decision", "", _pair(result["words_to_decision_s"], 2)),
            ("model, while it speaks", found["model"]["seconds_of_passes_per_second_spoken"], ""),
            ("synthesiser", found["synthesiser"]["real_time_factor"], _pair(found["synthesiser"]["one_clause_s"], 2)),
        ]
        return table(header, rows)
    return _NOTHING


# ---------------------------------------------------------------------------------------------------------- behaviour


def behaviour_runs(results: Results) -> dict[str, Result]:
    """Runs of the behaviour benchmark by name: sessions that decide by an adapter are named by it."""
    found = {_kind(r) if r["session"] == "duplex" else str(r["session"]): r for _, r in results.of("behaviour")}
    return {name: found[name] for name in _BEHAVIOUR if name in found}


_BEHAVIOUR = ("alora", "rows", "prompted", "slices", "turns", "vad", "tdm", "tdm_trained")


@whole("behaviour")
def behaviour(results: Results) -> str:
    """Every kind of session."""
    return behaviour_report.overview(behaviour_runs(results))


@whole("behaviour-kinds")
def behaviour_kinds(results: Results) -> str:
    """By kind of conversation."""
    return behaviour_report.kinds(behaviour_runs(results))


@whole("behaviour-field")
def behaviour_field(results: Results) -> str:
    """By the definitions of other benchmarks."""
    return behaviour_report.field(behaviour_runs(results))


COMPARED = (  # name, what decides, run of the behaviour benchmark, sessions of the cost benchmark
    ("turns", "end of the utterance", "turns", "turns"),
    ("voice activity", "sound and silence", "vad", "vad"),
    ("slices, untrained", "every slice is a turn", "slices", None),
    ("time division", "prompted", "tdm", "tdm"),
    ("time division", "trained", "tdm_trained", "tdm"),
    ("time division, idles skipped", "prompted", None, "tdm_skip_idle"),
    ("channel division", "prompted", "prompted", "cdm"),
    ("channel division", "`rows`", "rows", "cdm"),
    ("channel division", "`alora`", "alora", "cdm"),
)


@whole("comparison")
def comparison(results: Results) -> str:
    """The papers' systems on the same weights: what they do, and what it costs."""
    header = (
        *("system", "decided by", "actions, mean", "cases right", "early in a pause of 1.2 s"),
        *("yields to an interruption", "goes on after talk to others", "wasted"),
        *("tokens fed", "KV peak", "KV per slice heard", "KV per hour of silence"),
    )
    runs = behaviour_runs(results)
    costs = next((result["sessions"] for _, result in results.of("cost")), {})
    rows = []
    for name, decided_by, run, session in COMPARED:
        if run is None or run in runs:
            did = _behaved(runs.get(run or ""))
            rows.append((name, decided_by, *did, *_fed(costs.get(session))))
    return table(header, rows)


def _behaved(run: Result | None) -> tuple[str, ...]:
    """Cells of a run of the behaviour benchmark."""
    if run is None:
        return (MISSING,) * 6
    bench, tokens = run["full_duplex_bench"], run.get("tokens") or {}
    found = (
        run["accuracy"],
        run["cases_right"],
        run["takeover"]["pause_1.2"],
        bench["respond_to_interruption"],
        bench["resume_after_talk_to_others"],
        tokens.get("wasted_share"),
    )
    return tuple(MISSING if value is None else percent(value) for value in found)


def _fed(session: dict[str, Any] | None) -> tuple[str, ...]:
    """Cells of a kind of session in the cost benchmark."""
    if session is None:
        return (MISSING,) * 4
    first, last = session["by_slices"][0], session["by_slices"][-1]
    per_slice = (last["kv_entries_peak"] - first["kv_entries_peak"]) / last["slices"]
    is_heard = last["tokens_fed"] > first["tokens_fed"]
    kept = f"{per_slice:.0f}" if is_heard else MISSING
    return f"{session['tokens_fed']:,}", f"{session['kv_entries_peak']:,}", kept, f"{session['kv_entries_of_hour']:,}"
