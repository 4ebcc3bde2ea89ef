"""How many sessions a fleet holds: the cost of passes, fitted and read, and the simulation on a virtual clock."""

import asyncio
import gc
import json
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.cli.main import main
from duologue.errors import BadData, UsageError
from duologue.evaluation.capacity import MAX_LOADS, Replica, simulate_fleet, spread
from duologue.evaluation.pass_cost import PassCost, PassSample, PassWork, measured_cost, non_negative_fit
from duologue.evaluation.scale import ScaleResult, ScaleSetting
from duologue.models.adapters import prompted
from duologue.models.model import Model
from scripted import PROBE, Talk

STATED = ("made up for a test",)
COST = PassCost("a test", STATED, pass_s=0.02, token_s=2e-4, held_s=1e-7, cycle_s=1e-3, session_s=1e-4)


def replica(cost: PassCost = COST) -> Replica:
    talk = Talk()
    return Replica(talk.template, PROBE, talk.backend.info, cost)


def setting(sessions: int, *, context: int = 64, seconds: float = 6.0) -> ScaleSetting:
    return ScaleSetting(sessions, context, seconds)


def passes(number: int, *, seed: int = 0) -> list[PassWork]:
    chance = random.Random(seed)
    works = []
    for _ in range(number):
        sessions = chance.randint(1, 16)
        tokens = chance.randint(1, 60)
        length, held = chance.randint(50, 900), chance.randint(100, 9000)
        apart = chance.randint(0, 1)
        works.append(
            PassWork(1, apart, int(tokens > 1), tokens, min(tokens, sessions), tokens * length, tokens * held, sessions)
        )
    return works


# ------------------------------------------------------------------------------------------------- costs


def test_the_fit_recovers_the_costs_that_passes_had() -> None:
    true = PassCost(
        "known", STATED, 0.02, 0.01, 0.015, 4e-3, 1e-3, 2e-6, 6e-7, 2e-3, 1e-4, kv_bytes_per_token=8
    )  # in the order of the fields
    samples = [PassSample(work, true.pass_seconds(work), true.engine_seconds(work)) for work in passes(400)]
    fitted = PassCost.fit(samples, source="known", assumptions=STATED, kv_bytes_per_token=8)
    for name in ("pass_s", "probe_pass_s", "several_s", "token_s", "read_s", "attended_s", "held_s", "session_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=1e-3), name
    assert fitted.noise == pytest.approx((1.0,) * len(fitted.noise), abs=1e-3)


def test_the_noise_is_that_of_the_passes() -> None:
    chance = random.Random(1)
    works = passes(2000, seed=2)
    samples = [PassSample(work, COST.pass_seconds(work) * chance.choice((0.9, 1.1)), 1e-3) for work in works]
    noise = PassCost.fit(samples, source="noisy", assumptions=STATED).noise
    assert min(noise) == pytest.approx(0.9, rel=0.05)
    assert max(noise) == pytest.approx(1.1, rel=0.05)


def test_no_part_of_a_pass_gives_time_back() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert non_negative_fit(columns, np.array([3.0, 2.0, 1.0])) == pytest.approx([2.0, 0.0])
    assert non_negative_fit(columns, np.array([1.0, 3.0, 5.0])) == pytest.approx([0.0, 22 / 14])
    assert non_negative_fit(columns, np.array([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])
    assert non_negative_fit(columns, -np.ones(3)) == pytest.approx([0.0, 0.0])


def test_costs_are_written_and_read(tmp_path: Path) -> None:
    cost = PassCost("a machine", STATED, 0.02, noise=(0.9, 1.2), judged_apart=0.25, kv_bytes_per_token=64)
    cost.write(tmp_path / "costs.json")
    assert PassCost.read(tmp_path / "costs.json") == cost


def test_what_is_assumed_of_a_gpu_can_be_simulated() -> None:
    cost = PassCost.read(Path(__file__).parents[2] / "benchmarks" / "assumed-gpu.json")
    assert any("nothing here was measured" in one for one in cost.assumptions)
    assert replica(cost).simulate(setting(2, seconds=2.0)).realtime


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"pass_s": "fast"}, "pass_s is 'fast'; it must be a number"),
        ({"pass_s": -1.0}, "pass_s is -1.0; it is a number of seconds"),
        ({"pass_s": float("nan")}, "pass_s is nan"),
        ({"pass_s": 0}, "a pass takes time"),
        ({"token_s": True}, "token_s is True; it must be a number"),
        ({"tokens_s": 1.0}, "unknown fields tokens_s"),
        ({"noise": 1.0}, "noise is 1.0; it must be a list of numbers"),
        ({"noise": []}, "noise is []"),
        ({"noise": [1.0, 0.0]}, "each above 0"),
        ({"judged_apart": 2}, "it is a share, 0 to 1"),
        ({"kv_bytes_per_token": -1}, "kv_bytes_per_token is -1"),
        ({"assumptions": []}, "assumptions are missing"),
        ({"assumptions": "none"}, "it must be a list of texts"),
        ({"source": 3}, "source is 3; it must be text"),
    ],
)
def test_impossible_costs_are_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"source": "a machine", "assumptions": ["one"], "pass_s": 0.02, **changes}))
    with pytest.raises(BadData) as error:
        PassCost.read(path)
    assert expected in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"pass_s": 0.02}'])
def test_files_that_are_not_costs_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(BadData, match="costs"):
        PassCost.read(tmp_path / "costs.json")
    with pytest.raises(BadData, match="cannot read"):
        PassCost.read(tmp_path / "missing.json")


def stand() -> Model:
    talk = Talk()
    return Model("a script", talk.backend, talk.template, prompted(), PROBE, talk.session.config.max_length)


def test_passes_of_a_backend_are_measured() -> None:
    cost = asyncio.run(measured_cost(stand(), context_tokens=32, sessions=2, seconds=0.6))
    assert "a script" in cost.source
    assert "2 sessions with 32 tokens" in " ".join(cost.assumptions)
    assert cost.judged_apart == 0.0
    assert cost.pass_s + cost.several_s + cost.token_s + cost.read_s + cost.attended_s + cost.held_s > 0


# ------------------------------------------------------------------------------------------------- simulation


def test_a_simulation_never_waits_and_always_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a simulation waits for nothing")

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(asyncio, "sleep", refuse)
    noisy = PassCost("noisy", STATED, 0.05, token_s=2e-4, noise=(0.7, 1.0, 1.6), judged_apart=0.5, probe_pass_s=0.02)
    first, second = (replica(noisy).simulate(setting(3)) for _ in range(2))
    assert first == second
    assert first.passes > 20
    assert 0 < first.judged_apart < first.judged
    assert replica(noisy).simulate(ScaleSetting(3, 64, 6.0, seed=1)) != first


def test_a_decision_takes_the_rest_of_a_pass_and_one_of_its_own() -> None:
    result = replica(PassCost("even", STATED, pass_s=0.1)).simulate(setting(2, seconds=10.0))
    waits = [wait for wait in result.decisions if wait]  # words at the very end are not waited for
    assert 9 <= len(waits) <= 10
    assert all(100 - 1e-6 <= wait <= 200 + 1e-6 for wait in waits), waits
    assert len({round(wait) for wait in waits}) > 1, "some words arrive while a pass runs"


def test_more_sessions_are_never_faster() -> None:
    results = [replica().simulate(setting(number)).as_dict() for number in (2, 8, 32)]
    p95 = [result["decision_ms"]["p95"] for result in results]
    assert p95 == sorted(p95)
    assert p95[0] < p95[-1]
    rates = [result["tokens_per_second"]["min"] for result in results]
    assert rates == sorted(rates, reverse=True)


def test_a_replica_beyond_its_limit_is_not_in_real_time() -> None:
    slow = PassCost("slow", STATED, pass_s=0.02, token_s=0.004)
    assert replica(slow).simulate(setting(1)).realtime
    crowded = replica(slow).simulate(setting(12))
    assert not crowded.realtime
    assert crowded.missed_deadlines > 0


def test_memory_per_session_does_not_grow_with_the_number_of_sessions() -> None:
    peaks = []
    for number in (4, 16):
        gc.collect()
        tracemalloc.start()
        replica().simulate(setting(number, seconds=3.0))
        peaks.append(tracemalloc.get_traced_memory()[1] / number)
        tracemalloc.stop()
    assert peaks[1] <= 1.1 * peaks[0]


# ------------------------------------------------------------------------------------------------- fleets


def test_sessions_are_spread_by_a_hash_of_their_names() -> None:
    loads = spread(10_000, 500)
    assert sum(loads.values()) == 500
    assert sum(load * number for load, number in loads.items()) == 10_000
    assert min(loads) < 15
    assert max(loads) > 25, "by chance, not evenly"
    assert loads == spread(10_000, 500)
    assert spread(1, 3) == {0: 2, 1: 1}
    with pytest.raises(UsageError, match="one of each"):
        spread(0, 1)


def test_every_load_is_simulated_once_and_many_loads_by_the_next_larger() -> None:
    def outcome(load: int) -> ScaleResult:
        simulated.append(load)
        return ScaleResult(ScaleSetting(load, 64), (10.0 * load,), (5.0,), 0, 1, 0)

    simulated: list[int] = []
    fleet = simulate_fleet({0: 5, 10: 2, 20: 2, 40: 1}, outcome).as_dict()
    assert simulated == [10, 20, 40]
    assert (fleet["sessions"], fleet["replicas"]) == (100, 10)
    assert fleet["sessions_per_replica"] == {"min": 0, "max": 40}
    assert fleet["share_in_realtime"] == 0.6, "a replica with 40 decides in 400 ms"
    assert fleet["decision_ms"] == {"p50": 200.0, "p95": 400.0}
    simulated.clear()
    many = simulate_fleet(dict.fromkeys(range(1, 101), 1), outcome)
    assert len(simulated) == MAX_LOADS
    assert max(simulated) == 100
    assert many.as_dict()["share_in_realtime"] < sum(range(1, 30)) / sum(range(1, 101)), "rounded up"


def test_a_hundred_thousand_sessions() -> None:
    loads = spread(100_000, 40_000)
    fleet = simulate_fleet(loads, lambda load: replica().simulate(setting(load, seconds=2.0))).as_dict()
    assert fleet["sessions"] == 100_000
    assert 0.0 < fleet["share_in_realtime"] <= 1.0


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("duologue.models.model.load", lambda *_, **__: stand())
    costs = str(tmp_path / "costs.json")
    short = ["bench", "capacity", "--context", "32", "--seconds", "3", "--most", "3", "--json"]
    measured = ["--measure-sessions", "2", "--measure-seconds", "1", "--save-costs", costs]
    assert main([*short, *measured]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["largest"] in (0, 1, 2, 3)
    assert "fleet" not in first
    assert main([*short, "--costs", costs, "--sessions", "6", "--replicas", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result["costs"] == first["costs"]
    assert result["replica"] == first["replica"], "the same costs give the same simulation"
    assert result["fleet"]["sessions"] == 6
    assert any(line.startswith("6 sessions on 3 replicas") for line in lines)
    assert main([*short, "--costs", costs, "--save-costs", costs]) == 2
    assert "--costs replaces it" in capsys.readouterr().err
    Path(costs).write_text("{}")
    assert main([*short, "--costs", costs]) == 2
    assert "must be given" in capsys.readouterr().err
