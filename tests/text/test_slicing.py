"""Slices as the paper has them, and the text so far that grows from them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duologue.errors import UsageError
from duologue.text.slicing import partials, slices
from duologue.text.words import join, words_of

STORY = " ".join(f"word{n}" for n in range(203))


@settings(deadline=None)
@given(st.text(), st.integers(0, 2**32))
def test_slices_give_back_the_words(text: str, seed: int) -> None:
    cut = slices(text, seed=seed)
    assert words_of(" ".join(cut)) == words_of(join(cut)) == words_of(text)
    assert all(cut)


def test_all_slices_but_the_last_have_four_to_six_words() -> None:
    lengths = [len(piece.split()) for piece in slices(STORY, seed=1)]
    assert set(lengths[:-1]) == {4, 5, 6}
    assert 1 <= lengths[-1] <= 6


def test_the_seed_decides() -> None:
    assert slices(STORY, seed=1) == slices(STORY, seed=1)
    assert slices(STORY, seed=1) != slices(STORY, seed=2)


def test_a_fixed_length_needs_no_chance() -> None:
    assert slices("a b c d e", words=(2, 2), seed=7) == ["a b", "c d", "e"]


def test_partials_grow_to_the_whole() -> None:
    grown = partials("a  b c\nd e", words=(2, 2), seed=0)
    assert grown == ["a b", "a b c d", "a b c d e"]
    assert partials(" \n", seed=0) == []


@pytest.mark.parametrize("words", [(0, 3), (5, 4), (-1, -1)])
def test_a_wrong_range_is_refused(words: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"words="):
        slices("", words=words, seed=0)


def test_text_without_spaces_is_cut_between_characters() -> None:
    assert slices("明天早上，北京会下雨吗？", words=(2, 2), seed=0) == ["明天", "早上，", "北京", "会下", "雨吗？"]
    assert partials("用 iPhone 拍照", words=(2, 2), seed=0) == ["用iPhone", "用iPhone拍照"]
