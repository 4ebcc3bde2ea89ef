"""What a build produced, as JSON and as Markdown: counts, lengths, dropped samples and annotation artifacts.

Samples are counted as they pass by. Only a random selection of them is kept, for the search for artifacts: how well
their labels can be guessed without understanding anything. Three naive Bayes classifiers see the words without their
order, the length alone, and case and punctuation alone. Each is trained on one half of the samples and tested on the
other; equal words are always in one half. What words alone reveal is the part of a result that needs no model. Length
and form should be near chance; otherwise the classes differ in the style of their corpora. N samples, C classes, V
features.
"""

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from duologue.data import forms
from duologue.data.samples import Sample
from duologue.errors import BadData
from duologue.types import InputState

Features = Callable[[str], list[str]]
"""What a classifier sees of a text."""

NUM_TELLING = 20
MIN_TEXTS = 3
"""A telling word occurs in at least this many different texts of the training half."""

PLACES = ("alone", "in a dialogue", "over an answer")
PERCENTILES = (5, 50, 95)
MAX_KEPT = 20_000
"""At most this many samples are searched for artifacts."""

STATES = [state.value for state in InputState]

_CLASSIFIERS = {"words": "bag of words", "length": "length only", "form": "case and punctuation only"}


@dataclass(frozen=True, slots=True)
class Separation:
    """How well one classifier separates the classes in the test half."""

    accuracy: float  # with the class frequencies of the training half as prior
    majority: float  # accuracy of always guessing the most frequent class
    balanced_accuracy: float  # mean of `recall`
    chance: float  # balanced accuracy of random guesses, 1 / number of classes
    recall: dict[str, float]  # by class, with equal priors


@dataclass(frozen=True, slots=True)
class ArtifactReport:
    """What the three classifiers reach, and which words they rely on."""

    num_train: int
    num_test: int
    words: Separation  # words without order, case and punctuation
    length: Separation  # number of words and of characters
    form: Separation  # case and punctuation
    telling: dict[str, tuple[str, ...]]  # by class, the words that indicate it most strongly

    def to_json(self) -> dict[str, Any]:
        """As plain values, shares rounded to four places."""
        row: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_float=lambda share: round(float(share), 4))
        return row


def find_artifacts(samples: Sequence[Sample], seed: int = 0) -> ArtifactReport:
    """Train and test the three classifiers on `samples`; the seed determines the halves.

    Labels are `Sample.state`; accepted states are ignored. Classes that do not occur in both halves are left out.

    Raises:
        BadData: fewer than two classes are left.
    """
    train, test = ([s for s in samples if _is_training(s.text, seed) is half] for half in (True, False))
    classes = sorted({s.state.value for s in train} & {s.state.value for s in test})
    if len(classes) < 2:
        raise BadData(
            f"the search for artifacts needs samples of two classes or more in both halves, got {len(samples)} samples "
            f"with {classes or 'no class'} in both; build more samples"
        )
    train, test = ([sample for sample in half if sample.state.value in classes] for half in (train, test))
    words, length, form = (
        _separation(train, test, classes, features) for features in (word_features, length_features, form_features)
    )
    return ArtifactReport(len(train), len(test), words, length, form, _telling(train, classes))


def word_features(text: str) -> list[str]:
    """The words in normal form."""
    return forms.words(forms.spoken(text))


def length_features(text: str) -> list[str]:
    """Number of words, exact up to 15; number of characters in steps of about a fifth."""
    num_words, num_characters = len(forms.words(text)), len(text)
    bucket = num_words if num_words <= 15 else 15 + math.ceil((num_words - 15) / 5)
    return [f"words {bucket}", f"characters {round(4 * math.log(max(1, num_characters)))}"]


_WIDE = str.maketrans("。？！，；：", ".?!,;:")


def form_features(text: str) -> list[str]:
    """Capitals and punctuation marks; each is named whether it is present or not."""
    text = text.strip()
    text = text.translate(_WIDE)
    last = text[-1:] if text[-1:] in {".", "?", "!", ",", "-", "…"} else "none"
    seen = {
        "first capital": text[:1].isupper(),
        "inner capital": any(letter.isupper() for letter in text[1:]),
        "comma": "," in text[:-1],
        "inner stop": any(mark in text[:-1] for mark in ".?!;:"),
        "quote": '"' in text,
        "dash": "--" in text or "—" in text or "–" in text,
        "apostrophe": "'" in text or "’" in text,
    }
    return [f"ends with {last}", *(f"{name} {is_there}" for name, is_there in seen.items())]


def _is_training(text: str, seed: int) -> bool:
    """Whether a text is in the training half; this depends on its words alone."""
    return bool(hashlib.blake2b(f"{seed} {forms.spoken(text)}".encode(), digest_size=1).digest()[0] & 1)


def _separation(
    train: Sequence[Sample], test: Sequence[Sample], classes: Sequence[str], features: Features
) -> Separation:
    """What multinomial naive Bayes with add-one smoothing reaches, on the V features seen in training."""
    rows = [(classes.index(sample.state.value), features(sample.text)) for sample in train]
    columns = {name: i for i, name in enumerate(sorted({name for _, names in rows for name in names}))}
    counts = np.ones((len(classes), len(columns)))
    for label, names in rows:
        np.add.at(counts[label], [columns[name] for name in names], 1)
    log_p = np.log(counts / counts.sum(axis=1, keepdims=True))  # [C, V]
    num_texts = np.bincount([label for label, _ in rows], minlength=len(classes))
    log_prior = np.log(num_texts / num_texts.sum())  # [C]

    labels = np.array([classes.index(sample.state.value) for sample in test])  # [N]
    known = [[columns[name] for name in features(sample.text) if name in columns] for sample in test]
    scores = np.stack([log_p[:, found].sum(axis=1) for found in known])  # [N, C]
    unweighted = scores.argmax(axis=1)
    recall = {name: float((unweighted[labels == i] == i).mean()) for i, name in enumerate(classes)}
    return Separation(
        accuracy=float((labels == (scores + log_prior).argmax(axis=1)).mean()),
        majority=float((labels == log_prior.argmax()).mean()),
        balanced_accuracy=sum(recall.values()) / len(classes),
        chance=1 / len(classes),
        recall=recall,
    )


def _telling(train: Sequence[Sample], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Words by p(word | class) · log(p(word | class) / p(word | other classes)): frequent in one and rare elsewhere."""
    texts = {(sample.state.value, forms.spoken(sample.text)) for sample in train}
    num_texts = Counter(state for state, _ in texts)
    found: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for state, text in texts:
        found[state].update(set(forms.words(text)))
    total = sum(found.values(), Counter())
    telling: dict[str, tuple[str, ...]] = {}
    for name in classes:
        num_others = len(texts) - num_texts[name]
        weight = {}
        for word, count in found[name].items():
            p, q = count / num_texts[name], (total[word] - count + 0.5) / (num_others + 0.5)
            if count >= MIN_TEXTS and p > q:
                weight[word] = p * math.log(p / q)
        telling[name] = tuple(sorted(weight, key=lambda word: (-weight[word], word))[:NUM_TELLING])
    return telling


def place_of(sample: Sample) -> str:
    """Where the words were heard, one of `PLACES`."""
    return PLACES[2 if sample.speaking else 1 if sample.context else 0]


class Report:
    """Counts samples one by one. Their order only affects which of them are searched for artifacts."""

    def __init__(self, *, seed: int = 0, max_kept: int = MAX_KEPT) -> None:
        self._seed, self._max_kept = seed, max_kept
        self._rng = random.Random(f"{seed} report")
        self._kept: list[Sample] = []
        self._tables: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
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
            self._tables[title][row][state] += 1
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


def _table(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """Row → state → number, the largest rows first."""
    rows = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return {row: {state: found[state] for state in STATES if found[state]} for row, found in rows}


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
