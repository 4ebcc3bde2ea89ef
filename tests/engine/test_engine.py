"""Many conversations in real time: commands at any moment, each to its own, and an end that leaves nothing behind."""

import asyncio

import pytest

from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Heard, Promoted, Received, Said
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import EngineError, EngineFull, UsageError
from duologue.testing.tiny_models import tiny_model, tiny_rows
from duologue.text.template import Template
from gated import Gate, run
from scripted import PROBE, ByteTokenizer, Talk
from tiny_probes import TINY_PROBE

SURE = Policy(p_sure=0.5)


def session(talk: Talk, config: SessionConfig | None = None) -> Session:
    return Session(talk.template, PROBE, policy=SURE, config=config)


async def said(handle: Handle) -> str:
    """An answer, to its end."""
    text = ""
    async for event in handle.events():
        if isinstance(event, Said):
            text += event.text
        if isinstance(event, Committed):
            break
    return text


def test_everybody_gets_an_answer_of_their_own() -> None:
    talk = Talk({f"say {word}": f"{word}, {word} and {word}." for word in ("one", "two", "six", "ten")})

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            handles = {word: engine.open(session(talk)) for word in ("one", "two", "six", "ten")}
            for word, handle in handles.items():
                handle.hear(f"say {word}", final=True)
            answers = await asyncio.gather(*map(said, handles.values()))
            assert answers == [f"{word}, {word} and {word}." for word in handles]
            assert set(engine.handles) == set(handles.values())
            assert engine.totals.passes < 40, "side by side"

    run(main())
    assert talk.backend.usage().num_seqs == 0


def test_a_command_is_carried_out_while_a_pass_of_others_runs() -> None:
    talk = Talk()
    gate = Gate(talk)

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            speaker, other = engine.open(session(talk)), engine.open(session(talk))
            speaker.hear("tell me all", final=True)
            await gate.hold()
            other.hear("hello", final=True)
            events = other.events()
            assert isinstance(await asyncio.wait_for(anext(events), 5), Received)
            gate.opened.set()
            assert await said(other)

    run(main())


def test_a_session_that_is_closed_while_a_pass_runs_is_gone_at_once_and_frees_everything_after_it() -> None:
    talk = Talk()
    gate = Gate(talk)

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            leaving, staying = engine.open(session(talk)), engine.open(session(talk))
            for handle in (leaving, staying):
                handle.hear("tell me all", final=True)
            await gate.hold()
            leaving.close()
            leaving.close()
            told = [event async for event in leaving.events()]
            assert isinstance(told[0], Received), "what had happened is told, and then the end"
            with pytest.raises(UsageError, match="the session is closed"):
                leaving.stop()
            assert engine.handles == (staying,)
            assert talk.backend.usage().num_seqs > 1
            gate.opened.set()
            assert (await said(staying)).startswith("This is what there is to say of tell me all")
            assert talk.backend.usage().num_seqs == 1

    run(main())
    assert talk.backend.usage().num_seqs == 0


@pytest.mark.parametrize("num_turns", [0, 1, 2, 5])
def test_closing_everything_right_after_a_command_comes_to_an_end(num_turns: int) -> None:
    async def main() -> None:
        for _ in range(20):
            talk = Talk()
            async with Engine(talk.backend) as engine:
                handle = engine.open(session(talk))
                handle.hear("hello", final=True)
                for _ in range(num_turns):  # of the event loop
                    await asyncio.sleep(0)
            assert talk.backend.usage().num_seqs == 0
            with pytest.raises(UsageError, match="the engine is closed"):
                engine.open(session(talk))

    run(main())


def test_who_finds_no_room_is_refused_and_others_go_on() -> None:
    talk = Talk({"hello": "Hi."}, capacity=300)

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            first = engine.open(session(talk, SessionConfig(max_length=200)))
            with pytest.raises(EngineFull, match="1 sessions are open"):
                engine.open(session(talk, SessionConfig(max_length=200)))
            first.hear("hello", final=True)
            assert await said(first) == "Hi."
            first.close()
            second = engine.open(session(talk, SessionConfig(max_length=200)))
            second.hear("hello", final=True)
            assert await said(second) == "Hi."

    run(main())


def test_a_sink_that_raises_ends_its_session_and_tells_its_owner_why() -> None:
    talk = Talk({"hello": "Hi."})

    def broken(record: object) -> None:
        if isinstance(record, Said):
            raise OSError("the disk is full")

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            bad, good = engine.open(session(talk), sink=broken), engine.open(session(talk))
            for handle in (bad, good):
                handle.hear("hello", final=True)
            assert await said(good) == "Hi."
            with pytest.raises(EngineError, match="the disk is full"):
                await said(bad)
            with pytest.raises(EngineError, match="the disk is full"):
                bad.hear("still there")
            assert engine.handles == (good,)

    run(main())
    assert talk.backend.usage().num_seqs == 0


def test_a_defect_of_the_engine_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk()

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            handle = engine.open(session(talk))

            def broken(*_: object) -> None:
                raise ZeroDivisionError("oh")

            monkeypatch.setattr(engine, "plan", broken)
            handle.hear("hello", final=True)
            with pytest.raises(EngineError, match=r"ZeroDivisionError: oh; please report it"):
                await said(handle)
            with pytest.raises(UsageError, match="closed"):
                engine.open(session(talk))

    run(main())


def test_paces_are_each_session_s_own() -> None:
    talk = Talk({"hello": "One two three four five six seven."})
    reported = SessionConfig(heard="reported")

    async def main() -> None:
        async with Engine(talk.backend) as engine:
            slow = engine.open(session(talk, reported), words_per_second=0.5)
            fast = engine.open(session(talk, reported), words_per_second=500)
            player = engine.open(session(talk, reported))
            for handle in (slow, fast, player):
                handle.hear("hello", final=True)
            assert await said(fast) == "One two three four five six seven."
            assert slow.session.running is not None
            with pytest.raises(UsageError, match="the clock decides"):
                slow.heard(3)
            player.heard(3)
            async for event in player.events():
                if isinstance(event, Heard):
                    break
            assert player.session.history[-1].text == "One"

    run(main())


# ----------------------------------------------------------------------------------------- the same tokens, by a model

QUESTIONS = ["what is a duck", "count to ten", "why", "tell me about the sea and its fish"]


def conversations(backend: Backend, template: Template) -> list[Session]:
    config = SessionConfig(max_length=1024, max_answer=24, seed=5)
    return [Session(template, TINY_PROBE, policy=SURE, config=config) for _ in QUESTIONS]


def test_a_session_says_among_others_what_it_says_alone() -> None:
    template = Template.from_tokenizer(ByteTokenizer())
    model = tiny_model("llama")
    model.config.max_position_embeddings = 2048
    backend = TorchBackend(model, rows=tiny_rows(), capacity=4096, max_seqs=32, context_length=1024)
    alone = []
    for question, one in zip(QUESTIONS, conversations(backend, template), strict=True):
        engine = Engine(backend)
        handle = engine.open(one)
        handle.hear(question, final=True)
        handle.respond()
        while engine.tick():
            pass
        alone.append(one.history)
        engine.close()

    async def main() -> None:
        async with Engine(backend, max_tokens_per_pass=16) as engine:
            handles = [engine.open(one) for one in conversations(backend, template)]
            for question, handle in zip(QUESTIONS, handles, strict=True):
                handle.hear(question, final=True)
                handle.respond()
                await anext(event async for event in handle.events() if isinstance(event, Promoted))
            for handle in handles:
                await said(handle)
            assert [handle.session.history for handle in handles] == alone

    run(main())
    assert all(len(history) == 2 and history[1].text for history in alone)
    assert backend.usage().num_seqs == 0
