"""The tell test: how far the labels of a sample file can be guessed without understanding anything.

Three naive guessers look at the words in no order, at the length alone, and at case and punctuation alone. Each learns
from one half of the samples and is tested on the other; equal words are always in one half. What the words give away is
the share of a result that needs no model at all; length and form should be near chance, otherwise the classes differ in
the style of their corpora.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from duologue.data import forms
from duologue.data.samples import Sample
from duologue.errors import BadData

Features = Callable[[str], list[str]]
"""What a guesser sees of a text."""

NUM_TELLING = 20
MIN_TEXTS = 3
"""A telling word stands in at least this many different texts of the training half."""


@dataclass(frozen=True, slots=True)
class Separation:
    """How well one guesser tells the classes apart on the half it did not learn from."""

    accuracy: float  # classes weighted as often as they occur in the training half
    majority: float  # accuracy of always guessing the commonest class
    balanced_accuracy: float  # mean of `recall`
    chance: float  # balanced accuracy of guessing blindly, 1 / number of classes
    recall: dict[str, float]  # by class, all classes held equally likely


@dataclass(frozen=True, slots=True)
class TellReport:
    """What the three guessers reach, and which words they go by."""

    num_train: int
    num_test: int
    words: Separation  # words without their order, case and punctuation
    length: Separation  # number of words and of characters
    form: Separation  # case and punctuation
    telling: dict[str, tuple[str, ...]]  # by class, the words that speak for it most strongly

    def to_json(self) -> dict[str, Any]:
        """As plain values, shares rounded to four places."""
        row: dict[str, Any] = _rounded(asdict(self))
        return row


def tell_test(samples: Sequence[Sample], seed: int = 0) -> TellReport:
    """Train and test the three guessers on `samples`; the seed decides which texts are in which half.

    Labels are `Sample.state`; accepted states do not count. Classes that do not occur in both halves are left out.

    Raises:
        BadData: fewer than two classes are left.
    """
    train: list[Sample] = []
    test: list[Sample] = []
    for sample in samples:
        (train if _is_training(sample.text, seed) else test).append(sample)
    classes = sorted({s.state.value for s in train} & {s.state.value for s in test})
    if len(classes) < 2:
        raise BadData(
            f"the tell test needs samples of two classes or more in both halves, got {len(samples)} samples with "
            f"{classes or 'no class'} in both; build more samples"
        )
    train = [sample for sample in train if sample.state.value in classes]
    test = [sample for sample in test if sample.state.value in classes]
    return TellReport(
        num_train=len(train),
        num_test=len(test),
        words=_separation(train, test, classes, word_features),
        length=_separation(train, test, classes, length_features),
        form=_separation(train, test, classes, form_features),
        telling=_telling(train, classes),
    )


def word_features(text: str) -> list[str]:
    """The words in their normal form."""
    return forms.spoken(text).split()


def length_features(text: str) -> list[str]:
    """Number of words, exact up to 15; number of characters in steps of about a fifth."""
    num_words, num_characters = len(text.split()), len(text)
    bucket = num_words if num_words <= 15 else 15 + math.ceil((num_words - 15) / 5)
    return [f"words {bucket}", f"characters {round(4 * math.log(max(1, num_characters)))}"]


def form_features(text: str) -> list[str]:
    """Which capitals and marks there are; each is named whether it is there or not."""
    text = text.strip()
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
    """Whether a text is in the half that is learned from, by its words alone."""
    return bool(hashlib.blake2b(f"{seed} {forms.spoken(text)}".encode(), digest_size=1).digest()[0] & 1)


class _NaiveBayes:
    """Multinomial naive Bayes with add-one smoothing. C classes, V features seen in training."""

    def __init__(self, train: Sequence[Sample], classes: Sequence[str], features: Features) -> None:
        rows = [(classes.index(sample.state.value), features(sample.text)) for sample in train]
        self._columns = {name: i for i, name in enumerate(sorted({name for _, names in rows for name in names}))}
        counts = np.ones((len(classes), len(self._columns)))
        num_texts = np.zeros(len(classes))
        for label, names in rows:
            num_texts[label] += 1
            np.add.at(counts[label], [self._columns[name] for name in names], 1)
        self._log_p: npt.NDArray[np.float64] = np.log(counts / counts.sum(axis=1, keepdims=True))
        self.log_prior: npt.NDArray[np.float64] = np.log(num_texts / num_texts.sum())

    def score(self, names: list[str]) -> npt.NDArray[np.float64]:
        """Log likelihood of each class, [C]; features never seen say nothing."""
        known = [self._columns[name] for name in names if name in self._columns]
        scores: npt.NDArray[np.float64] = self._log_p[:, known].sum(axis=1)
        return scores


def _separation(
    train: Sequence[Sample], test: Sequence[Sample], classes: Sequence[str], features: Features
) -> Separation:
    model = _NaiveBayes(train, classes, features)
    labels = np.array([classes.index(sample.state.value) for sample in test])
    scores = np.stack([model.score(features(sample.text)) for sample in test])  # [N, C]
    likely = (scores + model.log_prior).argmax(axis=1)
    blind = scores.argmax(axis=1)
    recall = {name: float((blind[labels == i] == i).mean()) for i, name in enumerate(classes)}
    return Separation(
        accuracy=float((likely == labels).mean()),
        majority=float((labels == model.log_prior.argmax()).mean()),
        balanced_accuracy=sum(recall.values()) / len(classes),
        chance=1 / len(classes),
        recall=recall,
    )


def _telling(train: Sequence[Sample], classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Words by p(word | class) · log(p(word | class) / p(word | other classes)): frequent in one and rare elsewhere."""
    texts = {(sample.state.value, forms.spoken(sample.text)) for sample in train}
    found: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for state, text in texts:
        found[state].update(set(text.split()))
    num_texts = Counter(state for state, _ in texts)
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


def _rounded(value: Any) -> Any:
    """`value` with every share rounded, tuples as lists."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
