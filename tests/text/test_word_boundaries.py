"""Word boundaries: those of white space, and of Unicode where a script is written without spaces."""

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from duologue.text.words import first_words, is_unspaced, is_word_end, join, unspaced_ends, word_ends, words_of

BOUNDARIES = regex.compile(r"\b", regex.WORD)
MIXED = st.text(st.sampled_from("天氣ねケーキｶﾞสวัที่안녕हिन्दीaé’'.,。，（）“” \n12👩\u200d👧\u0301"), max_size=30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("今天天气怎么样", "今 天 天 气 怎 么 样"),
        ("好的，明天见！再见……", "好 的， 明 天 见！ 再 见……"),
        ("他说：“你好（朋友）。”", "他 说： “你 好 （朋 友）。”"),
        ("用iPhone 15拍，don't", "用 iPhone 15 拍， don't"),
        ("ケーキを食べたい。", "ケーキ を 食 べ た い。"),
        ("1ั", "1ั"),
        ("สวัสดีครับที่นี่", "ส วั ส ดี ค รั บ ที่ นี่"),
        ("안녕하세요 여러분", "안녕하세요 여러분"),
        ("हिन्दी में", "हिन्दी में"),
        ("𠮷野家", "𠮷 野 家"),
        (" it's 3.5, well-known\u00a0(yes) ", "it's 3.5, well-known (yes)"),
    ],
)
def test_words_of_languages(text: str, words: str) -> None:
    assert words_of(text) == words.split(" ")


@settings(deadline=None)
@given(st.text() | MIXED)
def test_white_space_separates_words_and_nothing_else_does_where_it_is_written(text: str) -> None:
    words = words_of(text)
    assert "".join(words) == "".join(text.split())
    if not is_unspaced(text):
        assert words == text.split()


@settings(deadline=None)
@given(MIXED)
@example("ね\u200d👧")
@example("ね。\u200d👧。")
@example("天\u094d\u09261")
def test_other_boundaries_are_those_of_unicode(text: str) -> None:
    assert all(BOUNDARIES.match(text, end) for end in unspaced_ends(text))


@settings(deadline=None)
@given(st.text() | MIXED)
@example("GPT （大模型")
@example("ケーキ パン 天 ，（ 天")
def test_joined_words_are_the_same_words(text: str) -> None:
    assert words_of(join(words_of(text))) == words_of(text)
    assert all(text[:end].endswith(word) for end, word in zip(word_ends(text), words_of(text), strict=True))


def test_spaces_are_kept_or_put_only_where_words_need_one() -> None:
    assert join(["今天", "天气", "好", "GPT", "is", "好"]) == "今天天气好GPT is好"
    assert join(["well,", "", "now"]) == "well, now"
    assert first_words("one  two\nthree", 2) == "one  two"
    assert first_words("今天 天气好", 3) == "今天 天"
    assert first_words("one", 5) == "one"
    assert first_words("one", 0) == ""


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("今天，好", ["今", "今天", "今天，"]),
        ("ケーキを", ["ケーキ"]),
        ("안녕하세요 여러분", ["안녕하세요"]),
        ("हिन्दी में", ["हिन्दी"]),
        ("ที่นี่", ["ที่"]),
        ("cafe\u0301 x", ["cafe\u0301"]),
        ("it’s 3.5, ok_go", ["it’s", "it’s 3", "it’s 3.", "it’s 3.5", "it’s 3.5,"]),
    ],
)
def test_where_words_end_within_a_text(text: str, ends: list[str]) -> None:
    assert [text[:at] for at in range(1, len(text)) if is_word_end(text, at)] == ends


def test_the_end_of_a_word_is_found_where_the_text_is_long() -> None:
    text = "今天" * 1000
    assert all(is_word_end(text, at) for at in range(1, len(text)))
