"""Whatever a Realtime client sends, however fast: the connection lives, and both sides know the same conversation."""

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_realtime import ANSWERS, configured, run

from duologue.server.realtime.connection import Realtime
from duologue.server.realtime.history import merged, turns
from duologue.server.realtime.messages import EVENTS, EXTENSIONS
from duologue.server.realtime.session import RealtimeSession
from realtime_peer import RealtimePeer, join
from serving import Running, scripted_model, serving
from soak import IS_LONG, size

TEXTS = ("hello", "mhm", "stop", "and the", "tell me a lot", "go on", "be quiet", "cat", "", " ", "\ud800")
NAMES = ("a", "b", "c", "LAST", "RESPONSE", "gone")  # LAST and RESPONSE: of the newest response

ITEM = st.builds(
    lambda role, text, name: {
        "type": "message",
        "role": role,
        "content": [{"type": "output_text" if role == "assistant" else "input_text", "text": text}],
        **({} if name is None else {"id": name}),
    },
    st.sampled_from(["user"] * 5 + ["assistant", "system"]),
    st.sampled_from(TEXTS),
    st.sampled_from([None, None, None, "a", "b", "c"]),
)
RESPONSE = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.just({"n": "1"}),
        "max_output_tokens": st.sampled_from([1, 4, "inf"]),
        "instructions": st.sampled_from(["Be a cat.", ""]),
    },
)
DETECTION = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"type": st.just("semantic_vad")},
        optional={
            "eagerness": st.sampled_from(["low", "high"]),
            "create_response": st.booleans(),
            "interrupt_response": st.booleans(),
        },
    ),
)
SENSIBLE = st.one_of(
    st.builds(lambda item: ("conversation.item.create", {"item": item}), ITEM),
    st.builds(lambda item: ("conversation.item.create", {"item": item}), ITEM),
    st.builds(
        lambda item, previous: ("conversation.item.create", {"item": item, "previous_item_id": previous}),
        ITEM,
        st.sampled_from(["root", *NAMES]),
    ),
    st.builds(lambda response: ("response.create", {"response": response}), RESPONSE),
    st.just(("response.create", {})),
    st.just(("response.cancel", {})),
    st.builds(lambda name: ("conversation.item.delete", {"item_id": name}), st.sampled_from(NAMES)),
    st.builds(lambda name: ("conversation.item.retrieve", {"item_id": name}), st.sampled_from(NAMES)),
    st.builds(
        lambda name, ms: ("conversation.item.truncate", {"item_id": name, "audio_end_ms": ms}),
        st.sampled_from(NAMES),
        st.sampled_from([0, 10, 500, 100_000]),
    ),
    st.builds(
        lambda detection: ("session.update", {"session": {"audio": {"input": {"turn_detection": detection}}}}),
        DETECTION,
    ),
    st.just(("session.update", {"session": {"instructions": "Be a dog.", "max_output_tokens": 30}})),
    st.builds(
        lambda text, name, final: ("input.text.append", {"text": text, "utterance": name, "final": final}),
        st.sampled_from(TEXTS),
        st.sampled_from(["a", "b"]),
        st.booleans(),
    ),
    st.just(("input.cancel", {})),
    st.builds(lambda count: ("playback.ack", {"played_chars": count}), st.integers(0, 60)),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 500), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from(["root", "LAST", "auto"]), st.lists(st.integers(), max_size=2), ITEM, RESPONSE,
    st.fixed_dictionaries({"audio": st.fixed_dictionaries({"input": st.one_of(st.none(), st.just({}))})}),
)  # fmt: skip
FIELDS = sorted({name for fields in (*EVENTS.values(), *EXTENSIONS.values()) for name in fields} | {"event_id"})
WILD = st.tuples(
    st.sampled_from([*EVENTS, *EXTENSIONS, "unknown"]),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
)
TALK = st.lists(
    st.tuples(st.one_of(SENSIBLE, SENSIBLE, SENSIBLE, WILD), st.sampled_from([0, 0, 0.005, 0.03])), max_size=30
)


def named(peer: RealtimePeer, message: Any) -> Any:
    """With the ids of what is there."""
    responses = [m["response"]["id"] for m in peer.seen if m["type"] == "response.created"]
    items = [m["item"]["id"] for m in peer.seen if m["type"] == "response.output_item.added"]
    text = json.dumps(message).replace('"LAST"', json.dumps(items[-1] if items else "gone"))
    return json.loads(text.replace('"RESPONSE"', json.dumps(responses[-1] if responses else "gone")))


def session_of(server: Running) -> RealtimeSession:
    (talk,) = server.talks._open.values()
    assert isinstance(talk.owner, Realtime)
    assert talk.owner.session is not None
    return talk.owner.session


async def read_all(peer: RealtimePeer) -> None:
    while True:
        await peer.next()


async def quiet(peer: RealtimePeer, reading: asyncio.Task[None]) -> None:
    """Until what was sent has been answered."""
    await peer.say("no such event", event_id="settled")
    while not any(m["type"] == "error" and m["error"]["event_id"] == "settled" for m in peer.seen):
        assert not reading.done(), reading.exception()
        await asyncio.sleep(0.002)
    peer.seen = [m for m in peer.seen if m["type"] != "error"]


async def end_well(server: Running, peer: RealtimePeer, reading: asyncio.Task[None]) -> None:
    """An ordinary turn is possible, and leaves session and client with the same history."""
    session = session_of(server)
    await peer.say("session.update", session={**configured(), "instructions": "", "max_output_tokens": "inf"})
    await peer.say("response.cancel")
    await quiet(peer, reading)
    assert session.handle.session.running is None
    done = sum(m["type"] == "response.done" for m in peer.seen)
    await peer.type("hello")
    await peer.say("response.create", event_id="last")
    await quiet(peer, reading)
    while sum(m["type"] == "response.done" for m in peer.seen) == done or session.handle.session.running is not None:
        assert not reading.done(), reading.exception()
        session.handle.hear_out()
        await asyncio.sleep(0.005)
    await quiet(peer, reading)
    assert [(item.role, item.text) for item in session.items] == peer.mirror.said
    assert turns(session.items) == merged(session.handle.session.history)


@settings(
    max_examples=size(25, 5000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not IS_LONG,
)
@given(TALK, st.sampled_from([5.0, 60.0, 1000.0]))
def test_both_sides_know_the_same_conversation(messages, rate):
    async def talk() -> None:
        limits = {"messages_per_second": 10_000, "words_per_second": rate, "max_answer": 120}
        async with serving(scripted_model(ANSWERS), **limits) as server:
            peer = await join(server, "?duplex=1")
            reading = asyncio.create_task(read_all(peer))
            try:
                for (kind, fields), wait in messages:
                    await peer.say(kind, **named(peer, fields))
                    await asyncio.sleep(wait)
                await quiet(peer, reading)
                await end_well(server, peer, reading)
                assert server.server.metrics.registry is not None
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    run(talk())
