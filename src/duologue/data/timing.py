"""Samples for `duologue eval timing`: turns of several sentences or clauses, up to each joint and up to their end.

They come from what the test is drawn from: the unseen sources, and held-out documents of the dialogues.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from duologue.data import forms
from duologue.data.build import named
from duologue.data.corpus import (
    QUERY_KIND,
    SPLITS,
    TURN_KIND,
    dialogues,
    files_by_language,
    origins_of,
    utterances,
)
from duologue.data.phrases import GREETING
from duologue.data.recipes import PROCESS, Recipe
from duologue.data.samples import Sample
from duologue.types import Role, Turn

_TURN_KINDS = (QUERY_KIND, TURN_KIND, "topic_switch", "correction")
"""Kinds of utterances that are whole turns to an assistant."""
_READ = 6000  # utterances or dialogues of a source that its turns are drawn from

_Said = tuple[str, tuple[Turn, ...]]
"""A user's turn, and the turns before it."""


def timing_samples(folder: Path, recipe: Recipe, language: str | None = None) -> Iterator[Sample]:
    """The beginnings of at most half of `num_test` turns per source, with the dialogue or the question before them.

    They are in `language`, by default the first of the recipe. Every turn gives a sample for each joint, with `ends`
    false, and one for its end.

    Raises:
        BadData: a file cannot be read.
    """
    rng = random.Random(f"{recipe.seed} timing")
    language = language or recipe.languages[0]
    files = files_by_language(folder, recipe)[language]
    for source, said in _turns(files, recipe, rng, language):
        turns = [turn for turn in said if len(forms.words(turn[0])) <= recipe.max_words and forms.joints(turn[0])]
        for text, context in turns[: recipe.num_test // 2]:
            words = forms.words(text)
            for num in (*forms.joints(text), len(words)):
                head = forms.join(words[:num])
                question = forms.is_question(forms.last_sentence(head))
                shown = forms.random_form(head, rng, question=question, whole=True)
                ends = num == len(words)
                kind = "end" if ends else "joint"
                yield Sample(shown, PROCESS, named(source, language), kind, context=context, ends=ends)


def _turns(
    files: Mapping[str, Mapping[str, Path]], recipe: Recipe, rng: random.Random, language: str
) -> Iterator[tuple[str, list[_Said]]]:
    """The sources, and what users say in them, in random order."""
    origins = origins_of(files["dialogues"].values())
    for source, path in sorted({**files["hard"], **files["queries"]}.items()):
        if source in recipe.unseen:
            found = utterances(path, source, _READ, rng, origins)
            yield source, [(one.text, _behind(one.before, language)) for one in found if one.kind in _TURN_KINDS]
    for source, path in sorted(files["dialogues"].items()):
        said = [
            (turn.text, _newest(dialogue.turns[:at], recipe.max_context_words))
            for dialogue in dialogues(path, source, _READ, rng)
            if source in recipe.unseen or dialogue.part >= SPLITS["test"][0]
            for at, turn in enumerate(dialogue.turns)
            if turn.role is Role.USER
        ]
        rng.shuffle(said)
        yield source, said


def _behind(question: str, language: str) -> tuple[Turn, ...]:
    """A dialogue of which only the assistant's last words are known."""
    return (Turn(Role.USER, GREETING[language]), Turn(Role.ASSISTANT, question)) if question else ()


def _newest(turns: tuple[Turn, ...], max_words: int) -> tuple[Turn, ...]:
    """The newest exchanges of at most `max_words` words."""
    start = 0
    while sum(len(forms.words(turn.text)) for turn in turns[start:]) > max_words:
        start += 2
    return turns[start:]
