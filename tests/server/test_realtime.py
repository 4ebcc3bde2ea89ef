"""`/v1/realtime` over real sockets on loopback, around a scripted model."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

import realtime_peer
from duologue.core.events import Event, Promoted
from duologue.core.policy import Policy
from realtime_peer import RealtimePeer, join
from scripted import STRICT
from serving import Running, scripted_model, serving

LONG = "Well, " + " ".join(f"word{i}" for i in range(60)) + "."
ANSWERS = {"tell me a lot": LONG, "tell me more": LONG, "hello": "Hi there.", "and who": "Nobody."}
SLOW = {"words_per_second": 0.1}  # nothing is heard unless it is acknowledged
FAST = {"words_per_second": 1000.0}  # what is said is heard


def run(talk: Coroutine[Any, Any, None], *, seconds: float = 60) -> None:
    """Run to the end, and see that no task is left."""

    async def alone() -> None:
        try:
            await asyncio.wait_for(talk, seconds)
        finally:
            while realtime_peer.OPEN:
                realtime_peer.OPEN[-1].transport.abort()
                await realtime_peer.OPEN.pop().wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(alone())


def answering(**settings: Any) -> Any:
    return serving(scripted_model(ANSWERS), **settings)


def history(server: Running) -> list[tuple[str, str]]:
    """Of the only session."""
    (talk,) = server.talks._open.values()
    return [(turn.role.value, turn.text) for turn in talk.handle.session.history]


async def speaking(peer: RealtimePeer, text: str = "tell me a lot", heard: int = 30) -> dict[str, Any]:
    """An answer of which `heard` characters have been heard, and more were said. For `?duplex=1`."""
    await peer.ask(text)
    created = await peer.until("response.created")
    await peer.said(heard + 10)
    await peer.say("playback.ack", played_chars=heard)
    await peer.until("playback.acknowledged")
    return created["response"]


# ------------------------------------------------------------------------------------------------------- a plain turn


def test_a_turn_is_told_in_the_order_that_stock_clients_know():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            created = peer.seen[0]["session"]
            assert (created["type"], created["model"], created["output_modalities"]) == (
                "realtime",
                "scripted",
                ["text"],
            )
            await peer.type("hello")
            assert (await peer.until("conversation.item.done"))["item"]["content"][0]["text"] == "hello"
            await peer.settled()
            assert "response.created" not in peer.kinds(), "words alone are not answered"
            await peer.say("response.create", response={"metadata": {"client_event_id": "mine"}})
            done = (await peer.until("response.done"))["response"]
            assert peer.kinds(after="error") == [
                "response.created", "response.output_item.added", "conversation.item.added",
                "response.content_part.added", "response.output_item.done", "conversation.item.done", "response.done",
            ]  # fmt: skip
            assert (done["status"], done["metadata"]) == ("completed", {"client_event_id": "mine"})
            assert done["output"][0]["content"] == [{"type": "output_text", "text": "Hi there."}]
            assert done["usage"]["output_tokens"] == len("Hi there.")
            assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + len("Hi there.")
            assert peer.mirror.said == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_several_items_are_answered_together_and_an_explicit_request_is_not_judged():
    async def talk() -> None:
        async with serving(scripted_model({"mhm and the": "Yes?"}), **FAST) as server:
            peer = await join(server)
            await peer.type("mhm")
            await peer.ask("and the")
            done = await peer.until("response.done")
            assert done["response"]["output"][0]["content"][0]["text"] == "Yes?"
            await peer.settled()
            assert history(server) == [("user", "mhm and the"), ("assistant", "Yes?")]

    run(talk())


def test_the_newest_items_are_answered_whatever_comes_from_whom():
    async def talk() -> None:
        async with serving(scripted_model({"Be brief. who are you": "Me."}), **FAST) as server:
            peer = await join(server)
            await peer.type("Be brief.", role="system")
            await peer.ask("who are you")
            assert (await peer.until("response.done"))["response"]["output"][0]["content"][0]["text"] == "Me."
            await peer.say("response.create")  # nothing new: the assistant goes on by itself
            await peer.until("response.done")
            assert [role for role, _ in peer.mirror.said] == ["system", "user", "assistant", "assistant"]

    run(talk())


def test_who_asks_again_when_all_was_said_is_taken_to_have_heard_it():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server)
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.say("response.create")
            await peer.until("response.created")
            await peer.settled()
            assert history(server)[:2] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


# --------------------------------------------------------------------------------------------- words over an answer


def test_a_backchannel_changes_nothing():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.type("mhm", name="aside")
            assert (await peer.until("overlap.decision"))["action"] == "ignore"
            assert (await peer.until("conversation.item.deleted"))["item_id"] == "aside"
            await peer.say("response.create", event_id="late")
            error = await peer.error()
            assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "late")
            await peer.type("mhm")
            await peer.say("response.create", event_id="waits")
            error = await peer.error()
            assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "waits")
            await peer.say("playback.ack", played_chars=40)
            await peer.said(60)
            assert "input_audio_buffer.speech_started" not in peer.kinds()
            assert peer.kinds().count("response.created") == 1
            assert [role for role, _ in peer.mirror.said] == ["user", "assistant"]

    run(talk())


def test_an_ignored_reply_becomes_an_item_when_it_is_answered():
    async def talk() -> None:
        async with serving(scripted_model({"hello": "Hi. Who is there?", "mhm": "I see."}), **FAST) as server:
            peer = await join(server, "?duplex=1")
            (conversation,) = server.talks._open.values()
            conversation.handle.adjust(Policy(reply_s=0.1))
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.say("input.text.append", text="mhm", final=True)
            assert (await peer.until("overlap.decision"))["action"] == "ignore"
            done = (await peer.until("response.done"))["response"]
            assert done["output"][0]["content"][0]["text"] == "I see."
            assert [text for _, text in peer.mirror.said] == ["hello", "Hi. Who is there?", "mhm", "I see."]

    run(talk())


def test_an_echo_is_left_out_of_the_item_that_it_begins():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            (conversation,) = server.talks._open.values()
            conversation.handle.adjust(Policy(echo_s=60.0))  # as by voice, with time for a slow machine
            await speaking(peer)
            await peer.say("input.text.append", text="word0 word1 word2 word3", utterance="one")
            await peer.say("input.text.append", text="word0 word1 word2 word3 hello", utterance="one", final=True)
            decided = await peer.until("overlap.decision")
            assert (decided["text"], decided["utterance"]) == ("hello", "one")
            item = (await peer.until("conversation.item.added"))["item"]
            assert item["content"] == [{"type": "input_text", "text": "hello"}]
            await peer.until("response.done")
            assert history(server) == [("user", "tell me a lot"), ("assistant", LONG[:29])]
            await peer.say("playback.ack", played_chars=9)
            await peer.until("playback.acknowledged")
            await peer.ask("and who")
            await peer.until("response.done")
            assert history(server)[2:4] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_non_speech_text_is_not_judged_and_nobody_reads_it():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.type("[NOISE]", name="noise")
            assert (await peer.until("conversation.item.deleted"))["item_id"] == "noise"
            await peer.say("response.create", event_id="late")
            assert (await peer.error())["code"] == "conversation_already_has_active_response"
            await peer.say("input.text.append", text="(coughs)", final=True)
            await peer.said(60)
            assert "overlap.decision" not in peer.kinds()
            assert peer.kinds().count("response.created") == 1
            await peer.say("response.cancel")
            await peer.until("response.done")
            await peer.type("*sighs*")
            await peer.type("hello")
            await peer.say("response.create")
            await peer.until("response.done")
            await peer.say("playback.ack", played_chars=9)
            await peer.until("playback.acknowledged")
            assert history(server)[-2:] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


@pytest.mark.parametrize("metadata", [None, {}, {"n": "2"}, {"client_event_id": "2"}])
def test_a_question_interrupts(metadata):
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            first = await speaking(peer)
            await peer.type("hello", name="question")
            if metadata is not None:
                await peer.say("response.create", response={"metadata": metadata})
            cut = (await peer.until("response.done"))["response"]
            assert (cut["id"], cut["status"]) == (first["id"], "cancelled")
            assert cut["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
            heard = cut["output"][0]["content"][0]["text"]
            assert LONG.startswith(heard)
            assert 20 < len(heard) <= 30
            truncated = await peer.until("conversation.item.truncated")
            assert (truncated["item_id"], truncated["text"]) == (cut["output"][0]["id"], heard)
            created = (await peer.until("response.created"))["response"]
            assert created["metadata"] == metadata
            await peer.until("response.done")
            onset = [m for m in peer.seen if m["type"] == "input_audio_buffer.speech_started"]
            is_tracked = "client_event_id" in (metadata or {})
            assert [m["item_id"] for m in onset] == ([] if is_tracked else ["question"])
            assert peer.mirror.said == [
                ("user", "tell me a lot"), ("assistant", heard), ("user", "hello"), ("assistant", "Hi there."),
            ]  # fmt: skip
            await peer.say("playback.ack", played_chars=9)
            await peer.settled()
            assert history(server) == peer.mirror.said

    run(talk())


@pytest.mark.parametrize("asks", [False, True])
def test_stop_ends_the_answer_and_nothing_follows(asks):
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.type("stop", name="command")
            if asks:
                await peer.say("response.create", event_id="pointless")
                error = await peer.error()
                assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "pointless")
            assert (await peer.until("response.done"))["response"]["status"] == "cancelled"
            await peer.settled()
            kinds = peer.kinds(after="playback.acknowledged")
            assert "input_audio_buffer.speech_started" in peer.kinds()
            assert "response.created" not in kinds
            assert [role for role, _ in peer.mirror.said] == ["user", "assistant"]
            assert history(server) == peer.mirror.said
            await peer.ask("hello")
            assert (await peer.until("response.done"))["response"]["status"] == "completed"

    run(talk())


def test_a_program_may_ask_the_next_question_when_it_has_the_answer():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server)
            for question, answer in (("hello", "Hi there."), ("and who", "Nobody."), ("hello", "Hi there.")):
                await peer.ask(question)
                done = (await peer.until("response.done"))["response"]
                assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", answer)
            assert len(peer.mirror.said) == 6
            assert history(server) == peer.mirror.said[:4]

    run(talk())


def test_incomplete_words_wait_for_more():
    async def talk() -> None:
        async with serving(scripted_model({"tell me a lot": LONG, "and the cat": "It sleeps."}), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.ask("and the")
            assert (await peer.until("overlap.decision"))["action"] == "wait"
            await peer.type("cat")
            done = await peer.until("response.done", lambda m: m["response"]["status"] == "completed")
            assert done["response"]["output"][0]["content"][0]["text"] == "It sleeps."

    run(talk())


def test_words_over_an_answer_that_nobody_has_heard_go_with_its_question():
    async def talk() -> None:
        async with serving(
            scripted_model({"tell me a lot": LONG, "tell me a lot of owls": "They fly."}), **SLOW
        ) as server:
            peer = await join(server)
            await peer.ask("tell me a lot")
            await peer.said(10)
            await peer.ask("of owls")
            assert (await peer.until("response.done"))["response"]["status_details"]["reason"] == "turn_detected"
            assert (await peer.until("response.done"))["response"]["status"] == "completed"
            assert peer.mirror.said == [("user", "tell me a lot"), ("user", "of owls"), ("assistant", "They fly.")]
            await peer.say("response.create")
            await peer.until("response.created")
            await peer.settled()
            assert history(server)[0] == ("user", "tell me a lot of owls")

    run(talk())


def test_an_answer_that_was_said_but_not_heard_is_cut_where_it_was_heard():
    async def talk() -> None:
        async with serving(scripted_model({"hi": "One two three four.", "hello": "Hi."}), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.ask("hi")
            first = (await peer.until("response.done"))["response"]
            assert first["status"] == "completed"
            await peer.say("playback.ack", played_chars=8)
            await peer.ask("hello")
            truncated = await peer.until("conversation.item.truncated")
            assert (truncated["item_id"], truncated["text"]) == (first["output"][0]["id"], "One two")
            await peer.until("response.done")
            assert peer.mirror.said[1] == ("assistant", "One two")

    run(talk())


def test_what_was_cut_goes_on_when_it_is_asked_to():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.type("stop")
            heard = (await peer.until("response.done"))["response"]["output"][0]["content"][0]["text"]
            await peer.ask("go on", name="resume")
            await peer.until("response.created")
            await peer.said(10)
            assert "resume" not in peer.mirror.items
            assert LONG.startswith(heard + "".join(peer.mirror.texts[str(peer.mirror.running)]))

    run(talk())


# ---------------------------------------------------------------------------------------------------- who decides


def configured(**detection: Any) -> dict[str, Any]:
    return {"type": "realtime", "audio": {"input": {"turn_detection": detection or None}}}


def test_without_turn_detection_the_client_decides():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("session.update", session=configured())
            updated = await peer.until("session.updated")
            assert updated["session"]["audio"]["input"]["turn_detection"] is None
            await speaking(peer)
            await peer.ask("hello")
            assert (await peer.error())["code"] == "conversation_already_has_active_response"
            await peer.say("response.cancel")
            done = (await peer.until("response.done"))["response"]
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            await peer.say("response.create")
            assert (await peer.until("response.done"))["response"]["status"] == "completed"
            assert "overlap.decision" not in peer.kinds()
            assert peer.mirror.said[2:] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_interruption_without_a_response_of_its_own():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("session.update", session=configured(type="server_vad", create_response=False))
            await speaking(peer)
            await peer.type("hello")
            assert (await peer.until("response.done"))["response"]["status_details"]["reason"] == "turn_detected"
            await peer.settled()
            assert "input_audio_buffer.speech_started" in peer.kinds()
            assert peer.kinds().count("response.created") == 1
            await peer.say("response.create")
            await peer.until("response.done")
            assert peer.mirror.said[2:] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_a_protected_answer_is_not_cut_and_the_question_is_answered_afterwards():
    async def talk() -> None:
        async with serving(scripted_model({"hi": "One two three four.", "hello": "Hi."}), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("session.update", session=configured(interrupt_response=False))
            await peer.ask("hi")
            await peer.until("response.done")
            await peer.say("playback.ack", played_chars=8)
            await peer.ask("hello")
            assert (await peer.until("overlap.decision"))["action"] == "defer"
            await peer.say("playback.ack", played_chars=19)
            await peer.until("response.done")
            assert [text for _, text in peer.mirror.said] == ["hi", "One two three four.", "hello", "Hi."]

    run(talk())


@pytest.mark.parametrize(("eagerness", "value"), [("low", -1.0), ("medium", 0.0), ("auto", 0.0), ("high", 1.0)])
def test_eagerness_is_the_policys(eagerness, value):
    async def talk() -> None:
        async with answering() as server:
            peer = await join(server)
            await peer.say("session.update", session=configured(type="semantic_vad", eagerness=eagerness))
            await peer.until("session.updated")
            (conversation,) = server.talks._open.values()
            assert conversation.handle.session.policy.eagerness == value

    run(talk())


# ------------------------------------------------------------------------------------------------ session and responses


def system_prompt(server: Running) -> str:
    (conversation,) = server.talks._open.values()
    ids = conversation.handle.session.template.begin
    return server.talks.model.template.tokenizer.decode(list(ids))


def test_instructions_change_in_the_middle_of_a_conversation():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            await peer.say("session.update", session={"type": "realtime", "instructions": "Be a cat."})
            assert (await peer.until("session.updated"))["session"]["instructions"] == "Be a cat."
            assert "Be a cat." in system_prompt(server)
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.settled()
            await peer.ask("and who", instructions="Be a dog.")
            await peer.until("response.done")
            assert "Be a dog." in system_prompt(server)
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.settled()
            assert "Be a cat." in system_prompt(server)
            assert [text for _, text in history(server)] == [
                "hello", "Hi there.", "and who", "Nobody.", "hello", "Hi there.",
            ]  # fmt: skip

    run(talk())


def test_an_interrupting_response_can_have_instructions_of_its_own():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.ask("hello", instructions="Be a dog.", metadata={"n": "2"}, max_output_tokens=4)
            await peer.until("response.created", lambda m: m["response"]["metadata"] == {"n": "2"})
            assert "Be a dog." in system_prompt(server)
            done = (await peer.until("response.done"))["response"]
            assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
            assert done["output"][0]["content"][0]["text"] == "Hi t"
            assert [role for role, _ in peer.mirror.said] == ["user", "assistant", "user", "assistant"]

    run(talk())


def test_the_number_of_tokens_is_limited_by_session_and_response():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            await peer.say("session.update", session={"max_output_tokens": 5})
            for most, length in ((None, 5), (3, 3), ("inf", 5)):
                await peer.ask("hello", **({} if most is None else {"max_output_tokens": most}))
                done = (await peer.until("response.done"))["response"]
                assert len(done["output"][0]["content"][0]["text"]) == length
            await peer.say("session.update", session={"max_output_tokens": "inf"})
            await peer.ask("hello")
            assert (await peer.until("response.done"))["response"]["status"] == "completed"

    run(talk())


def test_cancel_ends_the_answer_and_its_question_stays():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("response.cancel", event_id="early")
            error = await peer.error()
            assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "early")
            assert error["message"].startswith("Cancellation failed")
            response = await speaking(peer)
            await peer.say("response.cancel", response_id="resp_of_another")
            assert (await peer.error())["code"] == "response_cancel_not_active"
            await peer.say("response.cancel", response_id=response["id"])
            done = (await peer.until("response.done"))["response"]
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            assert "input_audio_buffer.speech_started" not in peer.kinds()
            await peer.ask("hello")
            await peer.until("response.created")
            await peer.say("response.cancel")
            await peer.until("response.done")
            await peer.settled()
            assert peer.mirror.said[2:] == [("user", "hello")], "nothing of the answer was heard"

    run(talk())


def test_cancel_takes_back_a_request_that_waits():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.ask("and the")
            await peer.until("overlap.decision")
            await peer.say("response.cancel")
            await peer.until("response.done")
            await peer.type("cat")
            await peer.settled()
            assert peer.kinds().count("response.created") == 1
            assert peer.mirror.said[2:] == [("user", "and the"), ("user", "cat")]

    run(talk())


# ------------------------------------------------------------------------------------------------------------- items


def test_items_are_put_taken_and_shown():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            await peer.type("second", name="b")
            await peer.type("first", name="a", previous_item_id="root")
            await peer.type("no, this", role="assistant", name="c", previous_item_id="a")
            await peer.say("conversation.item.retrieve", item_id="c")
            assert (await peer.until("conversation.item.retrieved"))["item"]["content"][0]["text"] == "no, this"
            assert peer.mirror.order == ["a", "c", "b"]
            await peer.say("response.create")
            await peer.until("response.done")
            await peer.settled()
            assert history(server)[:3] == [("user", "first"), ("assistant", "no, this"), ("user", "second")]
            await peer.say("conversation.item.delete", item_id="c")
            await peer.until("conversation.item.deleted")
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.settled()
            assert history(server)[0] == ("user", "first second")
            assert history(server)[2:] == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_an_item_can_be_replaced_without_a_change():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            await peer.ask("hello")
            item = (await peer.until("response.done"))["response"]["output"][0]
            await peer.settled()
            (conversation,) = server.talks._open.values()
            epoch = conversation.handle.session._output.epoch
            await peer.say("conversation.item.delete", item_id=item["id"])
            await peer.say("conversation.item.create", item=item)
            await peer.ask("and who")
            await peer.until("response.done")
            assert conversation.handle.session._output.epoch == epoch, "nothing was fed again"

    run(talk())


def test_deleting_what_is_being_said_ends_it():
    async def talk() -> None:
        answers = {"tell me a lot": LONG, "tell me a lot hello": "Hi there."}
        async with serving(scripted_model(answers), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.say("conversation.item.delete", item_id=peer.mirror.order[1])
            assert (await peer.until("response.done"))["response"]["status_details"]["reason"] == "client_cancelled"
            await peer.ask("hello")
            await peer.until("response.done")
            assert [role for role, _ in peer.mirror.said] == ["user", "user", "assistant"]
            assert history(server) == []
            await peer.say("playback.ack", played_chars=9)
            await peer.settled()
            assert history(server)[0] == ("user", "tell me a lot hello")

    run(talk())


def test_truncate_cuts_what_is_being_said_and_what_was_said():
    async def talk() -> None:
        async with answering(words_per_second=10.0) as server:  # 60 characters a second
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            name = peer.mirror.order[1]
            await peer.say("conversation.item.truncate", item_id=name, content_index=0, audio_end_ms=600)
            assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] == 600
            done = (await peer.until("response.done"))["response"]
            assert done["status_details"]["reason"] == "client_cancelled"
            heard = done["output"][0]["content"][0]["text"]
            assert LONG.startswith(heard)
            assert 25 < len(heard) <= 36
            await peer.say("conversation.item.truncate", item_id=name, content_index=0, audio_end_ms=200)
            assert len((await peer.until("conversation.item.truncated"))["text"]) <= 12
            await peer.ask("hello")
            await peer.until("response.done")
            await peer.settled()
            await peer.say("response.create")
            await peer.until("response.created")
            await peer.settled()
            assert history(server)[1] == ("assistant", "Well, word0")

    run(talk())


def test_a_conversation_with_more_items_than_are_kept_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr("duologue.server.realtime.items.MOST_ITEMS", 3)

    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            for number in range(5):
                await peer.type(f"number {number}")
            await peer.settled()
            assert peer.mirror.said == [("user", f"number {number}") for number in (2, 3, 4)]

    run(talk())


def test_a_long_conversation_is_trimmed_and_goes_on():
    async def talk() -> None:
        async with serving(scripted_model(max_length=512), max_answer=40, context=512, **FAST) as server:
            peer = await join(server)
            for number in range(12):
                await peer.ask(f"question {number}")
                await peer.until("response.done")
                await peer.settled()
            assert len(history(server)) < len(peer.mirror.said) == 24
            await peer.say("conversation.item.delete", item_id=peer.mirror.order[-1])
            await peer.ask("hello")
            await peer.until("response.done")
            assert len(history(server)) > 2

    run(talk())


# ------------------------------------------------------------------------------------------------------------- errors

USER = {"type": "message", "role": "user"}
BAD = [
    ("nonsense", {}, "invalid_value", "type"),
    ("session.update", {}, "missing_required_parameter", "session"),
    ("session.update", {"session": 1}, "invalid_type", "session"),
    ("session.update", {"session": {"type": "transcription"}}, "invalid_value", "session.type"),
    ("session.update", {"session": {"tools": [{"type": "function"}]}}, "invalid_value", "session.tools"),
    ("session.update", {"session": {"tool_choice": "required"}}, "invalid_value", "session.tool_choice"),
    ("session.update", {"session": {"instructions": 3}}, "invalid_type", "session.instructions"),
    ("session.update", {"session": {"instructions": "long " * 900}}, "string_above_max_length", "instructions"),
    ("session.update", {"session": {"output_modalities": ["smell"]}}, "invalid_value", "session.output_modalities"),
    ("session.update", {"session": {"max_output_tokens": 0}}, "invalid_value", "session.max_output_tokens"),
    ("session.update", {"session": {"audio": []}}, "invalid_type", "session.audio"),
    ("session.update", {"session": {"audio": {"input": {"turn_detection": 5}}}}, "invalid_value", None),
    ("session.update", {"session": configured(type="semantic_vad", eagerness=[])}, "invalid_value", None),
    ("session.update", {"session": configured(type="semantic_vad", create_response=1)}, "invalid_type", None),
    ("conversation.item.create", {"item": {"type": "function_call"}}, "invalid_value", "item.type"),
    ("conversation.item.create", {"item": {**USER, "role": "cat"}}, "invalid_value", "item.role"),
    ("conversation.item.create", {"item": {**USER, "id": 7}}, "invalid_value", "item.id"),
    ("conversation.item.create", {"item": {**USER, "content": "x"}}, "invalid_value", "item.content"),
    ("conversation.item.create", {"item": {**USER, "content": ["x"]}}, "invalid_value", "item.content[0].type"),
    (
        "conversation.item.create",
        {"item": {**USER, "content": [{"type": "input_audio", "audio": ""}]}},
        "audio_not_supported",
        "item.content[0].type",
    ),
    (
        "conversation.item.create",
        {"item": {**USER, "content": [{"type": "input_text"}]}},
        "missing_required_parameter",
        "item.content[0].text",
    ),
    (
        "conversation.item.create",
        {"item": {**USER, "content": [{"type": "input_text", "text": "long " * 200}]}},
        "string_above_max_length",
        "item.content",
    ),
    ("conversation.item.create", {"item": {**USER, "id": "there"}}, "item_create_duplicate_item_id", "item.id"),
    (
        "conversation.item.create",
        {"item": USER, "previous_item_id": "gone"},
        "item_create_invalid_previous_item_id",
        "previous_item_id",
    ),
    ("conversation.item.retrieve", {"item_id": "gone"}, "item_retrieve_invalid_item_id", "item_id"),
    ("conversation.item.retrieve", {"item_id": ""}, "invalid_value", "item_id"),
    ("conversation.item.delete", {"item_id": "gone"}, "item_delete_invalid_item_id", "item_id"),
    ("conversation.item.truncate", {"item_id": "gone", "audio_end_ms": 1}, "item_truncate_invalid_item_id", "item_id"),
    ("conversation.item.truncate", {"item_id": "there", "audio_end_ms": 1}, "item_truncate_invalid_item_id", "item_id"),
    ("conversation.item.truncate", {"item_id": "there", "audio_end_ms": -1}, "invalid_value", "audio_end_ms"),
    (
        "conversation.item.truncate",
        {"item_id": "said", "audio_end_ms": 1, "content_index": 1},
        "invalid_value",
        "content_index",
    ),
    ("response.create", {"response": {"conversation": "none"}}, "unsupported_parameter", "response.conversation"),
    ("response.create", {"response": {"input": []}}, "unsupported_parameter", "response.input"),
    ("response.create", {"response": {"prompt": {"id": "p"}}}, "unsupported_parameter", "response.prompt"),
    ("response.create", {"response": {"tools": [{}]}}, "invalid_value", "response.tools"),
    ("response.create", {"response": {"metadata": {"a": 1}}}, "invalid_value", "response.metadata"),
    ("response.create", {"response": {"max_output_tokens": "many"}}, "invalid_value", "response.max_output_tokens"),
    ("response.cancel", {}, "response_cancel_not_active", None),
    ("input_audio_buffer.append", {"audio": "AAAA"}, "audio_not_supported", "type"),
    ("input_audio_buffer.commit", {}, "input_audio_buffer_commit_empty", None),
    ("output_audio_buffer.clear", {}, "audio_not_supported", "type"),
    ("input.text.append", {"text": "hello"}, "invalid_value", "type"),
    ("playback.ack", {"played_chars": 3}, "invalid_value", "type"),
    ("input.cancel", {}, "invalid_value", "type"),
]


def test_what_cannot_be_done_is_an_error_and_nothing_changes():
    async def talk() -> None:
        async with answering(messages_per_second=1000, **SLOW) as server:
            peer = await join(server)
            await peer.type("hello", name="there")
            await peer.type("hi", role="assistant", name="said")
            await peer.settled()
            for number, (kind, fields, code, param) in enumerate(BAD):
                await peer.say(kind, event_id=f"e{number}", **fields)
                error = await peer.error()
                assert (error["code"], error["event_id"]) == (code, f"e{number}"), (kind, fields, error)
                assert error["type"] == "invalid_request_error"
                assert param is None or error["param"] == param, error
            await peer.socket.send("{no json")
            assert (await peer.error())["code"] == "invalid_json"
            await peer.socket.send(b"binary")
            assert (await peer.error())["code"] == "invalid_json"
            await peer.say("input_audio_buffer.clear")
            await peer.until("input_audio_buffer.cleared")
            await peer.say("session.update", session={"type": "realtime"})
            session = (await peer.until("session.updated"))["session"]
            assert {**session} == {**peer.seen[0]["session"]}
            assert peer.mirror.said == [("user", "hello"), ("assistant", "hi")]

    run(talk())


def test_what_stock_clients_configure_for_audio_is_accepted_and_answered_in_text():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            audio = {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "noise_reduction": None,
                    "transcription": {"model": "whisper"},
                    "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 500},
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1.0},
            }
            asked = {"type": "realtime", "model": "m", "output_modalities": ["audio"], "audio": audio, "tools": []}
            await peer.say("session.update", session=asked)
            session = (await peer.until("session.updated"))["session"]
            assert session["output_modalities"] == ["text"]
            assert session["audio"]["input"]["turn_detection"]["type"] == "semantic_vad"
            await peer.ask("hello", output_modalities=["audio"], tools=[], tool_choice="auto")
            assert (await peer.until("response.done"))["response"]["output_modalities"] == ["text"]

    run(talk())


def test_fields_of_the_beta_protocol_are_understood():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            asked = {
                "modalities": ["text", "audio"],
                "voice": "alloy",
                "input_audio_format": "pcm16",
                "output_audio_format": "pcm16",
                "input_audio_transcription": {"model": "whisper-1"},
                "turn_detection": {"type": "server_vad", "threshold": 0.5, "interrupt_response": False},
                "temperature": 0.8,
                "tools": [],
                "tool_choice": "none",
                "max_response_output_tokens": 7,
            }
            await peer.say("session.update", session=asked)
            session = (await peer.until("session.updated"))["session"]
            assert session["max_output_tokens"] == 7
            assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is False
            (one,) = server.talks._open.values()
            assert one.handle.session._output.sampling.temperature == 0.8
            await peer.say("session.update", session={"turn_detection": None, "max_output_tokens": 9})
            session = (await peer.until("session.updated"))["session"]
            assert (session["max_output_tokens"], session["audio"]["input"]["turn_detection"]) == (9, None)
            await peer.type("hello")
            await peer.say("response.create", response={"modalities": ["text"], "max_response_output_tokens": 3})
            assert (await peer.until("response.done"))["response"]["status_details"]["reason"] == "max_output_tokens"
            await peer.say("session.update", session={"audio": 5, "turn_detection": None})
            assert (await peer.error())["param"] == "session.audio"

    run(talk())


@pytest.mark.parametrize(("role", "kind"), [("user", "input_audio"), ("assistant", "output_audio"), ("user", "audio")])
def test_an_item_of_sound_with_a_transcript_is_read_as_text(role, kind):
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            item = {"type": "message", "role": role, "content": [{"type": kind, "transcript": "hello", "audio": ""}]}
            await peer.say("conversation.item.create", item=item)
            await peer.settled()
            assert peer.mirror.said == [(role, "hello")]

    run(talk())


def test_what_is_to_be_answered_must_not_be_too_long_in_all():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server)
            for _ in range(4):
                await peer.type("a hundred letters and some more " * 5)
            await peer.say("response.create")
            assert (await peer.error())["code"] == "string_above_max_length"
            for name in list(peer.mirror.order):
                await peer.say("conversation.item.delete", item_id=name)
            await peer.ask("hello")
            await peer.until("response.done")

    run(talk())


def test_one_request_waits_at_a_time_and_what_is_listened_to_stays():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            await peer.type("and the", name="held")
            await peer.say("response.create", event_id="first")
            await peer.say("response.create", event_id="second")
            error = await peer.error()
            assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "second")
            await peer.say("conversation.item.delete", item_id="held")
            assert (await peer.error())["code"] == "item_delete_invalid_item_id"

    run(talk())


def test_an_assistant_that_begins_where_the_template_wants_somebody_to_ask():
    async def talk() -> None:
        async with serving(scripted_model({"hello": "Hi.", "": "Welcome."}, chat_template=STRICT), **FAST) as server:
            peer = await join(server)
            await peer.say("response.create", event_id="nobody asked")
            await peer.until("response.done")
            await peer.type("I begin", role="assistant", previous_item_id="root")
            await peer.ask("hello")
            await peer.until("response.done")
            said = [("assistant", "I begin"), ("assistant", "Welcome."), ("user", "hello"), ("assistant", "Hi.")]
            assert peer.mirror.said == said

    run(talk())


# ------------------------------------------------------------------------------------------------- the duplex extension


def test_words_that_grow_are_judged_as_they_come():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("input.text.append", text="tell me a", utterance="one")
            decision = await peer.until("overlap.decision")
            assert (decision["state"], decision["action"], decision["utterance"]) == ("incomplete", "wait", "one")
            assert set(decision["probabilities"]) == {"process", "incomplete", "ignore", "stop"}
            assert decision["latency_ms"] >= 0
            assert decision["item_id"] is None
            await peer.say("input.text.append", text="tell me a lot", utterance="one", final=True)
            assert (await peer.until("overlap.decision"))["action"] == "respond"
            committed = await peer.until("input_audio_buffer.committed")
            await peer.until("response.created")
            assert peer.mirror.order[0] == committed["item_id"]
            await peer.said(40)
            await peer.say("playback.ack", played_chars=30)
            acknowledged = await peer.until("playback.acknowledged")
            assert acknowledged["item_id"] == peer.mirror.order[1]
            assert 20 < acknowledged["heard_chars"] <= 30
            await peer.say("input.text.append", text="mhm", utterance="two", final=True)
            assert (await peer.until("overlap.decision"))["action"] == "ignore"
            await peer.say("input.text.append", text="hello", utterance="three", final=True)
            await peer.until("input_audio_buffer.speech_started")
            await peer.until("response.done", lambda m: m["response"]["status"] == "completed")
            assert [text for _, text in peer.mirror.said[2:]] == ["hello", "Hi there."]
            assert [role for role, _ in peer.mirror.said] == ["user", "assistant"] * 2

    run(talk())


def test_words_that_go_on_after_their_answer_began_take_it_back():
    async def talk() -> None:
        async with serving(scripted_model({"tell me": LONG, "tell me more": "No."}), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("input.text.append", text="tell me", utterance="one")
            await peer.until("response.created")
            await peer.say("input.text.append", text="tell me more", utterance="one", final=True)
            done = await peer.until("response.done", lambda m: m["response"]["status"] == "completed")
            assert done["response"]["output"][0]["content"][0]["text"] == "No."
            assert peer.mirror.said == [("user", "tell me more"), ("assistant", "No.")]

    run(talk())


def test_late_words_of_an_utterance_are_an_item_of_their_own():
    async def talk() -> None:
        async with serving(scripted_model({"tell me a lot": LONG, "and who": "Nobody."}), **SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("input.text.append", text="tell me a lot")
            await peer.until("response.created")
            await peer.said(40)
            await peer.say("playback.ack", played_chars=30)
            await peer.say("input.text.append", text="tell me a lot and who", final=True)
            await peer.until("response.done", lambda m: m["response"]["status"] == "completed")
            assert [text for role, text in peer.mirror.said if role == "user"] == ["tell me a lot", "and who"]

    run(talk())


def test_words_can_be_taken_back():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("input.cancel", event_id="early")
            assert (await peer.error())["code"] == "input_not_active"
            await peer.say("input.text.append", text="tell me a", utterance="one")
            await peer.until("overlap.decision")
            await peer.say("input.cancel", utterance="one")
            await peer.settled()
            assert peer.mirror.said == history(server) == []
            await peer.say("input.cancel")
            assert (await peer.error())["code"] == "input_not_active"

    run(talk())


def test_words_that_have_ended_and_wait_can_be_taken_back():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("input.text.append", text="and the", utterance="one", final=True)
            await peer.say("input.cancel")
            await peer.type("hello")
            await peer.say("response.create")
            await peer.until("response.done")
            assert peer.mirror.said == [("user", "hello"), ("assistant", "Hi there.")]
            assert history(server) == peer.mirror.said

    run(talk())


def test_words_that_grow_wait_for_a_client_that_decides():
    async def talk() -> None:
        async with answering(**FAST) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("session.update", session=configured())
            await peer.say("input.text.append", text="hel")
            await peer.say("input.text.append", text="nothing", utterance="other")
            await peer.say("input.cancel", utterance="other")
            await peer.say("input.text.append", text="hello", final=True)
            await peer.until("conversation.item.done")
            await peer.settled()
            assert "response.created" not in peer.kinds()
            await peer.say("response.create")
            await peer.until("response.done")
            assert peer.mirror.said == [("user", "hello"), ("assistant", "Hi there.")]

    run(talk())


def test_acknowledgements_that_cannot_be():
    async def talk() -> None:
        async with answering(words_per_second=10.0) as server:
            peer = await join(server, "?duplex=1")
            await peer.say("playback.ack")
            assert (await peer.error())["code"] == "missing_required_parameter"
            await speaking(peer)
            await peer.say("playback.ack", played_chars=100_000)
            assert (await peer.error())["param"] == "played_chars"
            await peer.said(50)
            await peer.say("playback.ack", played_ms=700, item_id=peer.mirror.order[1])
            acknowledged = await peer.until("playback.acknowledged")
            assert (acknowledged["played_chars"], acknowledged["heard_chars"] > 30) == (42, True)
            await peer.say("playback.ack", played_chars=3, item_id="gone")
            assert (await peer.until("playback.acknowledged"))["heard_chars"] is None

    run(talk())


# ------------------------------------------------------------------------------------------------------- the connection


def test_a_conversation_ends_with_its_connection():
    async def talk() -> None:
        async with answering(max_sessions=1) as server:
            peer = await join(server, subprotocols=["realtime", "openai-insecure-api-key.x"])
            assert peer.socket.subprotocol == "realtime"
            other = await realtime_peer.open_socket(server.http.replace("http", "ws") + "/v1/realtime")
            realtime_peer.OPEN.append(other)
            full = RealtimePeer(other)
            assert (await full.error())["code"] == "rate_limit_exceeded"
            assert await full.closed() == 1013
            await peer.socket.close()
            while server.talks._open:
                await asyncio.sleep(0.01)
            await join(server)

    run(talk())


def test_only_who_has_a_token_is_let_in():
    async def talk() -> None:
        async with answering(tokens=("a-long-secret",)) as server:
            for options in ({}, {"additional_headers": {"Authorization": "Bearer a-long-guess"}}):
                with pytest.raises(InvalidStatus) as refused:
                    await join(server, **options)
                assert refused.value.response.status_code == 403
            peer = await join(server, subprotocols=["realtime", "openai-insecure-api-key.a-long-secret"])
            await peer.settled()

    run(talk())


def test_clients_that_vanish_leave_nothing():
    async def talk() -> None:
        async with answering(max_sessions=4, messages_per_second=1000) as server:
            for number in range(30):
                peer = await join(server, "?duplex=1")
                await peer.ask("tell me a lot")
                if number % 2:
                    await peer.said(5)
                    await peer.ask("hello")
                peer.socket.transport.abort()
                while server.talks._open:
                    await asyncio.sleep(0.002)
            totals = server.talks.engine.totals
            assert (totals.admitted, totals.failed, len(server.talks.engine.handles)) == (30, 0, 0)

    run(talk())


def test_a_server_that_ends_says_so():
    async def talk() -> None:
        async with answering(drain=0.1) as server:
            peer = await join(server)
            await peer.ask("tell me a lot")
            await peer.until("response.created")
            await server.server.drain()
            assert (await peer.error())["code"] == "session_ended"
            assert await peer.closed() == 1012

    run(talk())


def test_a_session_that_fails_ends_its_connection(monkeypatch):
    async def talk() -> None:
        async with answering() as server:
            peer = await join(server)
            monkeypatch.setattr("duologue.server.realtime.session.RealtimeSession._begin", lambda *_: 1 / 0)
            await peer.ask("hello")
            assert await peer.closed() == 1011

    run(talk())


def test_who_does_not_read_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("duologue.server.realtime.connection.MOST_WAITING", 30)
    monkeypatch.setattr("duologue.server.realtime.connection._ROOM", 20)

    async def talk() -> None:
        async with answering(messages_per_second=1000, **FAST) as server:
            peer, other = await join(server), await join(server)
            blocked = asyncio.Event()

            async def send(self: Any, message: Any) -> bool:
                await blocked.wait()
                return False

            (first, _) = server.talks._open.values()
            monkeypatch.setattr(first.owner._wire, "send", send.__get__(first.owner._wire))
            await peer.ask("tell me a lot")
            await other.ask("hello")
            assert (await other.until("response.done"))["response"]["status"] == "completed"
            while first.is_open:
                await asyncio.sleep(0.01)
            blocked.set()

    run(talk())


def test_a_conversation_that_ends_at_an_event_that_asks_for_a_command_ends_as_any_other():
    async def talk() -> None:
        async with answering(**SLOW) as server:
            peer = await join(server, "?duplex=1")
            await speaking(peer)
            (conversation,) = server.talks
            add = conversation.events.add

            def end(event: Event) -> None:
                add(event)
                if isinstance(event, Promoted):
                    conversation.close("shutdown")

            conversation.events.add = end  # type: ignore[method-assign]
            await peer.ask("hello", instructions="Be a dog.")
            assert (await peer.error())["code"] == "session_ended"
            assert await peer.closed() == 1012

    run(talk())
