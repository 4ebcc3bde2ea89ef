"""What a build produced: counts, lengths, dropped samples and annotation artifacts, as JSON and as Markdown.

Samples are counted as they pass by. Only a random selection of them is kept, for the search for artifacts.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from duologue.data import forms
from duologue.data.artifacts import ArtifactReport, Separation, find_artifacts
from duologue.data.samples import Sample
from duologue.errors import BadData
from duologue.types import InputState

PLACES = ("alone", "in a dialogue", "over an answer")
PERCENTILES = (5, 50, 95)
MAX_KEPT = 20_000
"""At most this many samples are searched for artifacts."""

STATES = [state.value for state in InputState]

_CLASSIFIERS = {"words": "bag of words", "length": "length only", "form": "case and punctuation only"}


def place_of(sample: Sample) -> str:
    """Where the words were heard, one of `PLACES`."""
    if sample.speaking:
        return PLACES[2]
    return PLACES[1] if sample.context else PLACES[0]


class Report:
    """Counts samples one by one. Their order only affects which of them are searched for artifacts."""

    def __init__(self, *, seed: int = 0, max_kept: int = MAX_KEPT) -> None:
        self._seed, self._max_kept = seed, max_kept
        self._rng = random.Random(f"{seed} report")
        self._kept: list[Sample] = []
        self._tables: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # title: (row, state)
        self._lengths: dict[str, list[int]] = defaultdict(list)  # by state, number of words of each sample
        self._spoken: Counter[str] = Counter()  # by state, samples in spoken form
        self._accepting: Counter[str] = Counter()  # by state, samples that accept another state
        self._dropped: Counter[str] = Counter()
        self.num_samples = 0

    def add(self, sample: Sample) -> None:
        """Count a sample that is written."""
        state = sample.state.value
        rows = {"places": place_of(sample), "sources": sample.source, "kinds": sample.kind or "none"}
        for title, row in rows.items():
            self._tables[title][row, state] += 1
        self._lengths[state].append(len(forms.words(sample.text)))
        self._spoken[state] += forms.spoken(sample.text) == sample.text
        self._accepting[state] += bool(sample.accept)
        self.num_samples += 1
        if len(self._kept) < self._max_kept:
            self._kept.append(sample)
        elif (at := self._rng.randrange(self.num_samples)) < self._max_kept:
            self._kept[at] = sample

    def drop(self, reason: str, num: int = 1) -> None:
        """Count samples that were made or read but not written, by a reason in words ("exact duplicate")."""
        self._dropped[reason] += num

    def artifacts(self) -> ArtifactReport | None:
        """Annotation artifacts in the kept samples; None if there are too few samples to tell."""
        try:
            return find_artifacts(self._kept, self._seed)
        except BadData:
            return None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        artifacts = self.artifacts()
        lengths = {state: sorted(self._lengths[state]) for state in STATES if state in self._lengths}
        return {
            "num_samples": self.num_samples,
            "states": {state: len(found) for state, found in lengths.items()},
            **{title: _table(self._tables[title]) for title in ("places", "sources", "kinds")},
            "num_words": {
                state: {f"p{p}": found[-(-p * len(found) // 100) - 1] for p in PERCENTILES}
                for state, found in lengths.items()
            },
            "share_spoken": {
                state: round(self._spoken[state] / len(found), 4) for state, found in self._lengths.items()
            },
            "num_accepting": {state: num for state, num in self._accepting.items() if num},
            "dropped": dict(sorted(self._dropped.items())),
            "tells": artifacts.to_json() if artifacts else None,  # its name in report files
        }


def _table(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Row → state → number, the largest rows first."""
    totals: Counter[str] = Counter()
    for (row, _), num in counts.items():
        totals[row] += num
    return {
        row: {state: counts[row, state] for state in STATES if counts[row, state]}
        for row, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    }


def markdown(content: dict[str, Any]) -> str:
    """The result of `Report.to_json` for people."""
    states = list(content["states"])
    parts = [f"# Report of a build\n\n{content['num_samples']} samples."]
    for title in ("places", "sources", "kinds"):
        rows = [
            [row, *(counts.get(state, 0) for state in states), sum(counts.values())]
            for row, counts in content[title].items()
        ]
        if title == "places":
            rows.append(["all", *content["states"].values(), content["num_samples"]])
        parts.append(f"## {title.capitalize()}\n\n" + _grid([title[:-1], *states, "all"], rows))
    rows = [
        [state, *content["num_words"][state].values(), f"{100 * content['share_spoken'][state]:.0f} %"]
        for state in states
    ]
    header = ["state", *(f"words p{percentile}" for percentile in PERCENTILES), "in spoken form"]
    parts.append("## Lengths\n\n" + _grid(header, rows))
    if content["dropped"]:
        parts.append("## Dropped\n\n" + _grid(["reason", "samples"], content["dropped"].items()))
    parts.append("## Annotation artifacts\n\n" + _artifacts(content["tells"], states))
    return "\n\n".join(parts) + "\n"


def _artifacts(artifacts: dict[str, Any] | None, states: list[str]) -> str:
    if artifacts is None:
        return "Too few samples of at least two states."
    tested = [state for state in states if state in artifacts["telling"]]
    header = ["classifier", "accuracy", "majority", "balanced", "chance", *(f"recall {state}" for state in tested)]
    rows: list[list[object]] = []
    for name, explained in _CLASSIFIERS.items():
        found = Separation(**artifacts[name])
        shares = [found.accuracy, found.majority, found.balanced_accuracy, found.chance]
        rows.append([explained, *(f"{100 * s:.1f}" for s in (*shares, *(found.recall[state] for state in tested)))])
    words = "\n".join(f"- {state}: {' '.join(artifacts['telling'][state])}" for state in tested)
    return (
        f"How well naive classifiers guess the states, in per cent, trained on {artifacts['num_train']} samples and "
        f"tested on {artifacts['num_test']}. Length and form should be near chance.\n\n{_grid(header, rows)}\n\n"
        f"Words that indicate a state:\n\n{words}"
    )


def _grid(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    names = [str(name) for name in header]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
