"""Long texts of a client are tokenised one after the other, and others do not wait for them."""

import asyncio
import threading
import time

import pytest

from duologue.server.long_texts import LongTexts
from duplex_peer import run


def test_short_texts_are_tokenised_at_once():
    async def talk() -> None:
        assert await LongTexts().run("one", 10, threading.get_ident) == threading.get_ident()
        assert await LongTexts().run("one", 100_000, threading.get_ident) != threading.get_ident()

    run(talk())


def test_a_client_rests_after_a_long_text_and_others_do_not_wait_for_it():
    async def talk() -> None:
        texts, ended = LongTexts(), []

        async def tokenise(client: str) -> None:
            await texts.run(client, 100_000, time.sleep, 0.05)
            ended.append(client)

        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for client in ("busy", "busy", "other"):
                tasks.create_task(tokenise(client))
        assert ended[-1] == "busy"
        assert time.monotonic() - began >= 0.05 + 3 * 0.05 + 0.05

    run(talk())


def test_a_text_that_fails_or_is_cancelled_leaves_room_for_the_next():
    async def talk() -> None:
        texts = LongTexts()
        with pytest.raises(ValueError, match="invalid literal"):
            await texts.run("one", 100_000, int, "x")
        waiting = asyncio.create_task(texts.run("one", 100_000, time.sleep, 0.05))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await texts.run("one", 100_000, int, "7") == 7
        await asyncio.sleep(0.2)
        await texts.run("two", 100_000, int, "7")
        assert list(texts._lanes) == ["two"], "who has no long text is forgotten"

    run(talk())
