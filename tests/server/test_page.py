"""The page, in a browser, on a real server around a scripted model."""

import asyncio
import json
from pathlib import Path

import pytest

import duologue
from browsing import PHONE, QUICK, Browsing, browsing, run
from duologue.core.events import as_dict, from_dict
from duologue.core.history import Ledger
from duologue.server.record import read_record
from duologue.text.words import is_word_end, words_of
from duologue.types import InputState, Turn
from scripted import Talk
from serving import scripted_model, serving

pytestmark = pytest.mark.chromium

STORY = (
    "Once there was a fisherman who lived by the sea. Every morning he rowed out before the sun was up, and every "
    "evening he came home with less than he had hoped for. One day his net was heavy. He pulled, and pulled again."
)
EPIC = " ".join(STORY.replace("One day", f"On day {day}") for day in range(1, 12))
DOGS = "Dogs are loyal animals, and they like to run."
ANSWERS = {"tell me a story": STORY, "tell me all": EPIC, "what about dogs": DOGS}


def history(server) -> list[tuple[str, str]]:
    """Of the one conversation there is."""
    (talk,) = server.talks._open.values()
    return [(str(turn.role), turn.text) for turn in talk.handle.session.history]


def page_of_story(**settings):
    return serving(scripted_model(ANSWERS, max_length=8192), **{"max_answer": 4000, "context": 8192, **settings})


def test_an_interruption_typed_in_the_middle_of_an_answer():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me all")
            await on.heard(9)
            await on.say("what about dogs")
            await on.shows(".cut-note", "cut here")
            await on.shows(".user .outcome", "cut in, answered")
            await on.page.wait_for_function("text => heard(0).endsWith(text)", arg=DOGS)
            (asked, told, _, _) = history(server)
            assert asked == ("user", "tell me all")
            parts = await on.page.locator(".assistant:not([hidden])").all()
            heard = "".join(["".join(await part.locator(".heard").all_text_contents()) for part in parts[:-1]])
            assert told == ("assistant", heard)  # what is shown as heard is what the history has
            assert EPIC.startswith(heard)
            cut = await on.page.locator(".cut").text_content()
            assert EPIC.startswith(heard + cut)
            await on.picture("interrupted")

    run(test())


def test_an_aside_is_ignored():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me a story")
            await on.heard(6)
            await on.say("mhm")
            await on.shows(".user[data-reason=ignore] .outcome", "ignored")
            await on.shows(".chip[data-state=ignore]", "ignore 0.91")
            await on.page.wait_for_function("text => heard(0) === text", arg=STORY)
            assert await on.page.locator(".cut").count() == 0
            while history(server) != [("user", "tell me a story"), ("assistant", STORY)]:
                await asyncio.sleep(0.01)
            await on.picture("ignored")

    run(test())


def test_words_are_judged_while_they_are_typed():
    async def test() -> None:
        async with page_of_story() as server, browsing(server, "?rate=20") as on:
            await on.say("tell me a", ends=False)
            slice_ = await on.shows(".slice[data-state=incomplete]", "tell me a")
            assert await on.page.locator("#input").input_value() == "tell me a"
            await slice_.hover()
            await on.shows("#tooltip .chance[data-state=incomplete] .value", "91 %")
            await on.say(" story")
            await on.shows(".slice[data-state=process]", "story")
            assert await on.page.locator(".slice[data-state=incomplete]").inner_text() == "tell me a"
            await on.page.wait_for_function("text => heard(0) === text", arg=STORY)
            await on.say("what about the", ends=False)
            await on.shows(".user .words", "what about the")
            await on.page.locator("#input").fill("")  # words that are taken back are not said
            await on.page.wait_for_function("() => !document.body.innerText.includes('what about the')")

    run(test())


def test_a_connection_that_is_cut_goes_on():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me all")
            await on.heard(6)
            server.cut()
            await on.shows(".status[data-name=lost]")
            await on.say("what about")  # what is typed meanwhile arrives, once
            await on.shows(".status[data-name=open]")
            await on.shows(".user .words", "what about")
            events = await download(on)
            numbers = [row["text"] for row in events if row["type"] == "received" and row["final"]]
            assert numbers == ["tell me all", "what about"]
            assert on.complaints == []

    run(test())


def test_a_server_that_forgot_the_conversation_is_told_it_again():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("what about dogs")
            await on.page.wait_for_function("text => heard(0) === text", arg=DOGS)
            while len(history(server)) < 2:
                await asyncio.sleep(0.01)
            server.cut()
            (talk,) = server.talks._open.values()
            talk.close("forgotten by the test")
            await on.shows("li.note", "the server had forgotten")
            await on.say("tell me a story")
            await on.heard(12)
            assert history(server)[:2] == [("user", "what about dogs"), ("assistant", DOGS)]

    run(test())


def test_a_page_that_is_loaded_again_has_its_conversation():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("what about dogs")
            await on.page.wait_for_function("text => heard(0) === text", arg=DOGS)
            await on.page.reload()
            await on.page.wait_for_function("text => heard(0) === text", arg=DOGS)
            await on.say("tell me a story")
            await on.heard(12)
            assert history(server)[0] == ("user", "what about dogs")
            assert len(server.talks) == 1

    run(test())


def test_a_conversation_that_another_page_took_can_be_taken_back():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("what about dogs")
            await on.page.wait_for_function("text => heard(0) === text", arg=DOGS)
            stored = await on.page.evaluate("() => sessionStorage.getItem('duologue-talks')")
            other = await on.page.context.new_page()
            await other.goto(server.http + "/" + QUICK)
            await other.locator(".status[data-name=open]").first.wait_for()  # else it writes its own name afterwards
            await other.evaluate("text => sessionStorage.setItem('duologue-talks', text)", stored)
            await other.reload()
            await on.shows("#banner", "another page has taken the conversation over")
            await other.wait_for_function("text => heard(0) === text", arg=DOGS)
            await on.page.locator("#banner button").click()
            await on.shows(".status[data-name=open]")
            await other.locator("#banner", has_text="another page").wait_for()

    run(test())


def test_stop_go_on_and_holding_the_floor():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.page.locator("#interruptible").select_option("false")
            await on.say("tell me all")
            await on.heard(6)
            await on.say("what about dogs")
            await on.shows(".user .outcome", "answered afterwards")
            await on.page.locator("#input").press("Escape")
            await on.shows(".cut-note")
            await on.page.locator("#input").press("Control+Shift+Enter")
            await on.shows(".words .note", "goes on")
            await on.page.wait_for_url("**/*interruptible=false*")
            await on.page.reload()
            assert await on.page.locator("#interruptible").input_value() == "false"

    run(test())


def test_beside_a_conversation_in_turns():
    async def test() -> None:
        async with page_of_story() as server, browsing(server, QUICK + "&compare=turns") as on:
            await on.say("tell me all")
            await on.heard(6)
            await on.heard(6, view=1)
            await on.say("what about dogs")
            duplex, turns = await on.page.locator(".transcript").all()
            await duplex.locator(".cut-note").wait_for()
            await turns.locator(".outcome", has_text="not heard: it was talking").wait_for()
            await on.page.wait_for_function("text => heard(0).endsWith(text)", arg=DOGS)
            await on.heard(30, view=1)
            assert await turns.locator(".cut-note").count() == 0
            assert {talk.settings.kind for talk in server.talks._open.values()} == {"duplex", "turns"}
            await on.picture("compared")

    run(test())


async def download(on: Browsing) -> list[dict]:
    """The events of the file that the page offers."""
    async with on.page.expect_download() as offered:
        await on.page.locator("#download").click()
    path = await (await offered.value).path()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


DROP = """(text) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([text], "talk.jsonl"));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
}"""


def test_what_is_downloaded_is_a_record_and_can_be_shown_again(tmp_path: Path):
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me all")
            await on.heard(9)
            await on.say("what about dogs")
            await on.page.wait_for_function("text => heard(0).endsWith(text)", arg=DOGS)
            async with on.page.expect_download() as offered:
                await on.page.locator("#download").click()
            path = tmp_path / "talk.jsonl"
            await (await offered.value).save_as(path)
            told = [(str(turn.role), turn.text) for turn in read_record(path).ledger.history]
            assert told == history(server)
            live = await on.heard_text()
            end = read_record(path).events[-1].at
            with path.open("a", encoding="utf-8") as file:  # of later versions, or of somebody who means no good
                for kind in ("__proto__", "constructor", "later"):
                    file.write(json.dumps({"at": end, "type": kind}) + "\n")

            await on.page.locator("#file").set_input_files(path)
            await on.shows("#player #time")
            seek = on.page.locator("#seek")
            await seek.press("End")
            await on.page.wait_for_function("text => heard(0) === text", arg=live)
            await seek.press("Home")
            await on.page.wait_for_function("() => heard(0) === ''")
            await on.page.locator("#speed").select_option("8")
            await on.page.locator("#play").click()
            await on.page.wait_for_function("text => heard(0) === text", arg=live)
            await on.picture("replayed")
            await on.page.locator("#live").click()
            await on.page.wait_for_function("text => heard(0) === text", arg=live)

            await on.page.evaluate(DROP, path.read_text(encoding="utf-8"))
            await on.shows("#player #time")

            path.write_text("no record\n", encoding="utf-8")
            await on.page.locator("#file").set_input_files(path)
            await on.shows("#banner", "line 1 is not JSON")

    run(test())


def test_events_are_listed_and_filtered():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.page.locator("#log summary").click()
            await on.say("what about dogs")
            await on.shows(".event .type", "committed")
            await on.page.locator("#filter").fill("process -said")
            await on.page.wait_for_function("() => document.querySelectorAll('.event').length === 1")
            assert "decided" in await on.page.locator(".event").inner_text()

    run(test())


def test_a_token_is_taken_from_the_address_and_asked_for():
    async def test() -> None:
        token = "a-secret-of-the-tests"
        async with page_of_story(tokens=(token,)) as server:
            async with browsing(server, f"{QUICK}#token={token}") as on:
                await on.shows(".status[data-name=open]")
                assert token not in on.page.url
                await on.page.reload()
                await on.shows(".status[data-name=open]")
            async with browsing(server, quiet=False) as on:
                await on.page.locator("#token input").fill(token)
                await on.page.locator("#token button").click()
                await on.shows(".status[data-name=open]")

    run(test())


def test_nothing_comes_from_elsewhere_and_what_is_typed_is_text():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("<img src=x onerror=alert(1)> <|process|> mhm")
            await on.shows(".user .words", "<img src=x onerror=alert(1)>")
            assert await on.page.locator(".transcript img").count() == 0
            assert on.requests
            assert all(url.startswith(server.http) for url in on.requests)

    run(test())


def test_a_screen_reader_is_told_sentences():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me a story")
            region = on.page.locator("#live-region")
            await region.get_by_text("Once there was a fisherman who lived by the sea.", exact=True).wait_for(
                state="attached"
            )
            await on.say("mhm")
            await region.get_by_text("Your words were ignored.").wait_for(state="attached")
            await on.page.keyboard.press("Tab")  # all can be reached without a pointer
            reached = set()
            for _ in range(30):
                reached.add(await on.page.evaluate("() => document.activeElement.id"))
                await on.page.keyboard.press("Tab")
            assert {"stop", "resume", "respond", "interruptible", "eagerness", "rate", "download"} <= reached

    run(test())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_has_room_for_it(dark):
    async def test() -> None:
        async with page_of_story() as server, browsing(server, size=PHONE, dark=dark) as on:
            await on.say("tell me all")
            await on.heard(9)
            await on.say("what about dogs")
            await on.heard(14)
            wide = await on.page.evaluate("() => document.documentElement.scrollWidth")
            assert wide <= PHONE[0]
            for name in ("#input", "#stop", "canvas", ".transcript"):
                assert await on.page.locator(name).is_visible()
            await on.picture(f"phone-{'dark' if dark else 'light'}")

    run(test())


def test_figures_fit_into_their_column():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            await on.say("tell me all")
            await on.heard(9)
            await on.say("what about dogs")
            await on.shows(".cut-note", "cut here")
            column = on.page.locator("aside")
            assert await column.evaluate("it => it.scrollWidth - it.clientWidth") == 0

    run(test())


def test_an_example_is_typed_into_the_live_server():
    async def test() -> None:
        fisherman = {"Tell me a long story about a fisherman.": STORY}
        async with serving(scripted_model(fisherman)) as server, browsing(server) as on:
            await on.page.get_by_role("button", name="Talk past it").click()
            await on.shows(".user[data-reason=ignore]", "mhm")
            await on.say("I would rather type")  # who types himself ends it
            await on.shows(".user .words", "I would rather type")
            await on.page.evaluate(FRAMES, 60)
            assert await on.page.locator("#input").input_value() == ""

    run(test())


def unsure(words: str) -> tuple[float, ...]:
    """More likely unfinished than not."""
    likely = {InputState.INCOMPLETE: 0.5, InputState.PROCESS: 0.4}
    return tuple(likely.get(state, 0.05) for state in InputState)


def test_the_slider_moves_how_soon_it_answers():
    async def test() -> None:
        async with serving(scripted_model(judge=unsure)) as server, browsing(server) as on:
            await on.say("some dogs")
            await on.shows(".slice[data-state=incomplete]", "some dogs")
            await on.page.locator("#eagerness").press("End")
            (talk,) = server.talks
            while talk.settings.eagerness != 1:
                await asyncio.sleep(0.01)
            await on.say("other dogs")
            await on.shows(".slice[data-state=process]", "other dogs")
            await on.shows(".user .outcome", "answered")
            await on.heard(3)
            await on.page.wait_for_url("**/*eagerness=1*")

    run(test())


def test_figures_are_there_once_there_is_something_to_measure():
    async def test() -> None:
        async with page_of_story() as server, browsing(server) as on:
            row = on.page.locator("#figures tr")
            await row.nth(3).wait_for()
            assert [await row.nth(i).locator("td").inner_text() for i in range(4)] == ["–"] * 4
            await on.say("tell me all")
            await on.heard(9)
            assert [await row.nth(i).locator("td").inner_text() != "–" for i in range(4)] == [True, True, False, True]
            await on.say("what about dogs")
            await on.shows(".cut-note")
            await row.nth(2).locator("td", has_not_text="–").wait_for()

    run(test())


FRAMES = "num => new Promise((done) => { const next = () => num-- ? requestAnimationFrame(next) : done(); next(); })"


def test_an_answer_that_is_not_shown_is_not_read():
    async def test() -> None:
        async with page_of_story() as server, browsing(server, "?rate=60&pause=2000") as on:
            reported: list[str] = []

            def report(data) -> None:
                if json.loads(data)["type"] == "heard":
                    reported.append(data)

            on.page.on("websocket", lambda socket: socket.on("framesent", report))
            await on.page.reload()
            await on.say("tell me all")
            await on.heard(9)
            await on.page.locator("#again").click()
            await on.shows("#player #time")
            await on.page.evaluate(FRAMES, 2)
            num_reported = len(reported)
            assert num_reported
            await on.page.evaluate(FRAMES, 60)
            assert len(reported) == num_reported
            await on.page.locator("#live").click()
            await on.page.wait_for_function("text => heard(0) === text", arg=EPIC)

    run(test())


def test_a_server_that_is_silent_while_sound_is_sent_to_it_is_given_up():
    async def test() -> None:
        async with serving() as server, browsing(server) as on:
            code = """async () => {
                const { Wire } = await import("./page/wire.js");
                const sockets = [];
                const statuses = [];
                const sent = [];
                let now = 0;
                let check;
                window.WebSocket = class {
                    static OPEN = 1;
                    readyState = 1;
                    constructor() { sockets.push(this); }
                    send(data) { sent.push(typeof data === "string" ? JSON.parse(data).type : "sound"); }
                    close() {}
                };
                window.setInterval = (act) => (check = act);
                performance.now = () => now;
                const told = { status: (name) => statuses.push(name), started() {} };
                const wire = new Wire({ start: () => ({}), token: null, told });
                wire.open();
                sockets[0].onopen();
                sockets[0].onmessage({ data: JSON.stringify({ type: "started", session: "s", number: 0, taken: 0 }) });
                for (now of [2500, 4500, 6500]) {
                    wire.sendBinary(new ArrayBuffer(960));
                    check();
                }
                return { sent, statuses };
            }"""
            found = await on.page.evaluate(code)
            assert found["sent"] == ["start", "sound", "ping", "sound", "ping", "sound"]
            assert found["statuses"] == ["connecting", "open", "lost"]

    run(test())


@pytest.mark.smollm2
def test_the_default_model_behind_it():
    async def test() -> None:
        model = duologue.load(sessions=2, context_length=2048)
        try:
            async with serving(model, max_sessions=2) as server, browsing(server, "") as on:
                await on.say("Tell me a long story about a fisherman.", delay=30)
                await on.heard(6)
                await on.say("mhm", delay=60)
                await on.shows(".user[data-reason=ignore] .outcome", "ignored")
                await on.heard(13)
                await on.say("Wait, what is", ends=False, delay=60)
                await on.shows(".slice[data-state=incomplete]", "Wait, what is")
                await on.say(" the capital of Italy?", delay=60)
                await on.shows(".user .outcome", "cut in, answered")
                await on.shows(".assistant .heard", "Rome")
                await on.picture("page")
        finally:
            model.close()

    run(test())


# ------------------------------------------------------------------------------------------------------ its arithmetic


def events_of(talk: Talk) -> list[dict]:
    return [as_dict(event) for event in talk.events]


def lively() -> list[dict]:
    """Events of a conversation in which everything happens, with characters beyond the first plane."""
    talk = Talk({"smile": "Well 😀😀 here you are 😀 and that is all there is to say.", "dogs": DOGS})
    talk.hear("smile")
    talk.tick(30)
    talk.hear("mhm", "v")
    talk.tick(10)
    talk.hear("dogs", "w")
    talk.tick(20)
    talk.hear("stop", "x")
    talk.tick(20)
    talk.hear("go on", "y")
    talk.run()
    talk.hear("about the", "z", final=False)
    talk.advance(10)
    talk.run()
    talk.hear("cats", "z2", final=False)
    talk.tick(2)
    talk.hear("cats and a", "z2", final=False)
    talk.run()
    talk.told(talk.session.edit(talk.session.history[:2]))
    talk.hear("dogs", "last")
    talk.run()
    return events_of(talk)


def test_a_page_and_the_library_tell_the_same_history():
    async def test() -> None:
        events = lively()
        assert {row["type"] for row in events} >= {
            "suspended",
            "resumed",
            "taken_back",
            "withdrawn",
            "edited",
            "dropped",
        }
        async with serving() as server, browsing(server) as on:
            code = """async (events) => {
                const { Conversation } = await import("./page/conversation.js");
                const conversation = new Conversation();
                return events.map((event) => (conversation.take(event), conversation.history));
            }"""
            told = await on.page.evaluate(code, events)
        ledger = Ledger()
        for row, turns in zip(events, told, strict=True):
            event = from_dict(row)
            assert event is not None
            ledger(event)
            assert turns == [{"role": str(turn.role), "text": turn.text} for turn in ledger.history], row

    run(test())


def expected(events: list[dict]) -> list[Turn]:
    """The history behind them; they end with an edit and one more turn, so what was before does not matter."""
    ledger = Ledger()
    for row in events:
        event = from_dict(row)
        assert event is not None
        ledger(event)
    return ledger.history


ASKED = [
    {"type": "received", "at": 1.0, "utterance": "u", "text": "what about", "final": False},
    {"type": "received", "at": 1.4, "utterance": "u", "text": "what about dogs", "final": True},
    {"type": "decided", "at": 1.5, "utterance": "u", "text": "what about dogs", "state": "process", "p": 0.9,
     "probabilities": {"process": 0.9}, "speaking": False, "heard_at": 1.4},
    {"type": "promoted", "at": 1.6, "utterance": "u", "text": "what about dogs", "answer": 0},
    {"type": "released", "at": 1.6, "answer": 0},
    {"type": "said", "at": 1.8, "answer": 0, "start": 0, "text": DOGS},
    {"type": "heard", "at": 2.5, "answer": 0, "position": 4},
]  # fmt: skip
CUT = [
    {"type": "received", "at": 3.0, "utterance": "v", "text": "", "final": False},
    {"type": "received", "at": 3.2, "utterance": "v", "text": "be quiet", "final": True},
    {"type": "decided", "at": 3.25, "utterance": "v", "text": "be quiet", "state": "stop", "p": 0.9,
     "probabilities": {"stop": 0.9}, "speaking": True, "heard_at": 3.2},
    {"type": "dropped", "at": 3.25, "utterance": "v", "text": "be quiet", "reason": "stop"},
    {"type": "suspended", "at": 3.25, "answer": 0, "heard": "Dogs", "unheard": DOGS[4:]},
]  # fmt: skip


@pytest.mark.parametrize("is_said", [False, True])
def test_a_page_that_is_loaded_before_an_answer_is_heard_shows_the_question(is_said):
    async def test() -> None:
        async with serving() as server, browsing(server) as on:
            code = """async ([history, running, asked, events]) => {
                const { Conversation } = await import("./page/conversation.js");
                const conversation = new Conversation(history, running, asked);
                const before = conversation.history;
                for (const event of events) conversation.take(event);
                return [before, conversation.history, conversation.entries.length];
            }"""
            history = [{"role": "user", "text": "hi"}, {"role": "assistant", "text": "Hello."}]
            running = {"answer": 1, "text": "Dogs", "heard": 0} if is_said else None
            asked = {"answer": 1, "text": "what about dogs"}
            events = [
                {"type": "released", "at": 1.0, "answer": 1},
                {"type": "said", "at": 1.0, "answer": 1, "start": 0, "text": DOGS},
                {"type": "committed", "at": 2.0, "answer": 1, "text": DOGS, "reason": "stop"},
            ]
            before, after, num_entries = await on.page.evaluate(code, [history, running, asked, events])
            assert before == history
            turns = [{"role": "user", "text": "what about dogs"}, {"role": "assistant", "text": DOGS}]
            assert after == [*history, *turns]
            assert num_entries == 4

    run(test())


def test_latencies_are_those_of_the_events():
    async def test() -> None:
        async with serving() as server, browsing(server) as on:
            code = """async ([asked, cut]) => {
                const { Conversation } = await import("./page/conversation.js");
                const { Figures } = await import("./page/figures.js");
                const conversation = new Conversation();
                const table = document.createElement("table");
                const figures = new Figures(table);
                const rows = () => {
                    figures.render([{ title: "", conversation }]);
                    return [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
                };
                const told = [rows()];
                for (const events of [asked, cut]) {
                    for (const event of events) conversation.take(event);
                    told.push(rows());
                }
                return told;
            }"""
            names = ["words → decision", "decision → first word", "speech onset → silence", "last word → first word"]
            nothing, asked, cut = await on.page.evaluate(code, [ASKED, CUT])
            assert nothing == [[name, "–"] for name in names]
            assert asked == [
                [name, text] for name, text in zip(names, ["100 ms", "300 ms", "–", "400 ms"], strict=True)
            ]
            assert cut == [[names[0], "50 msp50 50 ms, p95 100 ms, n 2"], asked[1], [names[2], "250 ms"], asked[3]]

    run(test())


def test_what_a_voice_does_with_an_answer_is_marked():
    async def test() -> None:
        async with serving() as server, browsing(server) as on:
            code = """async (events) => {
                const { Conversation } = await import("./page/conversation.js");
                const conversation = new Conversation();
                for (const event of events) conversation.take(event);
                return conversation.marks.map(({ at, label }) => [at, label]);
            }"""
            voice = [
                {"type": "voice", "at": at, "what": what}
                for at, what in [(3.0, "ducked"), (3.1, "recognised"), (4.0, "yielded"), (5.0, "came_back")]
            ]
            told = await on.page.evaluate(code, [*ASKED, *voice])
            assert told == [[3.0, "quieter"], [4.0, "pauses"], [5.0, "as loud as before"]]

    run(test())


def test_a_long_conversation_does_not_grow_without_bound(tmp_path: Path):
    async def test() -> None:
        async with serving() as server, browsing(server) as on:
            code = """async ([events, rounds]) => {
                const { Conversation } = await import("./page/conversation.js");
                const { Keeper, format } = await import("./page/record.js");
                const conversation = new Conversation();
                const keeper = new Keeper({ settings: {} }, []);
                const length = events.at(-1).at + 1;
                for (let i = 0; i < rounds; i++) {
                    for (const event of events) {
                        const next = { ...event, at: event.at + i * length };
                        conversation.take(next);
                        keeper.add(next);
                    }
                }
                const { entries, slices, blocks, marks, decisions } = conversation;
                const { events: kept } = keeper.record();
                return { sizes: [entries, slices, blocks, marks, decisions].map((list) => list.length),
                         kept: kept.length, dropped: keeper.numDropped, text: format(keeper.record()) };
            }"""
            events = lively()
            rounds = 60_000 // len(events)
            found = await on.page.evaluate(code, [events, rounds])
            assert max(found["sizes"]) <= 2000
            assert found["kept"] <= 20_000
            assert found["kept"] + found["dropped"] == rounds * len(events)
            path = tmp_path / "kept.jsonl"  # what is left can be read by itself
            path.write_text(found["text"], encoding="utf-8")
            assert read_record(path).ledger.history == expected(events)

    run(test())


def test_text_without_spaces_on_the_page():
    async def test() -> None:
        weather = "今天晴，最高气温二十度。" * 12
        model = scripted_model({"今天天气怎么样": weather, "明天呢": "明天有雨。"}, max_length=8192)
        async with serving(model, max_answer=4000, context=8192) as server, browsing(server) as on:
            await on.say("今天天气怎么样")
            await on.page.wait_for_function("() => heard(0).length >= 6")
            await on.say("明天呢")
            note = await on.shows(".cut-note", "cut here")
            await on.page.wait_for_function("() => heard(0).endsWith('明天有雨。')")
            (_, told, _, _) = history(server)
            cut = str(await on.page.locator(".cut").text_content())
            assert weather.startswith(told[1] + cut)
            assert f"{len(words_of(cut))} words generated" in str(await note.text_content())
            await on.picture("mandarin")

    run(test())


def test_words_of_the_page_are_those_of_the_server():
    async def test() -> None:
        texts = ["今天，好。再见……", "他说：“你好（朋友）。”", "用iPhone 15拍，don't", "ケーキを食べたい。", "สวัสดีครับ"]
        texts += ["안녕하세요 여러분", "हिन्दी में", "𠮷野家", "it's 3.5, well-known"]
        code = """async (texts) => {
          const { wordsOf, isBetweenLetters } = await import("./page/text.js");
          const ends = (text) => [...text].map((_, at) => [...text].slice(0, at + 1).join("").length)
            .filter((at) => at < text.length && /\\S/.test(text[at - 1]) && !isBetweenLetters(text[at - 1], text[at]));
          const heads = (text) => ends(text).map((at) => text.slice(0, at));
          return texts.map((text) => [wordsOf(text).map(({ word }) => word), heads(text)]);
        }"""
        async with page_of_story() as server, browsing(server) as on:
            found = await on.page.evaluate(code, texts)
        for text, (words, ends) in zip(texts, found, strict=True):
            assert words == words_of(text)
            assert ends == [text[:at] for at in range(1, len(text)) if is_word_end(text, at)]

    run(test())


def test_what_is_composed_is_no_utterance_until_it_is_committed():
    async def test() -> None:
        model = scripted_model({"今天天气怎么样": "今天晴。"})
        async with serving(model) as server, browsing(server, "?rate=20&pause=50") as on:
            keyboard = await on.page.context.new_cdp_session(on.page)
            await on.page.locator("#input").focus()
            for text in ("jin", "jin t", "jin tian"):
                caret = {"selectionStart": len(text), "selectionEnd": len(text)}
                await keyboard.send("Input.imeSetComposition", {"text": text, **caret})
                await on.page.wait_for_timeout(100)  # twice the pause after which typed words are sent
            assert await on.page.locator("#input").input_value() == "jin tian"
            await on.page.locator("#input").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
            await on.page.locator("#input").dispatch_event("keydown", {"key": "Escape", "isComposing": True})
            assert await on.page.locator(".user").count() == 0
            await keyboard.send("Input.insertText", {"text": "今天天气怎么样"})
            await on.shows(".user .words", "今天天气怎么样")
            await on.page.locator("#input").press("Enter")
            await on.page.wait_for_function("() => heard(0) === '今天晴。'")
            texts = [row["text"] for row in await download(on) if row["type"] == "received"]
            assert not any("jin" in text for text in texts)

    run(test())
