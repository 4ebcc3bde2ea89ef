"""What people judge: the five criteria of the papers (DUO, section 3.2), and the votes that there are."""

from collections.abc import Mapping
from enum import StrEnum


class Criterion(StrEnum):
    """A criterion; `QUESTIONS` says what is asked."""

    RESPONSIVENESS = "responsiveness"
    HUMAN_LIKENESS = "human-likeness"
    FAITHFULNESS = "faithfulness"
    FACTUALITY = "factuality"
    OVERALL = "overall"


QUESTIONS: Mapping[Criterion, str] = {
    Criterion.RESPONSIVENESS: "In which conversation does the assistant respond better to what the user says?",
    Criterion.HUMAN_LIKENESS: "In which conversation does the assistant behave more like a person?",
    Criterion.FAITHFULNESS: "In which conversation does the assistant better do what the user asks for?",
    Criterion.FACTUALITY: "In which conversation is what the assistant says closer to the facts?",
    Criterion.OVERALL: "All in all, which conversation would you rather have?",
}
"""The papers' definitions as questions, for people and for judges."""


class Vote(StrEnum):
    """Which of two conversations is better; A is shown on the left."""

    A = "a"
    TIE = "tie"
    B = "b"
