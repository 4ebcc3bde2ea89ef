"""The parts of the voice, each by itself: clauses, marks, the player, the segmenter, what Whisper is believed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from duologue.core.policy import Policy, Thresholds
from duologue.errors import BadData, UsageError
from duologue.pictures import new_figure
from duologue.types import InputState
from duologue.voice.clauses import Clauses
from duologue.voice.engines import whisper
from duologue.voice.engines.interfaces import Mark, Speech
from duologue.voice.engines.piper_program import word_ends
from duologue.voice.engines.whisper import Decoded, WhisperRecognition, agreed, believed, quietest, unlooped
from duologue.voice.marks import estimated, trimmed
from duologue.voice.picture import _draw_row, when_played
from duologue.voice.player import DUCK_DB, Piece, Player, Position
from duologue.voice.policy import by_voice
from duologue.voice.segmenter import Segmenter, Sensitivity
from duologue.voice.sound import RATE, Samples, from_pcm16, gain, level_db, silence, to_pcm16
from voiced import in_loop

TEXT = (
    "Well, the Moon is 3.5 billion years old, more or less. It has no air; there is no wind – and no sound!\n\n"
    "1. Its far side is never seen from here, which is why people made up stories about it for a long, long time "
    "without knowing anything at all of what there is to see on it, and some still do. The end."
)


def cut(text: str, sizes: list[int], *, buffer_low: bool = False) -> list[str]:
    """What becomes of `text` that grows by so many characters at a time."""
    clauses, parts, at = Clauses(), [], 0
    for size in [*sizes * len(text), len(text)]:
        if at < len(text):
            clauses.add(at, text[at : at + size])
            at += len(text[at : at + size])
        while (clause := clauses.next(buffer_low=buffer_low)) is not None:
            assert clause.text == text[clause.start : clause.end]
            parts.append(clause.text)
    clauses.is_finished = True
    while (clause := clauses.next(buffer_low=False)) is not None:
        parts.append(clause.text)
    return parts


@pytest.mark.parametrize("sizes", [[1], [4, 1, 7], [1000]])
@pytest.mark.parametrize("buffer_low", [False, True])
def test_clauses_are_the_whole_text_in_order_and_none_is_too_long(sizes: list[int], buffer_low: bool) -> None:
    parts = cut(TEXT, sizes, buffer_low=buffer_low)
    assert "".join(parts) == TEXT
    assert max(map(len, parts)) <= 100
    assert all(part[-1].isspace() for part in parts[:-1]), "between words"


def test_the_first_clause_is_short_and_the_others_are_sentences() -> None:
    parts = cut(TEXT, [1000])
    assert len(parts[0]) <= 45
    assert parts[1] == "more or less. It has no air; there is no wind – and no sound!\n\n"


def test_a_number_is_not_cut_in_two() -> None:
    assert not any(part.rstrip().endswith("3.") for part in cut(TEXT, [1]))


def test_a_clause_is_no_longer_than_there_is_time_for() -> None:
    clauses = Clauses()
    clauses.add(0, "Well, ")
    assert clauses.next(buffer_low=False) is None
    clauses.add(6, TEXT)
    assert clauses.next(buffer_low=False) is not None
    clause = clauses.next(buffer_low=False, most=50)
    assert clause is not None
    assert len(clause.text) <= 50
    clause = clauses.next(buffer_low=False, most=0)
    assert clause is not None
    assert 10 < len(clause.text) <= 30


def test_text_that_begins_elsewhere_replaces_what_waits() -> None:
    clauses = Clauses()
    clauses.add(0, "one two")
    clauses.add(20, "three four five. ")
    clause = clauses.next(buffer_low=False)
    assert clause is not None
    assert (clause.start, clause.text) == (20, "three four five. ")


def test_a_low_buffer_takes_two_words_and_not_one() -> None:
    clauses = Clauses()
    clauses.add(0, "Yes, of course. ")
    assert clauses.next(buffer_low=True) is not None
    clauses.add(16, "The ")
    assert clauses.next(buffer_low=True) is None
    clauses.add(20, "cat ")
    clause = clauses.next(buffer_low=True)
    assert clause is not None
    assert clause.text == "The cat "


def tone(count: int, *, level: float = 0.5) -> Samples:
    return np.full(count, level, np.float32)


def test_marks_grow_and_the_last_one_is_the_end() -> None:
    samples = np.concatenate([silence(1000), tone(20_000), silence(3000)])
    speech = estimated("One, twenty-seven sheep.", samples, 24_000)
    ends = [mark.sample for mark in speech.marks]
    assert [mark.position for mark in speech.marks] == [4, 17, 24]
    assert ends == sorted(ends)
    assert 1000 < ends[0] < ends[1] < 21_000, "words end while there is sound"
    assert ends[-1] == 24_000


def test_silence_at_the_ends_is_shortened_and_marks_move_along() -> None:
    samples = np.concatenate([silence(5000), tone(10_000), silence(9000)])
    speech = trimmed(Speech(samples, 10_000, (Mark(7000, 3), Mark(24_000, 7))), before=0.1, behind=0.2)
    assert len(speech.samples) == 1000 + 10_000 + 2000
    assert speech.marks == (Mark(3000, 3), Mark(13_000, 7))


def test_too_little_silence_is_filled_up() -> None:
    speech = trimmed(Speech(tone(1000), 10_000, (Mark(1000, 3),)), before=0.1, behind=0.2)
    assert len(speech.samples) == 3000


class Phoneme:
    def __init__(self, phoneme: str, num_samples: int) -> None:
        self.phoneme = phoneme
        self.num_samples = num_samples


class Chunk:
    def __init__(self, phonemes: str | None, length: int) -> None:
        self.phoneme_alignments = None if phonemes is None else [Phoneme(p, 10) for p in phonemes]
        self.audio_int16_array = silence(length)


def test_ends_of_words_come_from_phonemes_where_words_are_spoken_as_written() -> None:
    chunks = [Chunk("^wʌn tuː.$", 110), Chunk("^θɹiː$", 60)]
    assert word_ends(chunks, 3) == [40, 80, 110 + 50]
    assert word_ends(chunks, 4) is None, "a number was said as two words"
    assert word_ends([Chunk(None, 100)], 1) is None


def played(player: Player, count: int, step: int = 240) -> tuple[Samples, list[Position]]:
    parts, heard = [], []
    for _ in range(count // step):
        samples, positions = player.pull(step)
        parts.append(samples)
        heard += positions
    return np.concatenate(parts), heard


def test_what_is_played_is_told_when_it_has_been() -> None:
    player = Player(24_000)
    player.add(Piece(3, tone(2400), (Mark(1000, 4), Mark(2400, 9))))
    player.add(Piece(3, tone(2400), (Mark(2400, 15),)))
    samples, heard = played(player, 960)
    assert heard == []
    samples, heard = played(player, 240)
    assert heard == [Position(3, 4)]
    samples, heard = played(player, 6000)
    assert heard == [Position(3, 9), Position(3, 15)]
    assert not samples[4000:].any()
    assert player.num_out == 7200
    assert not player.is_playing


def test_ducking_is_twelve_decibels_and_smooth_both_ways() -> None:
    player = Player(24_000)
    player.add(Piece(0, tone(48_000), ()))
    played(player, 2400)
    player.duck(True)
    down, _ = played(player, 4800)
    assert 20 * np.log10(down[-1] / 0.5) == pytest.approx(DUCK_DB, abs=0.1)
    assert np.flatnonzero(down < 0.5 * gain(DUCK_DB) * 1.01)[0] / 24_000 < 0.05
    player.duck(False)
    up, _ = played(player, 9600)
    assert up[-1] == pytest.approx(0.5)
    assert np.abs(np.diff(np.concatenate([down, up]))).max() < 0.002


def test_a_cut_fades_within_twenty_milliseconds_and_forgets() -> None:
    player = Player(24_000)
    player.add(Piece(0, tone(48_000), (Mark(4000, 5),)))
    played(player, 2400)
    player.cut()
    after, heard = played(player, 4800)
    assert np.flatnonzero(after)[-1] <= 480
    assert np.abs(np.diff(after)).max() < 0.01
    assert heard == []
    player.add(Piece(1, tone(2400), ()))
    assert played(player, 2400)[0].max() == pytest.approx(0.5)


def test_held_it_is_silent_and_loses_nothing() -> None:
    player = Player(24_000)
    player.add(Piece(0, tone(2400), ()))
    player.is_held = True
    assert not played(player, 4800)[0].any()
    player.is_held = False
    assert np.count_nonzero(played(player, 4800)[0]) >= 2398


def sawtooth(count: int) -> Samples:
    """Every sample says where it is: between 0.4 and 0.6, so that volumes can be read off."""
    return (0.4 + 0.2 * np.arange(count) / count).astype(np.float32)


def test_paused_it_fades_and_goes_on_from_the_beginning_of_the_word_it_fell_silent_in() -> None:
    player = Player(24_000)
    sound = sawtooth(48_000)
    player.add(Piece(0, sound, (Mark(9600, 4), Mark(24_000, 9), Mark(48_000, 20))))
    before, heard = played(player, 12_000)
    assert heard == [Position(0, 4)]
    player.duck(True)
    player.pause(True)
    paused, heard = played(player, 24_000)
    assert heard == [], "the ledger stands still"
    assert not paused[480:].any(), "silent within 20 ms"
    assert np.abs(np.diff(np.concatenate([before[-1:], paused]))).max() < 0.002, "no click"
    assert player.is_playing
    player.duck(False)
    player.pause(False)
    after, heard = played(player, 38_400)
    assert np.abs(np.diff(after[:-200])).max() < 0.002, "no click"
    assert after[720:-200] == pytest.approx(sound[9600 + 720 : -200]), "from the end of the word before, at full volume"
    assert heard == [Position(0, 9), Position(0, 20)]
    assert not player.is_playing


def test_a_pause_that_is_over_before_it_is_silent_goes_on_where_it_is() -> None:
    player = Player(24_000)
    sound = sawtooth(24_000)
    player.add(Piece(0, sound, (Mark(2400, 4), Mark(24_000, 9))))
    before, _ = played(player, 4800)
    player.pause(True)
    during, _ = played(player, 240)
    player.pause(False)
    after, _ = played(player, 4800)
    assert np.abs(np.diff(np.concatenate([before[200:], during, after]))).max() < 0.002
    assert after[-1] == pytest.approx(sound[4800 + 240 + 4800 - 1])


def test_a_cut_while_it_fades_into_a_pause_goes_on_to_fade() -> None:
    player = Player(24_000)
    player.add(Piece(0, tone(48_000), ()))
    played(player, 4800)
    player.pause(True)
    during, _ = played(player, 240)
    player.cut()
    after, _ = played(player, 4800)
    assert during[-1] == pytest.approx(0.25)
    assert np.abs(np.diff(np.concatenate([during, after]))).max() < 0.002
    assert not after[480:].any()


def test_where_words_are_long_or_unknown_a_pause_is_followed_by_a_second_of_what_was_played() -> None:
    player = Player(24_000)
    sound = sawtooth(120_000)
    player.add(Piece(0, sound, (Mark(120_000, 60),)))
    played(player, 48_000)
    player.pause(True)
    played(player, 4800)
    player.pause(False)
    after, _ = played(player, 4800)
    assert after[-1] == pytest.approx(sound[48_000 + 480 - 24_000 + 4800 - 1], abs=1e-4)


def test_what_is_cut_in_a_pause_stays_silent_and_the_next_is_heard() -> None:
    player = Player(24_000)
    player.add(Piece(0, tone(48_000), (Mark(4800, 5), Mark(48_000, 20))))
    played(player, 9600)
    player.duck(True)
    player.pause(True)
    played(player, 4800)
    player.cut()
    after, heard = played(player, 4800)
    assert not after.any()
    assert heard == []
    player.add(Piece(1, tone(2400), ()))
    assert not player.is_subdued
    assert played(player, 2400)[0].max() == pytest.approx(0.5)


def test_speech_begins_with_likely_frames_and_ends_with_an_unlikely_one() -> None:
    segmenter = Segmenter(Sensitivity(num_frames=2, sure=1.0))
    assert [segmenter.push(p) for p in (0.1, 0.7, 0.2, 0.7, 0.8)] == [False, False, False, False, True]
    assert (segmenter.is_speech, segmenter.num_quiet) == (True, 0)
    segmenter.push(0.4)  # lower than what begins it, but not low enough to end it
    assert segmenter.is_speech
    segmenter.push(0.1)
    segmenter.push(0.1)
    assert (segmenter.is_speech, segmenter.num_quiet) == (False, 2)


def test_a_frame_that_is_sure_begins_it_alone() -> None:
    assert Segmenter(Sensitivity(num_frames=2)).push(0.95)
    assert not Segmenter(Sensitivity(num_frames=2)).push(0.85)
    assert Segmenter().push(0.5), "unless told otherwise, a likely one does"


def test_sensitivity_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError):
        Sensitivity(begins_at=0.3, ends_below=0.5)


LOUD, QUIET = tone(RATE, level=0.1), tone(RATE, level=0.001)


@pytest.mark.parametrize(
    ("decoded", "window", "text"),
    [
        (Decoded("What is a cat?", 0.1, -0.2), LOUD, "What is a cat?"),
        (Decoded("Thank you.", 0.1, -0.2), LOUD, "Thank you."),
        (Decoded("Thank you.", 0.1, -0.2), QUIET, ""),
        (Decoded("Thank you.", 0.5, -0.2), LOUD, ""),
        (Decoded("What is a cat?", 0.1, -0.2), QUIET, "What is a cat?"),
        (Decoded("What is a cat?", 0.9, -0.9), LOUD, ""),
        (Decoded("Gibberish it is", 0.1, -1.4), LOUD, ""),
        (Decoded("...", 0.1, -0.1), LOUD, ""),
        (Decoded("and so on " * 12, 0.1, -0.1), LOUD, ""),
        (Decoded("New York, New York", 0.1, -0.2), tone(2 * RATE, level=0.1), "New York, New York"),
        (Decoded("New York, New York", 0.1, -0.7), tone(2 * RATE, level=0.1), "New York,"),
        (
            Decoded("Wait, can you tell? Wait, can you tell", 0.1, -0.2),
            tone(2 * RATE, level=0.1),
            "Wait, can you tell?",
        ),
    ],
)
def test_words_that_come_from_nothing_are_not_believed(decoded: Decoded, window: Samples, text: str) -> None:
    assert believed(decoded, window) == text


@pytest.mark.parametrize(
    ("text", "once"),
    [
        ("Wait, can you tell? Wait, can you tell", "Wait, can you tell?"),
        ("Wait, can you tell me what? Wait, can you", "Wait, can you tell me what?"),
        ("why do people care about a pot of pot of pot of", "why do people care about a pot of"),
        ("Once a username. Once a username. Once a", "Once a username."),
        ("what is what", "what is what"),
        ("the cat and the dog", "the cat and the dog"),
        ("Right? Right Right", "Right?"),
        ("", ""),
    ],
)
def test_words_that_begin_again_are_said_once(text: str, once: str) -> None:
    assert unlooped(text, is_sure=False) == once


@pytest.mark.parametrize(
    ("text", "believed"),
    [
        ("New York, New York", "New York, New York"),
        ("one two one two", "one two one two"),
        ("No, no, no", "No, no, no"),
        ("wait a minute I said wait a minute", "wait a minute I said wait a minute"),
        ("a pot of pot of pot of pot of", "a pot of"),
        ("Right? Right Right Right", "Right?"),
        ("", ""),
    ],
)
def test_words_that_are_sure_may_be_said_twice_and_not_again_and_again(text: str, believed: str) -> None:
    assert unlooped(text, is_sure=True) == believed


def test_what_two_decodings_agree_on_is_given_but_for_the_last_two_words() -> None:
    assert agreed("tell me about the", "tell me about the moon please") == "tell me"
    assert agreed("tell me", "sell me a") == ""
    assert agreed("", "tell") == ""


def test_a_window_is_cut_where_it_is_quietest() -> None:
    window = tone(6 * RATE)
    window[4 * RATE : 4 * RATE + 4000] = 0.01
    assert abs(quietest(window, from_sample=2 * RATE) - (4 * RATE + 2000)) < 2000
    window[RATE : RATE + 4000] = 0.0
    assert quietest(window, from_sample=2 * RATE) > 2 * RATE, "not before that"


@in_loop
async def test_a_recording_that_comes_at_once_is_decoded_in_windows_of_the_usual_length() -> None:
    windows: list[int] = []

    class Decoder:
        async def decode(self, window: Samples, before: str, given: str) -> Decoded:
            windows.append(len(window))
            return Decoded(f"part {len(windows)}", 0.0, 0.0)

    recognition = WhisperRecognition(Decoder())  # type: ignore[arg-type]
    text = await recognition.hear(tone(45 * RATE), last=True)
    assert sum(windows) == 45 * RATE
    assert max(windows) <= 10 * RATE
    assert text == " ".join(f"part {n + 1}" for n in range(len(windows)))


def test_samples_survive_being_sixteen_bits() -> None:
    samples = np.linspace(-1, 1, 1001, dtype=np.float32)
    assert np.abs(from_pcm16(to_pcm16(samples)) - samples).max() < 1e-4
    assert to_pcm16(np.array([2.0], np.float32)) == to_pcm16(np.array([1.0], np.float32))
    with pytest.raises(BadData):
        from_pcm16(b"\0")
    assert level_db(tone(100)) == pytest.approx(-6.02, abs=0.01)
    assert level_db(silence(0)) == -120


def test_over_an_answer_doubtful_words_do_not_cut_and_clear_ones_do() -> None:
    thresholds = Thresholds(process=0.3, incomplete=0.3, ignore=0.3, stop=0.3)
    policy = by_voice(Policy(idle=thresholds, speaking=thresholds))
    states = (InputState.PROCESS, InputState.IGNORE)

    def decided(p: float, *, speaking: bool) -> InputState:
        return policy.decide(states, (p, 1 - p), speaking=speaking).state

    assert decided(0.6, speaking=False) is InputState.PROCESS
    assert decided(0.6, speaking=True) is InputState.IGNORE
    assert decided(0.9, speaking=True) is InputState.PROCESS
    assert policy.settle_s > 2
    assert policy.patience_s == pytest.approx(2.0)


def test_a_clause_is_played_until_the_cut_and_put_off_by_a_pause() -> None:
    clause = {"type": "synthesised", "text": "a", "seconds": 2.0}
    rows = [{"at": 1.0, **clause}, {"at": 1.5, **clause, "text": "b"}, {"at": 2.0, "type": "ducked"}]
    assert when_played(rows) == [("a", 1.0, 3.0), ("b", 3.0, 5.0)]
    rows += [{"at": 2.0, "type": "yielded"}, {"at": 2.5, **clause, "text": "c"}, {"at": 4.0, "type": "came_back"}]
    assert when_played(rows) == [("a", 1.0, 5.0), ("b", 5.0, 7.0), ("c", 7.0, 9.0)]
    rows += [{"at": 6.0, "type": "yielded"}, {"at": 6.5, "type": "cut"}, {"at": 7.0, **clause, "text": "d"}]
    assert [span for span in when_played(rows) if span[2] > span[1]] == [
        ("a", 1.0, 5.0),
        ("b", 5.0, 6.0),
        ("d", 7.0, 9.0),
    ]


def test_what_is_said_at_the_end_of_a_row_is_written_within_it() -> None:
    words = "and a popular choice among people who like coffee is the one that we had on Sunday morning"
    rows = [
        {"at": 21.0, "type": "synthesised", "text": words, "seconds": 6.0},
        {"at": 27.5, "type": "synthesised", "text": words, "seconds": 5.0},
        *({"at": at, "type": "decided", "text": words, "state": "process", "p": 0.98} for at in (28.0, 29.0, 29.9)),
    ]
    figure = new_figure(16.5, 5.2)
    quiet = np.arange(0.0, 30.0, 0.005), np.zeros(6000), np.zeros(6000)
    _draw_row(figure, (quiet, quiet), rows, 0.0, 30.0)
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_window_extent()
        for text in axes.texts:
            written = text.get_window_extent()
            assert box.x0 <= written.x0
            assert written.x1 <= box.x1 + 5, text.get_text()
    levels = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len({round(level.y0) for level in levels}) == len(levels) == 3, "none covers another"


def test_a_recogniser_that_is_downloaded_can_be_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: str, *, revision: str | None, **options: object) -> None:
        raise ValueError(f"asked for {model}, {revision}")

    monkeypatch.setattr(whisper, "library", lambda name: SimpleNamespace(WhisperModel=refuse))
    with pytest.raises(UsageError, match="asked for owner/model, 1a2b"):
        whisper.WhisperRecogniser("owner/model", revision="1a2b")
    for local in (None, str(tmp_path)):
        with pytest.raises(UsageError, match="downloaded from the hub"):
            whisper.WhisperRecogniser(local, revision="1a2b")


MANDARIN = (
    "好的，我来介绍一下北京。北京是中国的首都，有三千多年的历史，那里有故宫、天坛、颐和园和长城等著名景点，"
    "每年吸引着数以百万计的游客前来参观游览并且留下非常美好而又难忘的回忆与照片还有各种各样的纪念品带回家去送给亲朋好友们。"
    "冬天“有点冷”！别忘了带外套"
)


@pytest.mark.parametrize("sizes", [[1], [4, 1, 7], [1000]])
@pytest.mark.parametrize("buffer_low", [False, True])
def test_clauses_of_text_without_spaces(sizes: list[int], buffer_low: bool) -> None:
    parts = cut(MANDARIN, sizes, buffer_low=buffer_low)
    assert "".join(parts) == MANDARIN
    assert max(map(len, parts)) <= 33, "a character takes as long as three letters"
    assert not any(part[0] in "，。！”" for part in parts), "marks belong to the word before them"


def test_marks_of_text_without_spaces() -> None:
    text = "你好，北京"
    speech = estimated(text, np.full(12_000, 0.5, np.float32), 24_000)
    assert [mark.position for mark in speech.marks] == [1, 3, 4, 5]
    times = [mark.sample for mark in speech.marks]
    assert times == sorted(times)
    assert times[2] - times[1] > times[1] - times[0], "a pause follows the comma"


def test_whisper_agrees_on_characters_where_there_are_no_spaces() -> None:
    assert agreed("今天天气真", "今天天气怎么样") == "今天"
    assert unlooped("谢谢你谢谢你谢谢你谢谢你", is_sure=False) == "谢谢你"
