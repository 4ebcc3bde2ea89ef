"""The snippets of docs/serving.md run as they stand, against a scripted server."""

import asyncio
import contextlib
import io
import re
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from duologue.models import model as models
from serving import Running, scripted_model, serving

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
CLIENT, OPENAI, MOUNTED = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
ANSWERS = {
    "tell me about the moon": "The moon goes around the earth. " * 20,
    "wait, what about the sun": "The sun is a star. " * 20,
    "hello": "Hello there.",
}


def printed(snippet: str, server: Running) -> str:
    """What a snippet prints when it talks to `server` instead of the usual port."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(snippet.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), {})
    return out.getvalue()


async def against_a_server(snippet: str) -> str:
    async with serving(scripted_model(ANSWERS), words_per_second=200.0) as server:
        return await asyncio.wait_for(asyncio.to_thread(printed, snippet, server), 30)


def test_the_client_interrupts_an_answer():
    output = asyncio.run(against_a_server(CLIENT))
    assert "[process " in output
    assert output.count("[cut after: ") == 1, "it interrupts one answer, and hears the other to its end"
    assert output.count("[process ") == 2
    assert "The sun is a star." in output
    assert "role=<Role.USER: 'user'>, text='wait, what about the sun'" in output


def test_the_client_of_openai_is_answered():
    assert asyncio.run(against_a_server(OPENAI)) == "Hello there.\n"


def test_the_application_answers_where_it_is_mounted(monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: scripted_model(ANSWERS))
    names: dict[str, Any] = {}
    exec(MOUNTED, names)
    app = names["app"]
    assert isinstance(app, Starlette)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        deadline = time.monotonic() + 30
        while client.get("/duologue/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.get("/duologue/ready").status_code == 200
