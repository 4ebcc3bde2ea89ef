"""Random operations over many sessions, long conversations, and many short ones: nothing drifts, and nothing is left.

`DUOLOGUE_SOAK=1` makes them a hundred times as long.
"""

import gc
import math
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from crowd import Crowd, Guest
from duologue.backends.reference import ReferenceBackend
from duologue.backends.torch.backend import TorchBackend
from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.events import Decided, Dropped, Event, Held, Promoted, Said, TakenBack, Trimmed
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.engine.engine import Engine
from duologue.engine.handle import Handle
from duologue.errors import EngineFull
from duologue.testing.row_contract import every_second, num_alive
from duologue.testing.tiny_models import embedding_rows, tiny_model, tiny_rows
from duologue.text.template import Template
from duologue.types import Role, Token, Turn
from scripted import ByteTokenizer
from soak import size
from tiny_probes import TINY_PROBE

WORDS = ["what", "is", "the", "weather", "stop", "mhm", "go", "on", "about", "a", "please", "continue", ",", "x", "é"]
KINDS = ["hear"] * 8 + ["heard"] * 10 + ["wait"] * 6 + ["respond"] * 6 + ["stop", "resume"] * 3 + ["edit", "renew"]


def operation(chance: random.Random) -> tuple[str, Any]:
    """Something that can happen to a session, as data, so that it can be done to several in the same way."""
    kind = chance.choice(KINDS)
    match kind:
        case "hear":
            text = " ".join(chance.choices(WORDS, k=chance.randint(0, 5)))
            return kind, (text, f"u{chance.randint(0, 3)}", chance.random() < 0.5)
        case "heard":
            return kind, chance.random()
        case "edit":
            return kind, [Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, "hi")][: chance.randint(0, 2)]
    return kind, None


def happen(session: Session, kind: str, value: Any) -> list[Event]:
    """Do it."""
    match kind:
        case "hear":
            text, utterance, final = value
            return session.hear(text, utterance=utterance, final=final)
        case "heard" if session.running is not None:
            return session.heard(int(value * session.running.num_said))
        case "edit":
            return session.edit(value)
        case "stop" | "resume" | "respond":
            events: list[Event] = getattr(session, kind)()
            return events
    return []


def plain(events: Sequence[Event]) -> list[Event]:
    """Events without probabilities, which differ in the last digits."""
    return [
        replace(e, decision=replace(e.decision, p=0.0, probabilities=())) if isinstance(e, Decided) else e
        for e in events
    ]


class World:
    """An engine on a backend, and the sessions in it."""

    def __init__(self, backend: Backend, template: Template) -> None:
        self.now = 0.0
        self.engine = Engine(
            backend, max_tokens_per_pass=1 << 20, max_seconds_per_pass=math.inf, clock=lambda: self.now
        )
        self.template = template
        self.handles: dict[int, Handle] = {}
        self.events: dict[int, list[Event]] = {}

    def open(self, number: int, config: SessionConfig) -> None:
        session = Session(self.template, TINY_PROBE, policy=Policy(p_sure=0.4), config=config)
        told = self.events[number] = []
        self.handles[number] = self.engine.open(
            session, sink=lambda record: told.append(record) if isinstance(record, Event) else None
        )

    def close(self, number: int) -> None:
        self.handles.pop(number).close()

    def check(self) -> None:
        """Nobody has failed."""
        for handle in self.handles.values():
            list(handle.new_events())


@pytest.mark.parametrize("seed", range(4))
def test_random_operations_on_many_sessions_are_those_on_each_alone_on_the_reference(seed: int) -> None:
    chance = random.Random(seed)
    template = Template.from_tokenizer(ByteTokenizer())
    model = tiny_model("llama")
    model.config.max_position_embeddings = 1024
    fast = TorchBackend(model, rows=tiny_rows(), capacity=4096, max_seqs=64, context_length=512)
    slow = ReferenceBackend(model, rows=tiny_rows(), context_length=512)
    together = World(fast, template)
    alone = [World(slow, template) for _ in range(4)]

    def config() -> SessionConfig:
        # so small a lookahead that an answer never waits for another session's pass, of which there are none alone
        return SessionConfig(max_length=256, max_answer=20, heard="reported", lookahead=2, seed=chance.randint(0, 9))

    for number, world in enumerate(alone):
        settings = config()
        for each in (together, world):
            each.open(number, settings)
    for step in range(size(250, 25_000)):
        number = chance.randrange(4)
        kind, value = operation(chance)
        now = step * 0.3
        settings = config()
        for world in (together, *alone):
            world.now = now
        for world in (together, alone[number]):
            if kind == "renew":
                world.close(number)
                world.open(number, settings)
            handle = world.handles[number]
            handle.advance(now)
            handle.report(happen(handle.session, kind, value))
        for _ in range(chance.randint(0, 8)):
            for world in (together, *alone):
                world.engine.tick()
        for world in (together, *alone):
            world.check()
        for i, world in enumerate(alone):
            assert plain(together.events[i]) == plain(world.events[i])
            together.events[i].clear()
            world.events[i].clear()
            assert together.handles[i].session.history == world.handles[i].session.history
    for world in (together, *alone):
        world.engine.close()
    assert fast.usage().kv_entries == fast.usage().num_seqs == slow.usage().num_seqs == 0


class RowTokenizer(ByteTokenizer):
    """Half of all bytes are embedding rows, as if an encoder had made them; marks and sampled tokens are ids."""

    def __init__(self, backend: Backend, model: Any) -> None:
        super().__init__()
        self._backend = backend
        self._model = model

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        tokens = super().encode(text, special=special)
        rows = self._backend.embed(embedding_rows(self._model, tokens)) if tokens else ()
        return [row if every_second(token) else token for token, row in zip(tokens, rows, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_sessions_that_hear_embedding_rows_do_what_they_do_with_tokens(seed: int) -> None:
    """Turns of rows and tokens are held, dropped, promoted, taken back and fed again, with the same events."""
    chance, alive = random.Random(seed), num_alive()
    model = tiny_model("llama")
    model.config.max_position_embeddings = 1024
    backend = TorchBackend(model, rows=tiny_rows(), capacity=2048, max_seqs=32, context_length=512)
    tokenizers = (ByteTokenizer(), RowTokenizer(backend, model))
    worlds = [World(backend, Template.from_tokenizer(tokenizer)) for tokenizer in tokenizers]
    settings = SessionConfig(max_length=256, max_answer=20, heard="reported", lookahead=2, seed=seed)
    for world in worlds:
        world.open(0, settings)
    kinds = set()
    for step in range(size(200, 25_000)):
        kind, value = operation(chance)
        for world in worlds:
            world.now = step * 0.3
            if kind == "renew":
                world.close(0)
                world.open(0, settings)
            world.handles[0].advance(world.now)
            world.handles[0].report(happen(world.handles[0].session, kind, value))
        for _ in range(chance.randint(0, 8)):
            for world in worlds:
                world.engine.tick()
        assert worlds[1].events[0] == worlds[0].events[0]
        kinds |= {type(event) for event in worlds[0].events[0]}
        for world in worlds:
            world.check()
    assert {Promoted, Dropped, Held, TakenBack, Said} <= kinds
    assert num_alive() > alive
    for world in worlds:
        world.engine.close()
    assert backend.usage().num_seqs == 0
    del world, worlds, tokenizers
    gc.collect()
    assert num_alive() == alive


def check_cache(crowd: Crowd, guest: Guest) -> None:
    """The KV of a session is what it claims to be."""
    branch, listening = guest.session._output, guest.session._input.current
    channels = [branch.sequence, *(answer.sequence for answer in branch.suspended)]
    if listening is not None and listening.sequence is not None:
        channels.append(listening.sequence)
    for channel in channels:
        seq = guest.handle.sequences.seqs.get(channel.seq)
        if seq is not None and not guest.handle.sequences.is_behind:
            held = crowd.script.backend.tokens(seq)
            assert held[: channel.cached] == channel.items[: channel.cached]
            assert len(held) >= channel.cached


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_where_there_is_little_room(seed: int) -> None:
    chance = random.Random(seed)
    crowd = Crowd(
        capacity=chance.choice([700, 1500, 1 << 20]),
        max_seqs=chance.choice([8, 12, 64]),
        max_tokens_per_pass=chance.choice([5, 32, 128]),
        overcommit=4.0,
        tick_s=0.2,
    )
    config = SessionConfig(max_length=256, max_answer=60, heard="reported", lookahead=12)
    guests = [crowd.guest(config=config)]
    for _ in range(size(170, 17_000)):
        if chance.random() < 0.06:
            try:
                guests.append(crowd.guest(config=config))
            except EngineFull:
                guests.pop(chance.randrange(len(guests))).handle.close()
        guests = guests or [crowd.guest(config=config)]
        guest = chance.choice(guests)
        forward_pass = crowd.engine.plan() if chance.random() < 0.5 else None
        kind, value = operation(chance)
        if kind == "renew":  # also while a pass is under way
            guest.handle.close()
            guests.remove(guest)
        else:
            guest.told(happen(guest.session, kind, value))
        if forward_pass is not None:
            forward_pass.run()
            crowd.engine.take(forward_pass)
        crowd.now += 0.1
        crowd.tick(chance.randint(0, 6))
        crowd.batches.clear()
        for each in guests:
            check_cache(crowd, each)
            each.events.clear()
            each.passes.clear()
        lost = [each for each in guests if each.failure is not None]
        for each in lost:
            assert "no room" in str(each.failure) or "free" in str(each.failure) or "limit" in str(each.failure)
            guests.remove(each)
    crowd.engine.close()
    assert crowd.backend.usage().kv_entries == crowd.backend.usage().num_seqs == 0


def test_a_long_conversation_needs_no_more_memory_than_a_short_one() -> None:
    crowd = Crowd({"tell me more": "There is more."}, capacity=600)
    guest = crowd.guest(config=SessionConfig(max_length=256), policy=Policy(p_sure=0.5))
    num_turns, num_trimmed, held = size(300, 10_000), 0, []
    tracemalloc.start()
    try:
        for turn in range(num_turns):
            guest.hear("tell me more" if turn % 5 else "mhm", f"u{turn}")
            crowd.run()
            assert guest.failure is None
            num_trimmed += sum(isinstance(event, Trimmed) for event in guest.events)
            for record in (guest.events, guest.passes, crowd.batches):
                record.clear()
            assert crowd.backend.usage().kv_entries <= 512
            assert crowd.backend.usage().num_seqs <= 3
            if turn in (100, num_turns - 1):
                gc.collect()  # also what the interpreter keeps for later use
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert num_trimmed > 20
    assert held[1] - held[0] < 100_000, "free lists of the interpreter, which fill up; not kilobytes a turn"
    assert guest.failure is None
