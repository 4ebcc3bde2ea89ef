"""A run for people: tables, a picture, and a page with the timeline of every conversation."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from duologue.core import events as e
from duologue.evaluation import html
from duologue.evaluation.behaviour.measures import ACTIONS, CaseResult
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.pictures import new_figure

Runs = Mapping[str, Mapping[str, Any]]
"""By kind of session: what `measures.line` and `measures.details` made of it, together."""


def tables(runs: Runs) -> str:
    """All tables in Markdown."""
    parts = [overview(runs), kinds(runs), *(_intents(name, run) for name, run in runs.items()), field(runs)]
    return "\n\n".join(parts)


def overview(runs: Runs) -> str:
    """Accuracy of the actions, and of whole cases."""
    header = ("session", "n", "actions, mean", *ACTIONS, "cases right", "pairs", "context right")
    rows = [
        (
            name,
            run["n"],
            percent(run["accuracy"]),
            *(percent(run["actions"][action]) for action in ACTIONS),
            percent(run["cases_right"]),
            percent(run["pairs"]),
            percent(run["context_correct"]),
        )
        for name, run in runs.items()
    ]
    return table(header, rows)


def kinds(runs: Runs) -> str:
    """Cases right by kind, with 95 % intervals."""
    names = dict.fromkeys(kind for run in runs.values() for kind in run["kinds"])
    rows = [
        (
            kind,
            next(run["kinds"][kind]["n"] for run in runs.values()),
            *(_with_interval(run, kind) for run in runs.values()),
        )
        for kind in names
    ]
    return table(("kind: cases right, % (95 %)", "n", *runs), rows)


def _with_interval(run: Mapping[str, Any], kind: str) -> str:
    low, high = run["intervals"][kind]
    return f"{percent(run['kinds'][kind]['accuracy'], 0)} ({percent(low, 0)}–{percent(high, 0)})"


def _intents(name: str, run: Mapping[str, Any]) -> str:
    rows = [
        (f"{action}: {intent}", found["n"], percent(found["accuracy"]))
        for action, intents in run["intents"].items()
        for intent, found in intents.items()
    ]
    return table((f"{name}: action and intent", "n", "right"), rows)


def field(runs: Runs) -> str:
    """The figures of other benchmarks, by session."""

    def cell(value: float | None, unit: str = "") -> str:
        return MISSING if value is None else f"{value:.2f}{unit}" if unit else percent(value)

    def row(label: str, *path: str, unit: str = "") -> tuple[str, ...]:
        cells = []
        for run in runs.values():
            value: Any = run
            for key in path:
                value = value.get(key) if value is not None else None
            cells.append(cell(value, unit))
        return (label, *cells)

    rows = [
        row("takeover before the end, pause of 0.6 s", "takeover", "pause_0.6"),
        row("takeover before the end, pause of 1.2 s", "takeover", "pause_1.2"),
        row("takeover before the end, pause of 2.0 s", "takeover", "pause_2.0"),
        row("takeover in plain turns", "takeover", "turn"),
        row("respond latency, median", "full_duplex_bench", "respond_latency_s", "median", unit=" s"),
        row("stop latency, mean", "stop_latency_s", unit=" s"),
        row("respond to an interruption", "full_duplex_bench", "respond_to_interruption"),
        row("resume after a backchannel", "full_duplex_bench", "resume_after_backchannel"),
        row("resume after talk to others", "full_duplex_bench", "resume_after_talk_to_others"),
        row("resume after background", "full_duplex_bench", "resume_after_background"),
        row("end of turn, recall in (0, 2 s]", "turnbench", "end_of_turn", "recall"),
        row("… premature", "turnbench", "end_of_turn", "premature"),
        row("interruption, recall", "turnbench", "interruption", "recall"),
        row("false cut-offs at 300 ms", "eot_bench", "false_cutoffs_at", "300_ms"),
        row("false cut-offs at 600 ms", "eot_bench", "false_cutoffs_at", "600_ms"),
        row("latency at 5 % false cut-offs", "eot_bench", "latency_s_at", "5_%", unit=" s"),
        row("latency at 10 % false cut-offs", "eot_bench", "latency_s_at", "10_%", unit=" s"),
        row("average penalty time", "penalty_s", unit=" s"),
        row("inertia", "echochain", "inertia"),
        row("amnesia", "echochain", "amnesia"),
        row("displacement", "echochain", "displacement"),
        row("both halves of a pair right", "pairs_both_right"),
        row("tokens wasted", "tokens", "wasted_share"),
    ]
    return table(("", *runs), rows)


def draw(runs: Runs, path: Path) -> None:
    """A picture: cases right by kind, with intervals.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    kinds = list(dict.fromkeys(kind for run in runs.values() for kind in run["kinds"]))
    figure = new_figure(9, 1.5 + len(kinds) * max(0.24, 0.09 * len(runs)))
    axes = figure.add_subplot()
    height = 0.8 / len(runs)
    for number, (name, run) in enumerate(runs.items()):
        places = [i - 0.4 + height * (number + 0.5) for i in range(len(kinds))]
        shares = [100 * run["kinds"][kind]["accuracy"] for kind in kinds]
        bounds = [[100 * x for x in run["intervals"][kind]] for kind in kinds]
        errors = [[max(0.0, s - b[0]) for s, b in zip(shares, bounds, strict=True)]]
        errors.append([max(0.0, b[1] - s) for s, b in zip(shares, bounds, strict=True)])
        axes.barh(places, shares, height, xerr=errors, label=name, error_kw={"linewidth": 0.6})
    axes.set(yticks=range(len(kinds)), yticklabels=kinds, xlim=(0, 100), xlabel="cases right, % (95 % interval)")
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    figure.legend(loc="outside upper center", ncols=len(runs), frameon=False)
    figure.savefig(path, dpi=130)


def page(title: str, runs: Runs, judged: Mapping[str, Sequence[CaseResult]]) -> str:
    """One self-contained HTML page: the tables, and every conversation to click through."""
    rows = [
        (name, percent(run["cases_right"]), percent(run["accuracy"]), percent(run["pairs"]))
        for name, run in runs.items()
    ]
    summary = html.table(("session", "cases right", "actions, mean", "pairs"), rows)
    style, script, body = (_part(name) for name in ("page.css", "page.js", "page.html"))
    data = {name: [_conversation(one) for one in found] for name, found in judged.items()}
    return html.page(title, f"<h1>{html.escape(title)}</h1>\n{summary}\n{body}", style=style, script=script, data=data)


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _conversation(one: CaseResult) -> dict[str, Any]:
    """The data of a case that the page draws."""
    case = one.played.case
    decided = [event for event in one.played.events if isinstance(event, e.Decided)]
    heard = [cue for cue in case.cues() if cue.text]
    return {
        "id": case.id,
        "kind": case.kind,
        "right": one.right,
        "end": round(case.end, 2),
        "history": [{"role": turn.role.value, "text": turn.text} for turn in case.history],
        "answer": case.answer,
        "words": [[cue.at, cue.utterance, cue.text, cue.final] for cue in heard],
        "decided": [[d.at, d.text, d.decision.state.value, round(d.decision.p, 3)] for d in decided],
        "spoken": [[s.answer, round(s.start, 2), round(s.end, 2), s.text.strip(), s.asked, s.cut] for s in one.spoken],
        "verdicts": [verdict.to_json() for verdict in one.verdicts],
        "context": one.played.context_right,
    }
