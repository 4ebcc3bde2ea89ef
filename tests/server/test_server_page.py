"""The page as a client gets it, and the kinds of conversations that it can set side by side."""

import re

import httpx
import pytest

from duologue.baselines.sessions import Turns, Vad
from duologue.core.session import Session
from duologue.server.assets import FOLDER
from duologue.server.fields import Rejection
from duologue.server.settings import KINDS, ConversationSettings
from duplex_peer import join, run
from serving import Running, scripted_model, serving


async def get(server: Running, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(server.http + path, headers=headers)


def test_it_comes_with_headers_that_keep_others_out():
    async def talk() -> None:
        async with serving(tokens=("a-secret-of-the-tests",)) as server:
            page = await get(server, "/")
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert page.headers["x-content-type-options"] == "nosniff"
            module = await get(server, "/page/main.js")
            assert module.headers["content-type"] == "text/javascript; charset=utf-8"
            assert module.headers["cache-control"] == "no-cache"
            again = await get(server, "/page/main.js", **{"If-None-Match": module.headers["etag"]})
            assert again.status_code == 304
            for path in ("/page/", "/page/nothing.js", "/page/../app.py", "/page/%2e%2e/app.py", "/nothing"):
                assert (await get(server, path)).status_code == 404, path

    run(talk())


def test_it_is_made_of_what_the_package_has_and_of_nothing_else():
    have = {path.name for path in FOLDER.iterdir()}
    described = (FOLDER.parent / "openapi.py").read_text(encoding="utf-8")  # has a page of its own
    named = set(re.findall(r'href="page/([^"]+)"', described))
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path.name
        if path.suffix == ".js":
            imported = re.findall(r'^import [^"]*?"([^"]+)";', text, re.MULTILINE)
            assert all(name.startswith("./") for name in imported), path.name
            named |= {name.removeprefix("./") for name in imported}
            named |= set(re.findall(r'addModule\((?:new URL\()?"(?:\./|/?page/)?([^"]+\.js)"', text))
        named |= set(re.findall(r'(?:href|src)="page/([^"]+)"', text))
    assert named == have - {"index.html"}


def test_kinds_of_conversations():
    async def talk() -> None:
        async with serving() as server:
            for kind, make in (("duplex", Session), ("turns", Turns), ("vad", Vad)):
                peer = await join(server)
                started = await peer.start(settings={"kind": kind, "hearing": "shown"})
                assert started["settings"]["kind"] == kind
                (open_talk,) = server.talks._open.values()
                assert type(open_talk.handle.session) is make
                await peer.say("hear", text="dogs", final=True)
                await peer.until("committed")
                await peer.say("end")
                await peer.until("closing")

    run(talk())


def test_a_conversation_in_turns_is_deaf_while_it_answers():
    async def talk() -> None:
        async with serving() as server:
            peer = await join(server)
            await peer.start(settings={"kind": "turns", "hearing": "reported"})
            await peer.say("hear", text="dogs", utterance="a", final=True)
            await peer.until("said")
            await peer.say("hear", text="what about cats", utterance="b", final=True)
            assert (await peer.until("dropped"))["reason"] == "deaf"
            assert "decided" not in {message["type"] for message in peer.seen}

    run(talk())


@pytest.mark.parametrize("kind", ["tdm", "", None, 3, ["duplex"]])
def test_a_kind_that_there_is_not_is_refused(kind):
    with pytest.raises(Rejection, match=r"kind is .*: it must be one of duplex, turns, vad"):
        ConversationSettings.from_json({"kind": kind})


def test_a_kind_is_kept_in_a_record():
    for kind in KINDS:
        settings = ConversationSettings.from_json({"kind": kind})
        assert ConversationSettings.from_json(settings.as_json()) == settings
    assert ConversationSettings.from_json({}).kind == "duplex"


def test_a_session_of_another_kind_has_what_the_settings_say():
    async def talk() -> None:
        model = scripted_model()
        async with serving(model) as server:
            settings = ConversationSettings.from_json(
                {"kind": "vad", "eagerness": 1.0, "system": "Be terse.", "seed": 7}
            )
            session = settings.session(model, server.server.config)
            assert isinstance(session, Vad)
            assert (session.policy.eagerness, session.config.seed) == (1.0, 7)

    run(talk())
