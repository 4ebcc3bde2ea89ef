"""A listener decides while another model answers: what it reads, what that costs, and what it leaves alone."""

import dataclasses
from typing import Any

import pytest

from duologue.backends.pair import PairBackend
from duologue.backends.scripted import ScriptedBackend
from duologue.core.cache import CacheOperations, Place
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Decided, Dropped, Failed, Noticed, Promoted, Refused, Said, Suspended
from duologue.core.history import Ledger
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.core.transcript import ListenerModel
from duologue.engine.engine import Engine
from duologue.engine.trace import Trace
from duologue.errors import ContextOverflow, UsageError
from duologue.speakers.listener import Listener
from duologue.text.template import Template
from duologue.text.text_template import TextTemplate
from duologue.types import Role, Turn
from scripted import PROBE, OtherTokenizer, Talk, judged
from scripted import STATES as ALL

REPORTED = SessionConfig(heard="reported")
STORY = "Once there was a word, and then came many more of them, until it was late and all went home."


def read_by_the_listener(talk: Talk) -> str:
    """The text that is in the listener's cache, after the operations that are planned."""
    talk.tick()
    seq = talk.handle.sequences.seqs[talk.session._transcript._branch.sequence.seq]
    return talk.other.decode(talk.held(seq))


def num_calls(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every pass of `backend` from now on."""
    calls: list[int] = []
    forward = backend.forward

    def counted(batch: Any) -> Any:
        calls.append(sum(len(extend.tokens) for extend in batch))
        return forward(batch)

    monkeypatch.setattr(backend, "forward", counted)
    return calls


# ------------------------------------------------------------------------------------------------ what it reads


def test_the_listener_reads_what_was_heard_together_with_the_next_words():
    talk = Talk({"tell me a story": STORY}, config=REPORTED, listens=True)
    talk.hear("tell me a story")
    talk.run()
    talk.told(talk.session.heard(len("Once there was a wo")))
    assert "Once" not in read_by_the_listener(talk)
    talk.hear("mhm", "v")
    talk.tick()
    assert read_by_the_listener(talk).endswith("tell me a story<|im_end|>\n<|im_start|>assistant\nOnce there was a")
    talk.told(talk.session.heard(len("Once there was a word")))
    talk.hear("stop", "w")
    talk.tick()
    assert talk.turns == [("user", "tell me a story"), ("assistant", "Once there was a word")]
    talk.check_cache()


def test_what_was_read_with_ignored_words_is_not_read_again(monkeypatch: pytest.MonkeyPatch):
    talk = Talk({"tell me a story": STORY}, config=REPORTED, listens=True)
    talk.hear("tell me a story")
    talk.run()
    calls = num_calls(talk.listener, monkeypatch)
    for number, position in enumerate((21, 40, 60)):
        talk.told(talk.session.heard(position))
        talk.hear("mhm", f"v{number}")
        talk.run()
    frame = len("<<") + len("\n<user\n") + len("mhm") + 1  # closer and opener, words, probe
    opener = len("<assistant\n") + len("<\n")
    assert [calls[0] <= frame + opener + 21, calls[1] <= frame + 20, calls[2] <= frame + 20] == [True] * 3, calls
    assert len(calls) == 3, "one pass for each decision"


def test_in_silence_it_reads_before_there_are_words(monkeypatch: pytest.MonkeyPatch):
    talk = Talk({"tell me a story": STORY}, listens=True)
    talk.hear("tell me a story")
    talk.run()
    assert read_by_the_listener(talk).endswith(STORY)
    calls = num_calls(talk.listener, monkeypatch)
    talk.hear("mhm", "v")
    talk.run()
    assert sum(calls) < 30


# ------------------------------------------------------------------------------------------------ what it leaves alone


def test_listening_costs_the_speaker_nothing(monkeypatch: pytest.MonkeyPatch):
    made = []
    for words in ([], ["mhm", "radio talk", "what about the"]):
        talk = Talk({"tell me a story": STORY}, listens=True)
        calls = num_calls(talk.speaker, monkeypatch)
        talk.hear("tell me a story")
        talk.tick(12)
        for number, text in enumerate(words):
            talk.hear(text, f"v{number}", final=False)
            talk.tick(3)
        talk.run()
        made.append((calls, talk.said, talk.speaker.usage()))
    assert made[0] == made[1]


def test_both_models_make_one_pass_in_a_tick(monkeypatch: pytest.MonkeyPatch):
    talk = Talk({"tell me a story": STORY}, listens=True)
    talk.hear("tell me a story")
    talk.tick(12)
    speaker, listener = (num_calls(one, monkeypatch) for one in (talk.speaker, talk.listener))
    before = talk.trace.num_passes
    talk.hear("mhm", "v")
    talk.tick()
    assert (len(speaker), len(listener), talk.trace.num_passes - before) == (1, 1, 2)


def test_the_words_of_a_turn_are_read_once_by_each_model(monkeypatch: pytest.MonkeyPatch):
    talk = Talk({"what is it": "It is a cat."}, listens=True)
    talk.run()
    speaker, listener = (num_calls(one, monkeypatch) for one in (talk.speaker, talk.listener))
    talk.hear("what is it")
    talk.run()
    size = len("<user\nwhat is it")
    assert listener[0] == size + 1, "and the probe"
    assert sum(listener[1:]) < len("<\n<assistant\nIt is a cat.") + 2
    assert speaker[0] >= size


# ------------------------------------------------------------------------------------------------ limits


def test_what_is_too_long_for_the_listener_is_left_out_of_its_context_only():
    config = SessionConfig(max_length=4096)
    talk = Talk({}, config=config, listens=True, listener_length=512)
    for number in range(12):
        talk.hear(f"tell me story number {number}", f"u{number}")
        talk.run()
        talk.check_cache()
        assert len(talk.session._transcript._branch.sequence.items) <= 512
    assert len(talk.session.history) == 24, "nothing is left out of the conversation"
    assert talk.session._transcript._branch.first > 0
    assert "story number 11" in read_by_the_listener(talk)
    assert [e.decision.state.value for e in talk.events if isinstance(e, Decided)] == ["process"] * 12


def test_a_turn_that_the_listener_cannot_read_is_refused_and_the_conversation_goes_on():
    talk = Talk({"what is it": "It is a cat."}, listens=True, listener_length=256)
    events = talk.hear("la " * 60)
    assert [type(e).__name__ for e in events] == ["Received", "Refused", "Dropped"]
    talk.hear("what is it", "v")
    talk.run()
    assert talk.turns == [("user", "what is it"), ("assistant", "It is a cat.")]


def test_a_history_is_read_from_where_it_fits_and_edited():
    long = [Turn(Role.USER, "one " * 40), Turn(Role.ASSISTANT, "two " * 40)] * 3
    talk = Talk({}, history=long, listens=True, listener_length=1024)
    talk.run()
    talk.check_cache()
    assert 0 < talk.session._transcript._branch.first < 6
    talk.told(talk.session.edit([Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, "hi")]))
    talk.run()
    talk.check_cache()
    assert read_by_the_listener(talk).count("<|im_start|>") == 2


def test_a_full_cache_of_the_listener_costs_what_it_has_read_and_never_the_conversation():
    talk = Talk({}, listens=True)
    for number in range(4):
        talk.hear(f"tell me story number {number}", f"u{number}")
        talk.run()
    listener = talk.listener
    listener._info = dataclasses.replace(listener.info, capacity=listener.usage().kv_entries + 10)
    talk.hear("tell me another story", "v")
    talk.run()
    assert talk.turns[-2][1] == "tell me another story"
    assert not [e for e in talk.events if isinstance(e, Refused)]
    assert len(talk.session.history) == 10
    talk.check_cache()


def test_a_probe_has_to_fit_into_the_listeners_context():
    template = Template.from_tokenizer(OtherTokenizer())
    with pytest.raises(ContextOverflow, match="context of 128"):
        Listener(template, dataclasses.replace(PROBE, tokens=tuple(range(40))), max_length=128)


# --------------------------------------------------------------------------------------------- answers from elsewhere


class Told:
    """A conversation whose answers the test gives."""

    def __init__(self, **options: Any) -> None:
        tokenizer = OtherTokenizer()
        template = Template.from_tokenizer(tokenizer)

        def judge(ids: list[int]) -> tuple[float, ...]:
            words = tokenizer.decode([token for token in ids if token < 258]).rpartition("user\n")[2]
            return tuple(0.91 if state is judged(words) else 0.03 for state in ALL)

        def speak(ids: list[int]) -> int:
            raise AssertionError("nothing is drawn")

        self.backend = ScriptedBackend(speak, judge, vocab_size=258, num_added=7)
        self.session = Listener(template, PROBE, **options)
        self.engine = Engine(self.backend, clock=lambda: self.session.now)
        self.trace = Trace()
        self.talk = self.engine.open(self.session, sink=self.trace)
        self.ledger = Ledger(options.get("history", ()))
        self.events: list[Any] = []

    def run(self) -> list[Any]:
        while self.engine.tick():
            pass
        new = list(self.talk.new_events())
        for event in new:
            self.ledger(event)
        self.events += new
        assert self.ledger.history == self.session.history
        return new

    def hear(self, text: str, name: str = "u", *, final: bool = True) -> list[Any]:
        self.talk.hear(text, utterance=name, final=final)
        return self.run()

    def say(self, text: str, answer: int = 0) -> list[Any]:
        self.talk.say(text, answer=answer)
        return self.run()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(turn.role.value, turn.text) for turn in self.session.history]


def test_it_is_told_what_the_assistant_says_and_decides():
    told = Told(system="be terse")
    [promoted] = [e for e in told.hear("what is it") if isinstance(e, Promoted)]
    assert told.session.question == ([Turn(Role.USER, "what is it")], "")
    assert told.session.template.system == "be terse"
    told.say("  It is", promoted.answer)
    assert [e.reason for e in told.hear("mhm", "v") if isinstance(e, Dropped)] == ["ignore"]
    told.say(" a cat, and", promoted.answer)
    [cut] = [e for e in told.hear("wait, what is that", "w") if isinstance(e, Suspended)]
    assert (cut.heard, cut.unheard) == ("It is a cat,", " and")
    assert told.say(" late", promoted.answer) == [], "this answer was cut"
    told.say("That is a dog.", 1)
    told.talk.finish(answer=1)
    told.run()
    assert told.turns == [
        ("user", "what is it"),
        ("assistant", "It is a cat,"),
        ("user", "wait, what is that"),
        ("assistant", "That is a dog."),
    ]
    told.engine.close()
    assert told.backend.usage().num_seqs == 0


def test_a_cut_answer_goes_on_from_what_was_heard():
    told = Told(config=REPORTED)
    told.hear("tell me a story")
    told.say("Once there was a word and")
    told.talk.heard(10)
    told.hear("stop", "v")
    told.talk.resume()
    assert [e.text for e in told.run() if isinstance(e, Said)] == [" was a word and"]
    assert told.session.question == ([Turn(Role.USER, "tell me a story")], "Once there was a word and")
    told.say(" another.")
    told.talk.finish(answer=0)
    told.talk.heard(34)
    assert any(isinstance(e, Committed) for e in told.run())
    assert told.turns[-1] == ("assistant", "Once there was a word and another.")


def test_an_answer_that_is_taken_back_is_asked_for_again_with_the_whole_turn():
    told = Told(policy=Policy(p_sure=1.1))
    told.hear("what is it", final=False)
    told.say("It is")
    told.hear("what is it made of", final=False)
    assert told.session.question == ([Turn(Role.USER, "what is it made of")], "")
    assert told.session.running is not None
    assert told.session.running.id == 1
    assert not told.session.running.text


def test_an_answer_has_a_limit_and_what_comes_later_is_not_said():
    told = Told(config=SessionConfig(max_answer=8))
    told.hear("what is it")
    told.say("la " * 100)
    answer = told.events[-1]
    assert isinstance(answer, Committed)
    assert 8 <= len(answer.text) < 50
    assert told.say("more") == []


def test_a_speaker_that_fails_before_the_first_word_leaves_the_question_open():
    told = Told()
    told.hear("what is it")
    told.talk.notice("busy", answer=0)
    told.talk.fail_answer("nobody there", answer=0)
    new = told.run()
    assert [(e.text) for e in new if isinstance(e, Noticed)] == ["busy"]
    assert [(e.reason, e.unanswered) for e in new if isinstance(e, Failed)] == [("nobody there", True)]
    assert told.turns == [("user", "what is it")]
    told.talk.respond()
    told.run()
    assert told.session.question == ([Turn(Role.USER, "what is it")], "")
    told.say("It is a cat.", 1)
    told.talk.finish(answer=1)
    told.run()
    assert told.turns == [("user", "what is it"), ("assistant", "It is a cat.")]


def test_a_speaker_that_fails_later_has_said_what_it_said():
    told = Told()
    told.hear("what is it")
    told.say("It is a")
    told.talk.fail_answer("the line is cut", answer=0)
    told.run()
    assert told.turns == [("user", "what is it"), ("assistant", "It is a")]
    told.hear("and what is that", "v")
    told.say("A dog.", 1)
    told.talk.finish(answer=1)
    told.run()
    assert told.turns[-1] == ("assistant", "A dog.")


def test_long_conversations_are_kept_within_the_speakers_limit():
    told = Told(config=SessionConfig(max_length=512), max_length=512)
    for number in range(20):
        told.hear(f"tell me story number {number}", f"u{number}")
        told.say(STORY, number)
        told.talk.finish(answer=number)
        told.run()
    assert 2 <= len(told.session.history) < 40
    assert told.turns[-2:] == [("user", "tell me story number 19"), ("assistant", STORY)]


def test_only_a_speaker_elsewhere_is_spoken_for():
    talk = Talk(listens=True)
    with pytest.raises(UsageError, match="own model answers"):
        talk.session.say("hello", answer=0)
    with pytest.raises(UsageError, match="need a listener"):
        Session(TextTemplate(), PROBE)


@pytest.mark.parametrize("text", ["Hello there, you  are\n\n here…  ", "\x00a\x00", "👩‍👩‍👧 🎉日本語 é", ""])
def test_text_from_elsewhere_is_kept_as_it_is(text: str):
    template = TextTemplate()
    detokenizer = template.detokenizer()
    assert "".join(map(detokenizer.push, template.encode(text))) + detokenizer.flush() == text


def test_a_pair_of_backends_is_broken_by_neither(monkeypatch: pytest.MonkeyPatch):
    talk = Talk(listens=True)
    talk.hear("tell me a story")
    talk.tick(5)
    assert isinstance(talk.backend, PairBackend)
    before = talk.backend.usage()
    talk.hear("mhm", "v")

    def broken(batch: Any) -> Any:
        raise RuntimeError("oh")

    with monkeypatch.context() as patch:
        patch.setattr(talk.speaker, "forward", broken)
        plan = talk.session.plan()
        talk.handle.sequences.apply(plan.ops)
        with pytest.raises(RuntimeError, match="oh"):
            talk.backend.forward(talk.handle.sequences.renamed(plan.batch))
    assert talk.backend.usage().kv_entries == before.kv_entries
    talk.session.lose(plan.batch)
    talk.run()
    assert [e.reason for e in talk.events if isinstance(e, Dropped)] == ["ignore"]


# ------------------------------------------------------------------------------------------- two compactions


@pytest.mark.parametrize(
    ("own_room", "is_awaited", "fed"),
    [(150, False, [128, 22]), (0, True, [20])],  # an awaited one has the room of the words that wait for it
)
def test_two_compactions_share_the_room_of_one(own_room, is_awaited, fed):
    cache = CacheOperations(chunk=128)
    speaker, listener = (cache.open(range(200), place) for place in (Place.SPEAKER, Place.LISTENER))
    cache.room, cache.room_to_compact = 20, own_room
    cache.feed_compaction(listener, is_awaited=False)
    cache.feed_compaction(speaker, is_awaited=is_awaited)
    assert [len(extend.tokens) for extend in cache.flush().batch] == fed


def test_conversations_of_two_models_outlive_each_other_s_compactions():
    config = SessionConfig(max_length=512, max_answer=200)
    talk = Talk({}, config=config, listens=True, listener_length=512)
    listener = ListenerModel(Template.from_tokenizer(talk.other), 512)
    sessions = [Session(talk.template, PROBE, config=config, listener=listener) for _ in range(3)]
    engine = Engine(talk.backend, max_tokens_per_pass=32)
    handles = [engine.open(session) for session in sessions]
    for number in range(20):
        for handle in handles:
            handle.hear(
                f"tell me about thing number {number} and say more than that", utterance=f"u{number}", final=True
            )
        while engine.tick():
            pass
    assert engine.totals.failed == 0
    assert all(len(session.history) < 40 and session.history[-1].role is Role.ASSISTANT for session in sessions)
    engine.close()
