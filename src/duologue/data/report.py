"""What a build came to: counts, lengths, what was dropped and the tell test, as JSON and as Markdown for people.

Samples are counted as they go by; only a random selection of them is kept, for the tell test.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from duologue.data import forms
from duologue.data.samples import Sample
from duologue.data.tells import Separation, TellReport, tell_test
from duologue.errors import BadData
from duologue.types import InputState

PLACES = ("alone", "in a dialogue", "over an answer")
PERCENTILES = (5, 50, 95)
MAX_KEPT = 20_000
"""At most so many samples are kept for the tell test."""

STATES = [state.value for state in InputState]

_EXPLAINED = {
    "words": "bag of words",
    "length": "length only",
    "form": "case and punctuation only",
}


def place_of(sample: Sample) -> str:
    """Where the words were heard, one of `PLACES`."""
    if sample.speaking:
        return PLACES[2]
    return PLACES[1] if sample.context else PLACES[0]


class Report:
    """Counts samples one by one; the order matters for nothing but which of them the tell test sees."""

    def __init__(self, *, seed: int = 0, max_kept: int = MAX_KEPT) -> None:
        self._seed, self._max_kept = seed, max_kept
        self._rng = random.Random(f"{seed} report")
        self._kept: list[Sample] = []
        self._places: Counter[tuple[str, str]] = Counter()  # (place, state)
        self._sources: Counter[tuple[str, str]] = Counter()
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._lengths: Counter[tuple[int, str]] = Counter()  # (number of words, state)
        self._spoken: Counter[str] = Counter()  # by state, samples in spoken form
        self._accepting: Counter[str] = Counter()  # by state, samples that accept another one
        self._dropped: Counter[str] = Counter()
        self.num_samples = 0

    def add(self, sample: Sample) -> None:
        """Count a sample that is written."""
        state = sample.state.value
        self._places[place_of(sample), state] += 1
        self._sources[sample.source, state] += 1
        self._kinds[sample.kind or "none", state] += 1
        self._lengths[len(forms.words(sample.text)), state] += 1
        self._spoken[state] += forms.spoken(sample.text) == sample.text
        self._accepting[state] += bool(sample.accept)
        self.num_samples += 1
        if len(self._kept) < self._max_kept:
            self._kept.append(sample)
        elif (at := self._rng.randrange(self.num_samples)) < self._max_kept:
            self._kept[at] = sample

    def drop(self, reason: str, num: int = 1) -> None:
        """Count samples that were made or read and not written, under a reason in words ("exact duplicate")."""
        self._dropped[reason] += num

    def tells(self) -> TellReport | None:
        """The tell test on what was kept; None where there are too few samples for one."""
        try:
            return tell_test(self._kept, self._seed)
        except BadData:
            return None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        tells = self.tells()
        by_state = _sum(self._places, lambda _, state: state)
        return {
            "num_samples": self.num_samples,
            "states": {state: by_state[state] for state in STATES if by_state[state]},
            "places": _table(self._places),
            "sources": _table(self._sources),
            "kinds": _table(self._kinds),
            "num_words": {state: self._percentiles(state) for state in STATES if by_state[state]},
            "share_spoken": {state: round(self._spoken[state] / by_state[state], 4) for state in by_state},
            "num_accepting": {state: num for state, num in self._accepting.items() if num},
            "dropped": dict(sorted(self._dropped.items())),
            "tells": tells.to_json() if tells else None,
        }

    def _percentiles(self, state: str) -> dict[str, int]:
        """Smallest number of words that at least p % of the state's samples do not exceed, by p."""
        counts = sorted((num_words, num) for (num_words, of), num in self._lengths.items() if of == state)
        total = sum(num for _, num in counts)
        found = {}
        for percentile in PERCENTILES:
            seen = 0
            for num_words, num in counts:
                seen += num
                if 100 * seen >= percentile * total:
                    found[f"p{percentile}"] = num_words
                    break
        return found


def _sum(counts: Counter[tuple[str, str]], key: Callable[[str, str], str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for pair, num in counts.items():
        found[key(*pair)] += num
    return found


def _table(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Row → state → number, the largest rows first."""
    totals = _sum(counts, lambda row, _: row)
    return {
        row: {state: counts[row, state] for state in STATES if counts[row, state]}
        for row, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    }


def markdown(content: dict[str, Any]) -> str:
    """`Report.to_json` for people."""
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
    parts.append("## Tell test\n\n" + _tells(content["tells"], states))
    return "\n\n".join(parts) + "\n"


def _tells(tells: dict[str, Any] | None, states: list[str]) -> str:
    if tells is None:
        return "Too few samples of at least two states."
    tested = [state for state in states if state in tells["telling"]]
    header = ["guesser", "accuracy", "majority", "balanced", "chance", *(f"recall {state}" for state in tested)]
    rows: list[list[object]] = []
    for name, explained in _EXPLAINED.items():
        found = Separation(**tells[name])
        shares = [found.accuracy, found.majority, found.balanced_accuracy, found.chance]
        rows.append([explained, *(f"{100 * s:.1f}" for s in (*shares, *(found.recall[state] for state in tested)))])
    words = "\n".join(f"- {state}: {' '.join(tells['telling'][state])}" for state in tested)
    return (
        f"How far the states can be guessed without a model, learned from {tells['num_train']} samples and tested on "
        f"{tells['num_test']}, per cent. Length and form should be near chance.\n\n{_grid(header, rows)}\n\n"
        f"Words that speak for a state:\n\n{words}"
    )


def _grid(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; every column but the first to the right."""
    names = [str(name) for name in header]
    lines = [names, ["---", *["---:"] * (len(names) - 1)]]
    lines += [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
