"""The report of a study: tables, and the papers' figures. What judges say has a part of its own, and never a share in
what people say."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from duologue import pictures
from duologue.errors import BadData
from duologue.evaluation.markdown import MISSING, percent, table
from duologue.evaluation.people import statistics
from duologue.evaluation.people.ballots import Ballot, Ballots
from duologue.evaluation.people.criteria import Criterion
from duologue.evaluation.people.study import Study

PEOPLE = "people"

Group: TypeAlias = Mapping[str, Any]
"""What one group of raters says; see `group`."""

_COLOURS = {"win": "#6c95ff", "tie": "#d0d4da", "loss": "#e08a2f"}  # can be told apart without red and green
_FORMATS = ("png", "svg")


def report(study: Study, *, seed: int = 0) -> dict[str, Any]:
    """The result of a study: its form, its systems, and the groups of raters: people, and each judge for itself.

    Raises:
        BadData: there are no ballots, or they are of other systems.
    """
    first, second = study.pair
    ballots = Ballots(study.ballots).all() if study.ballots.exists() else []
    if not ballots:
        raise BadData(f"nobody has voted in {study.folder}; `duologue eval people serve {study.folder}`")
    if {system for ballot in ballots for system in (ballot.a, ballot.b)} != {first, second}:
        raise BadData(f"the ballots in {study.ballots} are not about {first} and {second}")
    groups: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in ballots:
        groups[PEOPLE if ballot.judge is None else f"judge {ballot.judge}"].append(ballot)
    return {
        "form": study.form,
        "first": first,
        "second": second,
        "systems": study.systems,
        "seed": seed,
        "groups": {name: group(groups[name], first, seed=seed) for name in sorted(groups, key=lambda n: n != PEOPLE)},
    }


def group(ballots: Sequence[Ballot], first: str, *, seed: int) -> dict[str, Any]:
    """What one group of raters says, by criterion, from the side of the system `first`."""
    complete = Counter(ballot.is_complete for ballot in ballots)
    return {
        "raters": len({ballot.rater for ballot in ballots}),
        "examples": len({ballot.example for ballot in ballots}),
        "ballots": {"complete": complete[True], "partial": complete[False]},
        "criteria": {
            criterion.value: _criterion(votes, seed)
            for criterion in Criterion
            if (votes := statistics.outcomes(ballots, criterion, first))
        },
    }


def _criterion(votes: Sequence[statistics.Outcome], seed: int) -> dict[str, Any]:
    wins, ties, losses = statistics.tally(votes)
    return {
        "win": wins,
        "tie": ties,
        "loss": losses,
        "score": statistics.score([vote.value for vote in votes]),
        "interval": statistics.interval(votes, seed=seed),
        "p": statistics.sign_test(wins, losses),
        "p_raters": statistics.sign_test_of_raters(votes),
        "alpha": statistics.agreement(votes),
        "raters": [statistics.score(values) for values in statistics.by_rater(votes).values()],
    }


def tables(result: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    first, second = result["first"], result["second"]
    parts = []
    for name, found in result["groups"].items():
        ballots = found["ballots"]
        parts.append(
            f"**{name}**: {first} against {second}; raters: {found['raters']}, examples: {found['examples']}, "
            f"ballots: {ballots['complete']} complete, {ballots['partial']} partial"
        )
        header = ("", "win", "tie", "loss", "score, % (95 %)", "p, votes", "p, raters", "alpha")
        parts.append(table(header, [_row(*item) for item in found["criteria"].items()]))
    parts.append(
        f"Win: {first} is better. Score: the share of the votes for {first}, a tie being half a vote for each; the "
        "interval is a bootstrap of raters and examples. p: exact sign test without ties, of all votes and of one "
        "majority per rater. Alpha: Krippendorff's, ordinal."
    )
    return "\n\n".join(parts)


def _row(criterion: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    bounds = found["interval"]
    interval = "" if bounds is None else f" ({percent(bounds[0], 0)}–{percent(bounds[1], 0)})"
    alpha = MISSING if found["alpha"] is None else f"{found['alpha']:.2f}"
    score = f"{percent(found['score'], 0)}{interval}"
    votes = (found["win"], found["tie"], found["loss"])
    return (criterion, *votes, score, f"{found['p']:.3g}", f"{found['p_raters']:.3g}", alpha)


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures of each group as `people.png`, `people.svg`, `judge-NAME.png` …; returns the paths.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    paths = []
    for name, found in result["groups"].items():
        panels = [partial(fill, result=result, name=name, found=found) for fill in (_draw_bars, _draw_boxes)]
        for ending in _FORMATS:
            paths.append(folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name)}.{ending}")
            pictures.draw(paths[-1], panels, width=11.0, height=3.6)
    return paths


def _draw_bars(axes: Any, result: Mapping[str, Any], name: str, found: Group) -> None:
    """Wins, ties and losses, as in figure 4 of the DUO paper."""
    criteria = found["criteria"]
    labels = {"win": f"{result['first']} better", "tie": "tie", "loss": f"{result['second']} better"}
    left = [0.0] * len(criteria)
    for outcome, colour in _COLOURS.items():
        nums = [one[outcome] for one in criteria.values()]
        widths = [
            100 * n / (one["win"] + one["tie"] + one["loss"]) for n, one in zip(nums, criteria.values(), strict=True)
        ]
        bars = axes.barh(range(len(criteria)), widths, left=left, color=colour, label=labels[outcome])
        axes.bar_label(bars, [str(n) if n else "" for n in nums], label_type="center", fontsize=8)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    ticks = [f"{criterion}\np = {one['p_raters']:.2g}" for criterion, one in criteria.items()]
    axes.set(
        xlim=(0, 100),
        xlabel="votes, % (p: sign test of raters)",
        title=f"{name}: {found['raters']}",
        yticks=range(len(ticks)),
    )
    axes.set_yticklabels(ticks, fontsize=8)
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, fontsize=8, frameon=False)


def _draw_boxes(axes: Any, result: Mapping[str, Any], name: str, found: Group) -> None:
    """How the raters' scores are distributed, as in the box plots of the duplex models' paper."""
    criteria = found["criteria"]
    for number, colour in enumerate((_COLOURS["win"], _COLOURS["loss"])):
        scores = [[100 * (1 - s if number else s) for s in one["raters"]] for one in criteria.values()]
        places = [i + 0.36 * number - 0.18 for i in range(len(criteria))]
        boxes = axes.boxplot(scores, positions=places, widths=0.3, patch_artist=True, manage_ticks=False)
        for box, line in zip(boxes["boxes"], boxes["medians"], strict=True):
            box.set(facecolor=colour, alpha=0.45)
            line.set(color="black")
        boxes["boxes"][0].set_label(result["second" if number else "first"])
    axes.set(ylim=(-4, 104), ylabel="score by rater, %", xticks=range(len(criteria)))
    axes.set_xticklabels(criteria, fontsize=8, rotation=15)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=2, fontsize=8, frameon=False)
