"""How many live sessions: the search, the listeners, and a measurement on a script."""

import asyncio
import json

import pytest

from duologue.cli.main import main
from duologue.core.config import SessionConfig
from duologue.evaluation.quantiles import percentile
from duologue.evaluation.scale import ScaleResult, ScaleSetting, largest, measure
from duologue.evaluation.simulated_user import Listener
from duologue.models.adapters import prompted
from duologue.models.model import Model
from scripted import PROBE, Talk


def outcome(number: int, *, most: int) -> ScaleResult:
    wait = 100.0 if number <= most else 400.0
    return ScaleResult(ScaleSetting(number, 128), (wait,) * 10, (5.0,) * number, 0, 10, 0)


@pytest.mark.parametrize("most", [0, 1, 3, 4, 5, 11, 12, 31, 32])
def test_the_search_finds_the_largest_number(most: int) -> None:
    tried: list[int] = []

    def measured(number: int) -> ScaleResult:
        tried.append(number)
        return outcome(number, most=most)

    found, best = largest(32, measured)
    assert found == most
    assert best.setting.sessions == max(1, most)
    assert len(tried) <= 9
    assert max(tried) <= 32


@pytest.mark.parametrize(
    ("decision_ms", "rate", "expected"), [(299.0, 5.0, True), (301.0, 5.0, False), (299.0, 4.9, False)]
)
def test_what_real_time_means(decision_ms: float, rate: float, expected: bool) -> None:
    measured = ScaleResult(ScaleSetting(2, 128), (decision_ms,) * 20, (5.0, rate), 0, 10, 0)
    assert measured.realtime is expected


def test_percentiles() -> None:
    values = tuple(float(n) for n in range(100, 0, -1))
    assert (percentile(values, 50), percentile(values, 95), percentile(values[:1], 95)) == (50.0, 95.0, 100.0)
    assert percentile((), 95) == float("inf")


def test_a_listener_waits_for_tokens_that_are_late_and_counts_the_waits() -> None:
    talk = Talk({"hi": "abcdefghij"}, config=SessionConfig(heard="reported"))
    listener = Listener(talk.session, rate=2.0)
    assert listener.listen(0.0) is None
    talk.hear("hi")
    while not talk.session.running or talk.session.running.num_tokens < 4:
        talk.tick()
    assert listener.listen(1.0) is None, "it begins now"
    assert listener.listen(2.0) == 2, "two tokens a second"
    assert listener.missed == 0
    assert listener.listen(60.0) == 4
    assert (listener.missed, listener.position) == (1, 4.0)
    listener.listen(61.0)
    assert (listener.missed, listener.position) == (1, 4.0), "one wait is one deadline"
    talk.tick(2)
    assert listener.listen(70.0) == 4
    assert listener.listen(70.5) == 5, "what was lost is not made up for"
    listener.reset()
    assert (listener.missed, listener.position) == (0, 0.0)


def stand() -> Model:
    talk = Talk()
    return Model("a script", talk.backend, talk.template, prompted(), PROBE, talk.session.config.max_length)


def test_a_measurement() -> None:
    model = stand()
    setting = ScaleSetting(3, 128, seconds=2.5)
    measured = asyncio.run(measure(model.backend, model.template, model.probe, setting))
    assert 3 <= len(measured.decisions) <= 6, "three sessions, a slice every two seconds"
    assert max(measured.decisions) < 2000
    assert all(4.0 < rate < 5.1 for rate in measured.rates)
    assert measured.passes > 10
    assert model.backend.usage().num_seqs == 0


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("duologue.models.model.load", lambda *_, **__: stand())
    assert main(["bench", "scale", "--sessions", "2", "--context", "100", "--seconds", "2.5", "--find", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["largest"] in (0, 1, 2)
    assert result["context_tokens"] == 100
    assert set(result) >= {"sessions", "decision_ms", "tokens_per_second", "missed_deadlines", "realtime", "kv_bytes"}
    assert set(result["decision_ms"]) == {"p50", "p95"}
    assert set(result["tokens_per_second"]) == {"min", "median", "total"}
