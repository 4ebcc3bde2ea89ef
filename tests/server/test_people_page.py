"""The page of a study: in a browser on a real server, and what the server refuses."""

import asyncio
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from browsing import PHONE, Browsing, browsing, run
from duologue.cli.main import main
from duologue.evaluation.people.app import MOST_BYTES, PAGE, create_app
from duologue.evaluation.people.ballots import Ballots
from duologue.evaluation.people.criteria import Criterion
from duologue.evaluation.people.study import Form, Study
from duologue.server.assets import FOLDER
from duologue.server.config import ServerConfig
from duologue.voice.engines.defaults import Engines
from duologue.voice.sound import silence, write_wav
from serving import Running, running, scripted_model, serving
from studies import ANSWER, recorded
from voiced import MICROPHONE_RATE, LoudnessDetector, LoudSynthesiser, ScriptedRecogniser, babble

TOKEN = "a-secret-of-the-tests"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return recorded(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(pristine: Study) -> Study:
    """A study without ballots."""
    pristine.ballots.unlink(missing_ok=True)
    return pristine


@contextlib.asynccontextmanager
async def serving_study(study: Study, **settings: Any) -> AsyncIterator[Running]:
    """Its server, in this event loop."""
    config = ServerConfig(**{"port": 0, **settings})
    async with running(create_app(study, config, chance=random.Random(0)), config) as server:
        yield server


async def ask(server: Running, path: str, body: Any = None, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        if body is None:
            return await client.get(server.http + path, headers=headers)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await client.post(server.http + path, content=content, headers=headers)


async def watch(on: Browsing) -> None:
    """Go to the end of both conversations."""
    seek = await on.shows("#seek")
    await seek.press("End")
    await on.page.locator("#next:enabled").wait_for()


async def vote(on: Browsing, value: str, criteria: list[str] | None = None) -> None:
    for criterion in criteria or list(Criterion):
        await on.page.locator(f'input[name="{criterion}"][value="{value}"]').check()
    await on.shows("#saved", "saved")


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.chromium
def test_a_ballot_that_is_cast_in_a_browser_is_in_the_figures(study: Study, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving_study(study) as server, browsing(server, "") as on:
            await on.page.locator("#begin").click()
            await on.shows("#progress", "0 of 2 done")
            assert await on.page.locator("fieldset:enabled").count() == 0  # nothing was seen yet
            assert await on.page.locator("#next").is_disabled()
            assert await on.page.locator(".said li").count() == 0
            await on.page.locator("#speed").select_option("4")
            await on.page.locator("#play").click()
            await on.shows("#a .user")  # words appear when they were said
            await on.shows("#b .assistant")
            await on.page.locator("#play").click()
            await watch(on)
            for text in ("duplex", "turns", "ignore"):
                assert text not in await on.page.content()
            await on.picture("people")
            ballots = Ballots(study.ballots)
            for number in (1, 2):
                (rater,) = {row[0] for row in raters(study)}
                shown = next(ballot for ballot in ballots.of(rater) if not ballot.is_complete)
                await watch(on)
                await vote(on, "a" if shown.a == "duplex" else "b")
                await on.page.locator("#next").click()
                await on.shows("#progress", f"{number} of 2 done")
            await on.shows("#finished")

    run(test())
    out = tmp_path / "out"
    assert main(["eval", "people", "report", str(study.folder), "--out", str(out)]) == 0
    people = json.loads((out / "result.json").read_text(encoding="utf-8"))["groups"]["people"]
    assert people["ballots"] == {"complete": 2, "partial": 0}
    for found in people["criteria"].values():
        assert (found["win"], found["tie"], found["loss"]) == (0, 0, 2)  # turns lost
    pytest.importorskip("matplotlib")
    svg = (out / "people.svg").read_text(encoding="utf-8")
    assert len(re.findall("<!-- 2 -->", svg)) == 5  # the label of each criterion's only bar


def raters(study: Study) -> list[tuple[str, str]]:
    """Of all ballots that there are, with a vote or without."""
    ballots = Ballots(study.ballots)
    with ballots._transaction() as db:
        return [(one.rater, one.example) for one in ballots._select(db)]


@pytest.mark.chromium
def test_a_rater_who_comes_back_goes_on(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server, browsing(server, "") as on:
            await on.page.locator("#begin").click()
            await watch(on)
            await vote(on, "tie", ["responsiveness", "overall"])
            await on.page.reload()
            await on.page.locator("#next:enabled").wait_for()  # what was seen need not be seen again
            checked = await on.page.evaluate(
                "() => [...document.querySelectorAll('input:checked')].map((one) => `${one.name} ${one.value}`)"
            )
            assert checked == ["responsiveness tie", "overall tie"]
            await on.page.locator("#next").click()  # the browser asks for the rest
            assert await on.page.locator("#questions input:invalid").count() > 0
            (ballot,) = Ballots(study.ballots).all()
            assert not ballot.is_complete
            await vote(on, "a")
            await on.page.locator("#next").click()
            await on.shows("#progress", "1 of 2 done")
            assert len({rater for rater, _ in raters(study)}) == 1

    run(test())


@pytest.mark.chromium
def test_votes_survive_a_lost_connection(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server, browsing(server, "", quiet=False) as on:
            await on.page.locator("#begin").click()
            await watch(on)
            await on.page.context.set_offline(True)
            await on.page.locator('input[name="overall"][value="b"]').check()
            await on.page.locator('input[name="factuality"][value="a"]').check()
            await on.shows("#banner", "The connection was lost")
            assert Ballots(study.ballots).all() == []
            await on.page.context.set_offline(False)
            await on.shows("#saved", "saved")
            await on.page.locator("#banner").wait_for(state="hidden")
            while [ballot.votes for ballot in Ballots(study.ballots).all()] != [{"overall": "b", "factuality": "a"}]:
                await asyncio.sleep(0.05)

    run(test())


@pytest.mark.chromium
def test_it_asks_for_the_token_and_fits_on_a_phone(study: Study) -> None:
    async def test() -> None:
        async with (
            serving_study(study, tokens=(TOKEN,)) as server,
            browsing(server, "", size=PHONE, dark=True, quiet=False) as on,
        ):
            await on.shows("#token")
            await on.page.locator("#token input").fill(TOKEN)
            await on.page.locator("#token button").click()
            await on.page.locator("#begin").click()
            await watch(on)
            width = await on.page.evaluate("() => document.documentElement.scrollWidth")
            assert width <= PHONE[0]
            await on.picture("people-phone")

    run(test())


@pytest.mark.chromium
def test_a_rater_talks_to_both_systems_before_voting(tmp_path: Path) -> None:
    async def test() -> None:
        answers = {"tell me a story": ANSWER}
        study = Study(tmp_path, Form.TALK, {})
        async with serving_study_to_talk_to(study, answers) as (server, systems), browsing(server, "") as on:
            await on.page.locator("#begin").click()
            await on.shows("#status", "You are talking to A.")
            assert await on.page.locator("fieldset:enabled").count() == 0
            await on.say("tell me a story")
            await on.shows("#a .assistant", "Once there was")
            assert await on.page.locator("#b li").count() == 0
            await on.page.locator("#switch").click()
            await on.shows("#status", "You are talking to B.")
            await on.say("tell me a story")
            await on.shows("#b .assistant", "Once there was")
            kinds = {talk.settings.kind for talk in systems.talks._open.values()}
            assert kinds == {"turns", "duplex"}
            await vote(on, "b")
            await on.picture("people-talk")
            await on.page.locator("#next").click()
            await on.shows("#finished")
        (ballot,) = Ballots(tmp_path / "ballots.sqlite").all()
        assert ballot.is_complete
        assert {ballot.a, ballot.b} == {"x", "y"}

    run(test())


@pytest.mark.chromium
def test_a_rater_speaks_to_a_system(tmp_path: Path) -> None:
    write_wav(
        tmp_path / "user.wav",
        [np.concatenate([silence(MICROPHONE_RATE), babble(1.2), silence(20 * MICROPHONE_RATE)])],
        MICROPHONE_RATE,
    )
    engines = Engines(ScriptedRecogniser([{0.3: "tell me a story"}, *[{}] * 20]), LoudSynthesiser(), LoudnessDetector)

    async def test() -> None:
        study = Study(tmp_path, Form.TALK, {})
        async with (
            serving_study_to_talk_to(study, {"tell me a story": ANSWER}, engines=engines) as (server, _),
            browsing(server, "", microphone=tmp_path / "user.wav") as on,
        ):
            await on.page.locator("#begin").click()
            await (await on.shows("#microphone")).click()
            await on.shows("#a .user", "tell me a story")
            await on.shows("#a .assistant", "Once there was")
            await on.page.locator("#switch").click()  # the microphone is not taken along
            await on.shows("#microphone[aria-pressed=false]", "Speak")

    run(test())


@contextlib.asynccontextmanager
async def serving_study_to_talk_to(
    study: Study, answers: dict[str, str], **more: Any
) -> AsyncIterator[tuple[Running, Running]]:
    """The study's server, and the one that it leads to, which accepts its origin."""
    from duologue.server.run import bind

    (held,) = bind("127.0.0.1", 0)
    port = held.getsockname()[1]
    held.close()
    async with serving(scripted_model(answers), **more, origins=(f"http://127.0.0.1:{port}",)) as systems:
        for name, kind in (("x", "turns"), ("y", "duplex")):
            study = study.with_system(name, {"url": f"{systems.http}/", "kind": kind})
        async with serving_study(study, port=port) as server:
            yield server, systems


# --------------------------------------------------------------------------------------------------- what is refused


def test_what_the_server_refuses(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server:
            rater = (await ask(server, "/api/join", {})).json()["rater"]
            example = (await ask(server, f"/api/next?rater={rater}")).json()["ballot"]["example"]
            good = {"rater": rater, "example": example, "votes": {"overall": "a"}}
            for body, message in (
                ({**good, "votes": {"beauty": "a"}}, "unknown criterion 'beauty'"),
                ({**good, "votes": {"overall": "duplex"}}, "unknown vote"),
                ({**good, "votes": {"overall": {}}}, "unknown vote"),
                ({**good, "votes": []}, "votes is"),
                ({**good, "example": "another"}, "no ballot on 'another'"),
                ({**good, "rater": "judge m"}, "no such rater"),
                ({"rater": rater}, "example is missing"),
                (b"{", "not JSON"),
                (b"[]", "a JSON object"),
                (json.dumps({**good, "more": "x" * MOST_BYTES}).encode(), f"at most {MOST_BYTES} bytes"),
            ):
                answer = await ask(server, "/api/ballot", body)
                assert answer.status_code == 400, body
                assert message in answer.json()["error"]["message"]
            assert Ballots(study.ballots).all() == []
            assert (await ask(server, "/api/next?rater=nobody")).status_code == 404
            assert (await ask(server, "/api/next")).status_code == 404
            assert (await ask(server, "/api/ballot")).status_code == 405
            for headers in ({"Host": "elsewhere.example"}, {"Origin": "https://elsewhere.example"}):
                assert (await ask(server, "/api/ballot", good, **headers)).status_code == 401
            assert (await ask(server, "/api/ballot", good)).json() == {"votes": {"overall": "a"}, "complete": False}

    run(test())


def test_a_token_is_needed_if_there_is_one(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study, tokens=(TOKEN,)) as server:
            for path, body in (
                ("/api/study", None),
                ("/api/next?rater=x", None),
                ("/api/join", {}),
                ("/api/ballot", {}),
            ):
                for headers in ({}, {"Authorization": "Bearer another-secret"}):
                    assert (await ask(server, path, body, **headers)).status_code == 401
            assert raters(study) == []
            good = await ask(server, "/api/study", Authorization=f"Bearer {TOKEN}")
            assert good.json()["form"] == "pairs"

    run(test())


def test_what_is_sent_to_a_rater_names_no_system(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server:
            rater = (await ask(server, "/api/join", {})).json()["rater"]
            answer = await ask(server, f"/api/next?rater={rater}")
            assert not re.search("duplex|turns|decided|dropped|held|deaf", answer.text)
            events = answer.json()["ballot"]["a"]["events"]
            assert {"received", "said", "heard"} <= {event["type"] for event in events}

    run(test())


def test_ballots_that_were_damaged_are_told(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server:
            study.ballots.write_text("nonsense " * 100, encoding="utf-8")
            answer = await ask(server, "/api/join", {})
            assert answer.status_code == 500
            assert "cannot be used" in answer.json()["error"]["message"]

    run(test())


def test_the_page_is_made_of_what_the_packages_have(study: Study) -> None:
    async def test() -> None:
        async with serving_study(study) as server:
            index = await ask(server, "/")
            assert "connect-src 'self';" in index.headers["content-security-policy"]
            for path in re.findall(r'(?:href|src)="([^"]+)"', index.text):
                assert (await ask(server, f"/{path}")).status_code == 200, path

    run(test())
    named = {"index.html", "main.js", "people.css"}
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search("https?://|innerHTML", text), path.name
        for place, name in re.findall(r'^import [^"]*?"(\./|\.\./page/)([^"]+)";', text, re.MULTILINE):
            assert ((PAGE if place == "./" else FOLDER) / name).is_file(), name
            named |= {name} if place == "./" else set()
    assert named == {path.name for path in PAGE.iterdir()}


def test_the_command_serves_until_it_is_told_to_end(study: Study) -> None:
    command = [sys.executable, "-m", "duologue", "eval", "people", "serve", str(study.folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["url"]
        assert httpx.get(f"{url}/api/study").json()["form"] == "pairs"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_without_a_token_only_this_machine_is_served(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "people", "serve", str(study.folder), "--host", "0.0.0.0"]) == 2
    assert "there is no token: set DUOLOGUE_SERVE_TOKENS" in capsys.readouterr().err
