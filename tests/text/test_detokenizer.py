"""Deltas put together are the whole, whatever the tokenizer does with spaces and bytes."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_tokenizers
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.text.detokenizer import Detokenizer
from duologue.types import Token

KINDS = {
    "bytelevel": tiny_tokenizers.bytelevel(["<s>", "</s>"]),
    **{
        space: tiny_tokenizers.sentencepiece_like(["<s>", "</s>"], space=space)
        for space in ("first", "always", "legacy", "never")
    },
}
WRITING = st.text(
    st.one_of(
        st.sampled_from(" \n.e\u0301\u200d👩👧🎉🇳🇴\ufe0f你好漢क्षि▁\ufffd"),
        st.characters(codec="utf-8"),
    ),
    max_size=40,
)


def told(detokenizer: Detokenizer, tokens: Sequence[Token]) -> str:
    return "".join([*map(detokenizer.push, tokens), detokenizer.flush()])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=WRITING)
def test_deltas_are_the_whole(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    tokens = tokenizer.encode(text)
    assert told(Detokenizer(tokenizer), tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=WRITING)
def test_text_after_a_prefix_keeps_its_space(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    prefix = tokenizer.encode("hello there, how are")
    tokens = tokenizer.encode("hello there, how are you" + text)[len(prefix) :]
    assert told(Detokenizer(tokenizer, prefix), tokens) == " you" + tokenizer.decode(tokenizer.encode("x" + text))[1:]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_noise_is_told_without_an_end_in_sight(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]
    ids = st.integers(-2, tokenizer.vocab_size + 5)
    tokens = data.draw(st.lists(ids, max_size=80))
    text = told(Detokenizer(tokenizer), tokens)
    assert text.replace("\ufffd", "") == text.replace("\ufffd", "").encode().decode()


def test_an_emoji_comes_in_one_piece() -> None:
    tokenizer = KINDS["bytelevel"]
    detokenizer = Detokenizer(tokenizer)
    tokens = tokenizer.encode("a🎉b")
    assert len(tokens) == 6
    assert [detokenizer.push(token) for token in tokens] == ["a", "", "", "", "🎉", "b"]
    assert detokenizer.flush() == ""


def test_a_space_that_may_be_dropped_decides_about_the_next() -> None:
    tokenizer = KINDS["legacy"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in tokenizer.encode(" the")] == ["", " the"]


def test_an_unfinished_character_is_told_at_the_end() -> None:
    tokenizer = KINDS["bytelevel"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in tokenizer.encode("🎉")[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(tokenizer.encode("x")[0]) == "x"


def test_what_belongs_to_the_format_is_left_out_once() -> None:
    tokenizer = KINDS["bytelevel"]
    assert told(Detokenizer(tokenizer, skip=" "), tokenizer.encode("  a a")) == " a a"
    assert told(Detokenizer(tokenizer, skip=" "), tokenizer.encode("a a")) == "a a"
    assert told(Detokenizer(tokenizer, skip="\n. "), tokenizer.encode("\n. a")) == "a"
    assert told(Detokenizer(tokenizer, skip="\n. "), tokenizer.encode("\n.a")) == "\n.a"
    assert told(Detokenizer(tokenizer, skip="\n. "), tokenizer.encode("\n")) == "\n"


class Counting:
    """A tokenizer that remembers how much it was asked to decode at once."""

    def __init__(self, inner: HfTokenizer) -> None:
        self.inner = inner
        self.most = 0
        self.calls = 0

    def decode(self, tokens: Sequence[Token]) -> str:
        self.most = max(self.most, len(tokens))
        self.calls += 1
        return self.inner.decode(tokens)


@pytest.mark.parametrize(
    "text",
    ["a story about a fox. ", "🎉", "你好", "\ufffd", ""],
    ids=["words", "emoji", "chinese", "replacement", "none"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_the_same_however_long_the_text(kind: str, text: str) -> None:
    counting = Counting(KINDS[kind])
    tokens = counting.inner.encode(text * 200) if text else [counting.inner.vocab_size + 1] * 200
    assert told(Detokenizer(counting, tokens[:0]), tokens) == text * 200  # type: ignore[arg-type]
    assert counting.most <= 32
    assert counting.calls <= 4 * len(tokens) + 10


def test_bytes_that_never_become_text_are_told_in_bounded_time() -> None:
    counting = Counting(KINDS["first"])
    first_of_four = counting.inner.encode("🎉")[-4]
    text = told(Detokenizer(counting), [first_of_four] * 300)  # type: ignore[arg-type]
    assert set(text) == {"\ufffd"}
    assert counting.most <= 32
