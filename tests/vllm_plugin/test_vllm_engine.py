"""The default model on vLLM: conversations as on the torch backend in float32, several at once, and a server."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.core.backend import Sampling
from duologue.core.config import SessionConfig
from duologue.core.events import Committed, Decided, Dropped, Event, Promoted, Resumed, Said, Suspended
from duologue.core.policy import ECHO_S
from duologue.engine.handle import Handle
from duologue.engine.replay import Cue, Replay, Script, read_script
from duologue.engine.vllm_engine import VllmEngine
from duologue.errors import AdapterMismatch, UnsupportedModel, UsageError
from duologue.models.catalogue import DEFAULT
from duologue.models.model import Model, load

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.smollm2]

EXAMPLES = Path(__file__).parents[2] / "examples"
SESSIONS = 4
QUESTIONS = ("Tell me about the sea.", "What is a lighthouse?", "How do birds fly?")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    before = os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # as it is in use
    model = load(DEFAULT, backend="vllm", weights="f32", context_length=512, sessions=SESSIONS)
    yield model
    model.close()
    if before is not None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = before


@pytest.fixture(scope="module")
def twin() -> Iterator[Model]:
    model = load(DEFAULT, backend="torch", weights="f32", context_length=512, sessions=SESSIONS, threads=1)
    yield model
    model.close()


def replayed(model: Model, script: Script, **options: Any) -> list[Event]:
    replay = Replay(
        script, model.backend, model.format, model.probe, policy=model.policy(echo_s=ECHO_S), max_length=512,
        max_answer=64, **options,
    )  # fmt: skip
    events = list(replay)
    replay.close()
    assert model.backend.usage().num_seqs == 0
    return events


def plain(events: Iterable[Event]) -> list[Event]:
    """Events without probabilities, which differ in the last digits."""
    return [
        replace(e, decision=replace(e.decision, p=0.0, probabilities=(), p_ends=None)) if isinstance(e, Decided) else e
        for e in events
    ]


def probabilities(events: Iterable[Event]) -> list[float]:
    decisions = [event.decision for event in events if isinstance(event, Decided)]
    return [p for decision in decisions for p in (*dict(decision.probabilities).values(), decision.p_ends or 0.0)]


def assert_same(found: Sequence[Event], expected: Sequence[Event]) -> None:
    assert plain(found) == plain(expected)
    np.testing.assert_allclose(probabilities(found), probabilities(expected), atol=1e-3)


@pytest.mark.parametrize("name", ["asides", "interruption", "stop_and_go_on"])
def test_the_examples_are_replayed_as_by_the_torch_backend(model: Model, twin: Model, name: str) -> None:
    script = read_script(EXAMPLES / f"{name}.jsonl")
    found = replayed(model, script)
    assert sum(isinstance(event, Decided) for event in found) > 2
    assert_same(found, replayed(twin, script))


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.3, top_k=40), Sampling(0.9, top_p=0.8)])
def test_the_chances_of_a_session_draw_what_they_draw_elsewhere(model: Model, twin: Model, sampling: Sampling) -> None:
    script = Script(tuple(Cue(20.0 * i, text, f"u{i}", True) for i, text in enumerate(QUESTIONS)))
    options = {"sampling": sampling, "seed": 7}
    found = replayed(model, script, **options)
    assert_same(found, replayed(twin, script, **options))
    assert plain(found) != plain(replayed(twin, script, sampling=sampling, seed=8)), "the seed matters"


async def until(handle: Handle, kind: type) -> list[Event]:
    """The events up to the first of a kind, with it."""
    seen: list[Event] = []
    async for event in handle.events():
        seen.append(event)
        if isinstance(event, kind):
            break
    return seen


async def heard_out(handle: Handle) -> str:
    """Hear the running answer to its end. Returns the text of its turn."""
    while True:
        handle.hear_out()
        (*_, event) = await until(handle, Event)
        if isinstance(event, Committed):
            return event.text


def answers(model: Model, questions: Sequence[str], config: SessionConfig) -> list[str]:
    """The answers, each in a session of its own that nothing disturbs."""
    found = []
    with_engine = model.engine()
    for question in questions:
        handle = with_engine.open(model.session(config=replace(config, heard="shown")))
        handle.hear(question, final=True)
        while with_engine.tick():
            pass
        found += [event.text for event in handle.new_events() if isinstance(event, Committed)]
        handle.close()
    with_engine.close()
    return found


def test_sessions_at_once_get_the_answers_of_each_alone_whatever_is_ignored_meanwhile(
    model: Model, twin: Model
) -> None:
    config = SessionConfig(max_length=512, max_answer=48, heard="reported", lookahead=24)

    async def disturbed(engine: Any, question: str) -> str:
        handle = engine.open(model.session(config=config))
        handle.hear(question, final=True)
        await until(handle, Said)
        handle.hear_out()
        handle.hear("mhm", utterance="aside", final=True)
        await until(handle, Dropped)
        return await heard_out(handle)

    async def main() -> list[str]:
        async with model.engine() as engine:
            assert isinstance(engine, VllmEngine)
            found = await asyncio.gather(*(disturbed(engine, question) for question in QUESTIONS))
            assert engine.totals.judged >= 2 * len(QUESTIONS)
            return found

    assert asyncio.run(asyncio.wait_for(main(), 600)) == answers(twin, QUESTIONS, config)
    assert model.backend.usage().num_seqs == 0


def test_a_question_cuts_the_answer_a_stop_ends_it_and_it_resumes_exactly(model: Model) -> None:
    config = SessionConfig(max_length=512, max_answer=48, heard="reported", lookahead=24)

    async def main() -> str:
        async with model.engine() as engine:
            handle = engine.open(model.session(config=config))
            handle.hear(QUESTIONS[0], final=True)
            await until(handle, Said)
            handle.hear_out()
            handle.hear("wait, what is a lighthouse", utterance="two", final=True)
            events = await until(handle, Promoted)
            assert any(isinstance(event, Suspended) for event in events)
            await until(handle, Said)
            handle.hear_out()
            handle.hear("stop", utterance="three", final=True)
            await until(handle, Suspended)
            handle.resume()
            (*_, resumed) = await until(handle, Resumed)
            assert isinstance(resumed, Resumed)
            assert resumed.exact
            return await heard_out(handle)

    text = asyncio.run(asyncio.wait_for(main(), 600))
    assert text.split()
    assert model.backend.usage().num_seqs == 0


def test_what_vllm_cannot_do_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(**options: Any) -> Model:
        return load(
            DEFAULT, **{"backend": "vllm", "adapter": "alora", "weights": "f32", "context_length": 512, **options}
        )

    with pytest.raises(UnsupportedModel, match="adapter of kind rows"):
        opening(adapter="rows")
    with pytest.raises(UnsupportedModel, match="adapter of kind prompted"):
        opening(adapter="prompted")
    with pytest.raises(UsageError, match=r"cache holds \d+ tokens, and 500 sessions .*VLLM_CPU_KVCACHE_SPACE"):
        opening(sessions=500)
    with pytest.raises(UsageError, match="leave out --threads"):
        opening(threads=2)
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    with pytest.raises(UnsupportedModel, match="without duologue's plug-in"):
        opening()


def test_an_export_of_another_adapter_or_model_is_refused(tmp_path: Path, model: Model) -> None:
    from duologue.export.vllm import export_vllm
    from duologue.models.catalogue import find

    assert model.adapter.rows is not None
    rows = replace(model.adapter.rows, states=model.adapter.rows.states * 2)
    export_vllm(find(DEFAULT).location, replace(model.adapter, rows=rows), tmp_path / "other", dtype="float32")
    with pytest.raises(AdapterMismatch, match="exported with another adapter"):
        load(str(tmp_path / "other"), backend="vllm", adapter="alora")
    config = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(
        config.replace('"num_hidden_layers": 30', '"num_hidden_layers": 29')
    )
    with pytest.raises(AdapterMismatch, match="no adapter of kind alora ships for this model"):
        load(str(tmp_path / "other"), backend="vllm", adapter="alora")
