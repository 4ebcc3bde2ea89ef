"""What the tests of clients share."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from serving import Running

LONG = "Well, " + " ".join(f"word{i}" for i in range(60)) + "."
ANSWERS = {"tell me a lot": LONG, "hello": "Hi there.", "and who": "Nobody."}


def run(talk: Coroutine[Any, Any, None], *, seconds: float = 60) -> None:
    """Run to the end."""
    asyncio.run(asyncio.wait_for(talk, seconds))


def server_history(server: Running, role: str = "") -> list[tuple[str, str]]:
    """Of the only session on the server; with `role` "system", its system prompt."""
    (talk,) = server.talks._open.values()
    session = talk.handle.session
    if role:
        return [(role, session.template.tokenizer.decode(list(session.template.begin)))]
    return [(turn.role.value, turn.text) for turn in session.history]
