"""What a terminal shows: two lanes, what was heard, what was cut, and nothing that acts on the terminal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duologue.cli.terminal.cells import fitted, padded, width_of, wrapped
from duologue.cli.terminal.lines import remark
from duologue.cli.terminal.text import counted, shortened, visible
from duologue.cli.terminal.transcript import Transcript
from duologue.core.events import Committed, Event, Finished, Refused, Suspended, Trimmed
from scripted import Talk

FOX = "The quick brown fox jumps over the lazy dog and runs away into the wide green forest."


def shown(transcript: Transcript, width: int = 90, height: int = 40, *, back: int = 0) -> list[str]:
    lines = transcript.lines(width, height, back=back)
    return ["".join(text for _, text in line).rstrip() for line in lines]


def styles(transcript: Transcript) -> dict[str, str]:
    """Style to all text that has it."""
    found: dict[str, str] = {}
    for line in transcript.lines(90, 40):
        for style, text in line:
            found[style] = (found.get(style, "") + " " + text).strip()
    return found


class Told:
    """A conversation whose events go to a transcript."""

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.talk = Talk(answers or {"hello": FOX})
        self.transcript = Transcript()

    def hear(self, text: str, utterance: str = "u", *, final: bool = True) -> "Told":
        return self._tell(self.talk.hear(text, utterance, final=final))

    def tick(self, count: int = 100_000) -> "Told":
        return self._tell(self.talk.tick(count))

    def stop(self) -> "Told":
        return self._tell(self.talk.session.stop())

    def resume(self) -> "Told":
        return self._tell(self.talk.session.resume())

    def advance(self, seconds: float) -> "Told":
        return self._tell(self.talk.advance(seconds))

    def _tell(self, events: list[Event]) -> "Told":
        for event in events:
            self.transcript.tell(event)
        return self


def test_question_and_answer_stand_side_by_side() -> None:
    told = Told().hear("hello").tick()
    lines = shown(told.transcript)
    assert lines[0].split() == ["0.0", "hello", "│", *FOX.split()[: len(lines[0].split()) - 3]]
    assert lines[1].split("│")[0].split()[:2] == ["process", "0.91,"], "the decision stands below the words"
    assert lines[1].split("│")[0].strip().endswith("ms")
    assert " ".join(line.split("│")[1].strip() for line in lines).strip() == FOX


def test_a_second_question_stands_beside_its_answer_too() -> None:
    told = Told({"hello": "Hi.", "and you": "Fine."}).hear("hello").tick().hear("and you", "b").tick()
    assert [line.split()[1:] for line in shown(told.transcript) if "│" in line and line[:7].strip()] == [
        ["hello", "│", "Hi."],
        ["and", "you", "│", "Fine."],
    ]


def test_an_aside_stands_where_it_was_said_and_the_answer_goes_on_beside_it() -> None:
    told = Told().hear("hello").tick(30).hear("mhm", "b").tick()
    lines = shown(told.transcript)
    aside = next(i for i, line in enumerate(lines) if "mhm" in line)
    assert lines[aside + 1].split("│")[0].split()[0] == "ignore"
    heard_before = " ".join(line.split("│")[1].strip() for line in lines[:aside]).strip()
    heard_beside = " ".join(line.split("│")[1].strip() for line in lines[aside:]).strip()
    assert heard_before
    assert f"{heard_before} {heard_beside}" == FOX
    assert "mhm …" not in "\n".join(lines)


def test_a_dropped_partial_is_not_waited_for() -> None:
    told = Told().hear("hello").tick(30).hear("mhm", "b", final=False)
    assert any("mhm …" in line for line in shown(told.transcript))
    told.tick()
    assert not any("mhm …" in line for line in shown(told.transcript)), "it was dropped"
    told.hear("mhm and what about", "b", final=False)
    assert any("mhm and what about …" in line for line in shown(told.transcript)), "it goes on after all"


def test_what_was_cut_is_marked_and_counted() -> None:
    told = Told().hear("hello").tick(40)
    told.stop()
    found = styles(told.transcript)
    running = told.talk.session.history[-1].text
    assert found["class:heard"] == running
    assert found["class:cut"], "what had been generated and not heard"
    assert "— cut here, 1 word unheard" in found["class:note"]


def test_what_goes_on_is_no_longer_cut() -> None:
    told = Told().hear("hello").tick(40)
    told.stop().resume().tick()
    found = styles(told.transcript)
    assert "class:cut" not in found
    assert found["class:heard"] == FOX


def test_an_answer_that_was_taken_back_is_gone() -> None:
    told = Told({"what": "WRONG", "what then": "Right."})
    told.hear("what", final=False).tick(2)
    told.hear("what then").tick()
    text = told.transcript.text(90)
    assert "Right." in text
    assert "WRONG" not in text
    assert text.count("what then") == 1


def test_unheard_text_does_not_push_what_is_heard_off_the_screen() -> None:
    from duologue.core.config import SessionConfig

    told = Told({"hello": "word " * 200})
    told.talk = Talk({"hello": "word " * 200}, config=SessionConfig(heard="reported", lookahead=1500))
    told.hear("hello").tick()
    lines = shown(told.transcript)
    assert len(lines) < 10
    assert "words ahead" in lines[-1]
    told._tell(told.talk.session.heard(500))
    assert len(shown(told.transcript)) > 10, "what was heard is shown in full"


def test_remarks_have_a_line_and_are_not_repeated() -> None:
    transcript = Transcript()
    for _ in range(3):
        transcript.tell(Refused(1.0, "resume", "no answer is suspended"))
    transcript.tell(Finished(1.5, 0, "length"))
    transcript.tell(Committed(2.0, 0, "and so"))
    transcript.tell(Trimmed(3.0, 1, 100))
    transcript.tell(Refused(4.0, "typed-3", "no room in the cache"))
    assert shown(transcript) == [
        "   1.0 resume refused: no answer is suspended",
        "   2.0 the answer reached its length limit",
        "   3.0 dropped the oldest 1 turn to make room",
        "   4.0 refused: no room in the cache",
    ]


def test_the_newest_lines_are_shown_and_one_can_look_back() -> None:
    told = Told({str(i): f"Answer {i}." for i in range(9)})
    for i in range(9):
        told.hear(str(i), f"u{i}").tick()
    everything = shown(told.transcript, height=1000)
    assert len(everything) == 18
    assert shown(told.transcript, height=6) == everything[-6:]
    assert shown(told.transcript, height=6, back=4) == everything[-10:-4]
    assert shown(told.transcript, height=6, back=1000) == everything[:6], "not beyond the beginning"


@pytest.mark.parametrize("width", [1, 5, 12, 20, 40, 59, 60, 80, 110, 300])
def test_lines_fit_whatever_the_width(width: int) -> None:
    told = Told({"hello": "日本語 " * 9 + "🙂" * 30 + "unbreakable" * 9})
    told.hear("hello").tick(60).hear("mhm " + "x" * 200, "b").tick()
    told.transcript.tell(Refused(1.0, "resume", "no answer is suspended"))
    for line in told.transcript.lines(width, 1000):
        assert sum(width_of(text) for _, text in line) <= max(width, 9)


def test_a_text_of_any_length_takes_a_moment_and_a_few_lines() -> None:
    told = Told().hear("word " * 100_000)
    lines = shown(told.transcript, height=1000)
    assert len(lines) < 40
    assert any("more" in line for line in lines)


def test_nothing_shown_acts_on_the_terminal() -> None:
    told = Told({"\x1b[2Jhello\x07": "\x1b]0;title\x07\r\x9b1m \u202edlrow"}).hear("\x1b[2Jhello\x07").tick()
    text = told.transcript.text(90)
    assert text.replace("\n", "").isprintable()
    assert "[2Jhello" in text


@given(st.text(max_size=200), st.integers(1, 40))
@settings(deadline=None, max_examples=200)
def test_wrapping_keeps_every_word_and_every_width(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(width_of(line) <= max(width, 2) for line in lines)


def test_lines_keep_their_indentation_as_far_as_there_is_room() -> None:
    code = "def f(x):\n    if x:\n\treturn 1\n\n    return 2\n\n"
    assert wrapped(code, 20) == ["def f(x):", "    if x:", "    return 1", "", "    return 2"]
    assert wrapped(code, 8) == ["def", "f(x):", "    if", "x:", "    retu", "rn 1", "", "    retu", "rn 2"]
    assert wrapped("one two   three\n        four", 8) == ["one two", "three", "    four"]


def test_answers_keep_their_lines_and_indentation() -> None:
    told = Told({"code": "Here:\n\n    x = 1\n\ty = 2"}).hear("code").tick()
    shown = [line.partition("│ ")[2] for line in told.transcript.text(90).splitlines()]
    assert shown == ["Here:", "", "    x = 1", "    y = 2"]


@given(st.text(max_size=60), st.integers(0, 40))
@settings(deadline=None, max_examples=200)
def test_fitted_text_has_exactly_the_width(text: str, width: int) -> None:
    shown = visible(text).replace("\n", " ")
    assert width_of(fitted(shown, width)) == width


@given(st.text(max_size=100))
def test_visible_text_keeps_its_positions(text: str) -> None:
    assert len(visible(text)) == len(text)
    assert not set(visible(text)) & {"\x1b", "\r", "\x07", "\x9b"}


def test_widths() -> None:
    assert [width_of(text) for text in ("abc", "日本", "🙂", "é", "e\u0301", "")] == [3, 4, 2, 1, 1, 0]
    assert padded([("a", "日")], 4) == [("a", "日"), ("", "  ")]
    assert fitted("日本語", 4) == "日本"
    assert fitted("日本語", 5) == "日本 "
    assert [counted(1, "word"), counted(2, "word"), counted(0, "turn")] == ["1 word", "2 words", "0 turns"]
    assert shortened("short", 10) == "short"
    assert shortened("a b c d e f g h i j k l m n o p", 8) == "a b c  … (12 more words) … p".replace("p", " p")


def test_lines_of_text_without_spaces_break_between_characters():
    text = "你好 今天天气怎么样，明天呢"
    assert wrapped(text, 10) == ["你好 今天", "天气怎么", "样，明天呢"]
    assert all(width_of(line) <= 10 for line in wrapped(text, 10))
    assert wrapped("see GPT今天 ok", 8) == ["see GPT", "今天 ok"]


def test_words_without_spaces_are_counted():
    assert remark(Suspended(1.0, 0, "今天", "天气很好，适合出门。")) == "cut; 8 words unheard"
    assert shortened("今天天气怎么样" * 100, 40).count("660 more words") == 1
