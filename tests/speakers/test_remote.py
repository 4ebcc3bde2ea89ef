"""Conversations whose answers come from an endpoint: well-behaved, slow, broken, absent, and our own."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from duologue.backends.scripted import ScriptedBackend
from duologue.core import events as e
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.speakers.endpoint import Endpoint
from duologue.speakers.listener import Listener
from duologue.speakers.remote import RemoteSpeaker
from duologue.text.template import Template
from duologue.types import Role, Turn
from endpoint import Answer, Asked, StandIn, refuses, row, says, standing_in
from scripted import PROBE, STATES, OtherTokenizer, judged
from serving import scripted_model, serving

SECONDS = 20.0  # for anything that is waited for


def listening_backend() -> ScriptedBackend:
    """A scripted model that judges words."""
    tokenizer = OtherTokenizer()

    def judge(ids: list[int]) -> tuple[float, ...]:
        words = tokenizer.decode([token for token in ids if token < 258]).rpartition("user\n")[2]
        return tuple(0.91 if state is judged(words) else 0.03 for state in STATES)

    def speak(ids: list[int]) -> int:
        raise AssertionError("nothing is drawn")

    return ScriptedBackend(speak, judge, vocab_size=258, num_added=7)


class Talk:
    """A conversation with a remote speaker, in real time."""

    def __init__(self, handle: Handle, speaker: RemoteSpeaker) -> None:
        self.handle = handle
        self.speaker = speaker
        self.events: list[e.Event] = []

    def hear(self, text: str, name: str = "u", *, final: bool = True) -> None:
        self.handle.hear(text, utterance=name, final=final)

    async def until(self, kind: type[e.Event], is_it: Callable[[Any], bool] = lambda event: True) -> Any:
        """The next event of that kind."""
        async with asyncio.timeout(SECONDS):
            async for event in self.handle.events():
                self.events.append(event)
                if isinstance(event, kind) and is_it(event):
                    return event
        raise AssertionError("the conversation ended")

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(turn.role.value, turn.text) for turn in self.handle.session.history]


def converse(
    use: Callable[[Talk, StandIn], Awaitable[None]],
    *answers: Answer,
    early_tokens: int = 256,
    policy: Policy | None = None,
    config: SessionConfig | None = None,
    history: tuple[Turn, ...] = (),
    url: str | None = None,
    **options: Any,
) -> None:
    """Run `use` with a conversation, and the stand-in that answers in it with `answers`."""

    async def run() -> None:
        async with standing_in(*answers) as stand_in:
            endpoint = Endpoint(url or stand_in.url, "a-model", **{"most_silence": SECONDS, **options})
            speaker = RemoteSpeaker(endpoint, early_tokens=early_tokens, system=None)
            backend = listening_backend()
            template = Template.from_tokenizer(OtherTokenizer())
            async with Engine(backend, speaker=speaker) as engine:
                session = Listener(template, PROBE, policy=policy, config=config, history=history)
                talk = Talk(engine.open(session), speaker)
                await use(talk, stand_in)
                talk.handle.close()
            assert backend.usage().num_seqs == 0

    asyncio.run(run())


async def and_waits(asked: Asked) -> None:
    """Begins to answer, and then waits until the request is closed."""
    await asked.begin()
    await asked.say("Once there was a word, and", end=None)
    await asked.until_closed()


# ------------------------------------------------------------------------------------------------ what works


def test_an_answer_is_asked_for_with_the_history_as_it_was_heard():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        committed = await talk.until(e.Committed)
        assert committed.text == "It is a cat."
        assert stand_in.asked[0].messages == [("user", "hello"), ("assistant", "Hi."), ("user", "what is it")]
        assert stand_in.asked[0].headers["authorization"] == "Bearer secret-key"
        assert talk.turns[-2:] == [("user", "what is it"), ("assistant", "It is a cat.")]
        assert (talk.speaker.totals.requests, talk.speaker.totals.failures) == (1, 0)

    history = (Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, "Hi."))
    converse(use, says("It is", " a cat", "."), history=history, key="secret-key")


def test_a_cut_closes_the_request_and_the_next_one_knows_what_was_heard():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("tell me a story")
        await talk.until(e.Said)
        talk.hear("mhm", "v")
        await talk.until(e.Dropped)
        assert not stand_in.asked[0].closed.is_set()
        talk.hear("wait, what is that", "w")
        cut = await talk.until(e.Suspended)
        assert cut.heard == "Once there was a word,"
        async with asyncio.timeout(SECONDS):
            await stand_in.asked[0].closed.wait()
        await talk.until(e.Committed)
        assert stand_in.asked[1].messages == [
            ("user", "tell me a story"),
            ("assistant", "Once there was a word,"),
            ("user", "wait, what is that"),
        ]

    converse(use, and_waits, says("A dog."))


@pytest.mark.parametrize("continues", [True, False])
def test_a_cut_answer_goes_on_where_it_was(continues: bool):
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("tell me a story")
        await talk.until(e.Said)
        talk.hear("stop", "v")
        await talk.until(e.Suspended)
        talk.handle.resume()
        committed = await talk.until(e.Committed)
        assert committed.text == "Once there was a word, and another."
        begun = [text for role, text in stand_in.asked[1].messages if role == "assistant"]
        assert begun == ["Once there was a word, and"]
        assert ("continue_final_message" in stand_in.asked[1].body) is continues
        assert any(isinstance(event, e.Noticed) for event in talk.events) is not continues

    converse(use, and_waits, says(" another."), continues=continues)


def test_a_prepared_answer_is_thrown_away_counted_and_bounded():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        said = "what is"
        for number, more in enumerate((" it", " made of", " in there")):
            said += more
            talk.hear(said, final=False)
            await talk.until(e.Promoted)
            async with asyncio.timeout(SECONDS):
                while len(stand_in.asked) <= min(number, 1) or talk.speaker.totals.tokens <= min(number, 1):
                    await asyncio.sleep(0.001)
        assert len(stand_in.asked) == 2, "two of them were thrown away, so the third waits"
        assert talk.speaker.totals.tokens_thrown_away == 2
        talk.hear(said)
        await talk.until(e.Committed)
        assert len(stand_in.asked) == 3
        assert stand_in.asked[2].messages == [("user", said)]
        assert talk.turns == [("user", said), ("assistant", "It is a cat.")]

    slow = Policy(p_sure=1.1, settle_ms=60_000)
    converse(use, and_waits, and_waits, says("It is a cat."), policy=slow, early_tokens=2)


def test_an_answer_in_one_piece_will_do():
    async def answer(asked: Asked) -> None:
        await asked.begin("200 OK", "application/json; charset=utf-8")
        await asked.send('{"choices": [{"message": {"content": "It is a cat."}, "finish_reason": "stop"}]}')

    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        assert (await talk.until(e.Committed)).text == "It is a cat."

    converse(use, answer)


def test_our_own_endpoint_speaks():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        async with serving(scripted_model({"what is it": "It is a cat."})) as server:
            object.__setattr__(talk.speaker.endpoint, "url", server.http)
            talk.hear("what is it")
            assert (await talk.until(e.Committed)).text == "It is a cat."
            async with asyncio.timeout(SECONDS):
                while len(server.talks):
                    await asyncio.sleep(0.01)

    converse(use, says("never"))


# ------------------------------------------------------------------------------------------------ what does not


def test_a_busy_endpoint_is_asked_again_when_it_says_so():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        noticed = await talk.until(e.Noticed)
        assert "status 429: slow down" in noticed.text
        assert (await talk.until(e.Committed)).text == "It is a cat."
        assert len(stand_in.asked) == 2

    busy = refuses("429 Too Many Requests", '{"error": {"message": "slow down"}}', "Retry-After: 0")
    converse(use, busy, says("It is a cat."))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refuses("429 Too Many", "", "Retry-After: 3600"), "asks to wait 3600 s"),
        (refuses("429 Too Many", "", "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT"), "asks to wait"),
        (refuses("503 Not now", "", "Retry-After: 0"), "status 503; asked 2 times"),
        (refuses("401 No", '{"error": "who is secret-key"}'), "who is \\*\\*\\*; the key in DUOLOGUE_SPEAKER_KEY"),
        (refuses("404 Not here", "<html>"), "status 404; check the address"),
        (refuses("307 Elsewhere", "", "Location: http://127.0.0.1:1/"), "status 307; check the address"),
        (refuses("400 Bad", '{"error": {"message": "no such model"}}'), "no such model"),
        (refuses("200 OK", '{"choices": []}'), "no text"),
    ],
)
def test_an_endpoint_that_refuses_leaves_the_question_open(answer: Answer, words: str, caplog):
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        failed = await talk.until(e.Failed)
        assert re.search(words, failed.reason), failed.reason
        assert failed.unanswered
        assert talk.turns == [("user", "what is it")]
        stand_in.answers = [says("It is a cat.")]
        talk.handle.respond()
        assert (await talk.until(e.Committed)).text == "It is a cat."
        assert "secret" not in failed.reason

    caplog.set_level(logging.DEBUG)
    converse(use, answer, most_retries=1, key="secret-key")
    assert "secret-key" not in caplog.text


def test_an_endpoint_that_is_down_is_reported_and_the_conversation_lives():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        failed = await talk.until(e.Failed)
        assert f"the speaker at {talk.speaker.endpoint.address} cannot be reached: " in failed.reason
        object.__setattr__(talk.speaker.endpoint, "url", stand_in.url)
        talk.hear("what about that", "v")
        assert (await talk.until(e.Committed)).text == "It is a cat."
        assert stand_in.asked[0].messages == [("user", "what is it\nwhat about that")]

    converse(use, says("It is a cat."), url="http://127.0.0.1:9/v1", most_retries=0)


async def broken(asked: Asked) -> None:
    await asked.begin()
    await asked.say("It is a", end=None)
    await asked.send('data: {"choices": [{"delta": {"content": "日'.encode()[:-1])


async def silent_then(asked: Asked) -> None:
    await asked.begin()
    await asked.say("It is a", end=None)
    for _ in range(1000):
        await asked.send(": still here\n\n")
        await asyncio.sleep(0.01)


async def html_within(asked: Asked) -> None:
    await asked.begin()
    await asked.say("It is a", end=None)
    await asked.send("data: <html>\n\n")


@pytest.mark.parametrize(
    ("answer", "words", "options"),
    [
        (broken, "broke off", {}),
        (silent_then, "silent for 0.2 s, in the middle", {"most_silence": 0.2}),
        (html_within, "other than JSON", {}),
    ],
)
def test_a_stream_that_breaks_off_keeps_what_was_said(answer: Answer, words: str, options: dict[str, Any]):
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        failed = await talk.until(e.Failed)
        assert words in failed.reason
        assert not failed.unanswered
        await talk.until(e.Committed)
        assert talk.turns == [("user", "what is it"), ("assistant", "It is a")]
        stand_in.answers = [says("A dog.")]
        talk.hear("and what is that", "v")
        assert (await talk.until(e.Committed)).text == "A dog."

    converse(use, answer, **options)


def test_a_page_is_no_answer():
    async def answer(asked: Asked) -> None:
        await asked.begin("200 OK", "text/html")
        await asked.send("<html>hello</html>")

    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("what is it")
        assert "sends text/html, not a chat completion" in (await talk.until(e.Failed)).reason

    converse(use, answer)


def test_a_stream_without_an_end_meets_the_limit_of_answers():
    async def answer(asked: Asked) -> None:
        await asked.begin()
        gone = asyncio.ensure_future(asked.until_closed())
        while not gone.done():
            await asked.send(row("la "))
            await asyncio.sleep(0)
        await gone

    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("sing about it")
        assert (await talk.until(e.Finished)).reason == "length"
        assert len((await talk.until(e.Committed)).text) < 60
        async with asyncio.timeout(SECONDS):
            await stand_in.asked[0].closed.wait()

    converse(use, answer, config=SessionConfig(max_answer=8))


def test_a_conversation_that_is_closed_closes_its_request():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        talk.hear("tell me a story")
        await talk.until(e.Said)
        talk.handle.close()
        async with asyncio.timeout(SECONDS):
            await stand_in.asked[0].closed.wait()

    converse(use, and_waits)


def test_an_answer_that_ends_while_it_is_said_why_it_is_late_is_not_asked_for_again():
    async def use(talk: Talk, stand_in: StandIn) -> None:
        notice = talk.handle.notice

        def end(text: str, *, answer: int) -> None:
            talk.handle.edit([])  # as what was waited for when time passes
            notice(text, answer=answer)

        talk.handle.notice = end  # type: ignore[method-assign]
        talk.hear("what is it")
        await talk.until(e.Edited)
        async with asyncio.timeout(5):
            while talk.speaker._tasks:
                await asyncio.sleep(0.01)
        assert len(stand_in.asked) == 1

    converse(use, refuses("429 Too Many Requests", "", "Retry-After: 15"), says("It is a cat."))
