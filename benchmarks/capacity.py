"""How many sessions a fleet holds: the simulation of `duologue bench capacity` beside sessions in real time.

Claim: with costs fitted to passes of at most eight sessions, the simulation finds the largest number of sessions in
real time, and p50 and p95 of decisions, as `duologue bench scale` measures them, within 15 %.

Why: the simulation runs the same users, sessions, engine and scheduler. Only the time of a pass is modelled, with the
spread that was measured.

How: measure and fit; then, for each of `--counts`, measure live sessions `--repeats` times with other words each time,
and simulate the same; then search for the largest number up to `--most`, live and simulated. With `--costs FILE`,
nothing is measured: what the file says is simulated alone. Either way, `--sessions` sessions on `--replicas` replicas
(by default as many as would be loaded by three quarters) are simulated last, with the memory of a simulated session in
a small and in a large replica. The exit status is 1 if a number in real time differs by more than 15 %.
"""

import argparse
import asyncio
import gc
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import measuring

from duologue.evaluation.capacity import Replica, simulate_fleet, spread
from duologue.evaluation.pass_cost import PassCost, measured_cost
from duologue.evaluation.quantiles import p50_p95
from duologue.evaluation.results import describe_model
from duologue.evaluation.scale import ScaleResult, ScaleSetting, largest, measure
from duologue.models.model import Model

_WITHIN = 0.15
_HEADER = ("sessions", "live p50 (ms)", "simulated", "live p95 (ms)", "simulated", "in real time", "simulated")
_FIT_SESSIONS = 8  # at most
_MEMORY_OF = (16, 64)  # sessions

Measured = Callable[[ScaleSetting], ScaleResult]


def pooled(measured: Measured, settings: Sequence[ScaleSetting]) -> dict[str, Any]:
    """The decisions of all `settings` together, and whether each ran in real time."""
    results = [measured(setting) for setting in settings]
    waits = [wait for result in results for wait in result.decisions]
    return {
        "decision_ms": p50_p95(waits, 1),
        "runs": [result.as_dict()["decision_ms"] for result in results],
        "realtime": all(result.realtime for result in results),
        "missed_deadlines": sum(result.missed_deadlines for result in results),
        "passes": sum(result.passes for result in results),
    }


def difference(live: float, simulated: float) -> float:
    """Of the simulation, as a share of what was measured."""
    return round(simulated / live - 1.0, 3) if live else math.inf


def compared(args: argparse.Namespace, live: Measured, replica: Replica) -> dict[str, Any]:
    """Live and simulated sessions, for `--counts` and for the largest number in real time."""
    outcomes = []
    for sessions in args.counts:
        settings = [
            ScaleSetting(sessions, args.context, args.seconds, seed=args.seed + 1 + repeat)
            for repeat in range(args.repeats)
        ]
        both = {"live": pooled(live, settings), "simulated": pooled(replica.simulate, settings)}
        times = [both[kind]["decision_ms"] for kind in ("live", "simulated")]
        off = {percent: difference(times[0][percent], times[1][percent]) for percent in times[0]}
        outcomes.append({"sessions": sessions, **both, "difference": off})
        measuring.progress(f"{sessions} sessions: {times[0]} ms live, {times[1]} ms simulated")
    found = {
        name: largest(args.most, lambda number, run=run: run(setting(args, number)))[0]
        for name, run in (("live", live), ("simulated", replica.simulate))
    }
    measuring.progress(f"largest: {found}")
    return {"outcomes": outcomes, "largest": {**found, "difference": difference(found["live"], found["simulated"])}}


def setting(args: argparse.Namespace, sessions: int) -> ScaleSetting:
    """So many sessions."""
    return ScaleSetting(sessions, args.context, args.seconds, seed=args.seed)


def memory_kb(args: argparse.Namespace, replica: Replica) -> dict[str, float]:
    """The memory that simulating a replica takes at most, for each of its sessions, by their number."""
    found: dict[str, float] = {}
    for sessions in _MEMORY_OF:
        gc.collect()
        tracemalloc.start()
        replica.simulate(ScaleSetting(sessions, args.context, 2.0, seed=args.seed))
        found[str(sessions)] = round(tracemalloc.get_traced_memory()[1] / 1024 / sessions, 1)
        tracemalloc.stop()
    return found


def fleet(args: argparse.Namespace, replica: Replica, number: int) -> dict[str, Any]:
    """`--sessions` sessions on `--replicas` replicas, of which one holds `number` sessions."""
    replicas = args.replicas or math.ceil(args.sessions / max(1.0, 0.75 * number))
    began = time.monotonic()

    @cache
    def simulated(sessions: int) -> ScaleResult:
        measuring.progress(f"simulating a replica with {sessions} sessions")
        return replica.simulate(setting(args, sessions))

    result = simulate_fleet(spread(args.sessions, replicas, seed=args.seed), simulated).as_dict()
    return {**result, "simulated_in_s": round(time.monotonic() - began, 1), "memory_kb": memory_kb(args, replica)}


def rows(result: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The table for people."""
    for one in result.get("outcomes", ()):
        live, simulated = one["live"], one["simulated"]
        yield (
            one["sessions"],
            *(value for key in ("p50", "p95") for value in (live["decision_ms"][key], simulated["decision_ms"][key])),
            *("yes" if each["realtime"] else "no" for each in (live, simulated)),
        )
    shared = result["fleet"]
    yield (
        f"fleet: {shared['sessions']}",
        "–",
        shared["decision_ms"]["p50"],
        "–",
        shared["decision_ms"]["p95"],
        "–",
        (f"{100 * shared['share_in_realtime']:.1f} %"),
    )


def holds(result: dict[str, Any]) -> bool:
    """Whether no number in real time differs too much."""
    off = [result["largest"]["difference"]]
    for one in result["outcomes"]:
        if one["live"]["realtime"]:
            off += one["difference"].values()
    return all(abs(share) <= _WITHIN for share in off)


def checked(args: argparse.Namespace, model: Model) -> tuple[Replica, dict[str, Any]]:
    """Fit the costs on `model`, and compare live and simulated sessions."""
    measuring_cost = measured_cost(
        model, context_tokens=args.context, sessions=_FIT_SESSIONS, seconds=args.fit_seconds, seed=args.seed
    )
    cost = asyncio.run(measuring_cost)
    measuring.progress(str(cost.as_dict()))
    replica = Replica(model.template, model.probe, model.backend.info, cost)

    def live(wanted: ScaleSetting) -> ScaleResult:
        return asyncio.run(measure(model.backend, model.template, model.probe, wanted))

    return replica, compared(args, live, replica)


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    sessions = 1 if args.costs else max([args.most, *args.counts, _FIT_SESSIONS])
    length = ScaleSetting(1, args.context, max(args.seconds, args.fit_seconds)).max_length
    model = measuring.load_model(args, context=length, sessions=sessions)
    try:
        result: dict[str, Any] = {"model": describe_model(model), "context_tokens": args.context}
        if args.costs is None:
            replica, both = checked(args, model)
            number = both["largest"]["simulated"]
        else:
            replica = Replica(model.template, model.probe, model.backend.info, PassCost.read(args.costs))
            number, best = largest(args.most, lambda number: replica.simulate(setting(args, number)))
            both = {"largest": {"simulated": number}, "replica": best.as_dict()}
    finally:
        model.close()
    result |= {"costs": replica.cost.as_dict(), **both, "fleet": fleet(args, replica, number)}
    measuring.finish(args, measurement, result, _HEADER, rows(result))
    return int(args.costs is None and not holds(result))


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--context", type=int, default=512, help="tokens of history")
    parser.add_argument("--counts", type=int, nargs="*", default=[4, 8, 12], metavar="N", help="sessions to compare")
    parser.add_argument("--repeats", type=int, default=2, help="of each comparison, with other words")
    parser.add_argument("--most", type=int, default=32, help="the most sessions to try in the search")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--fit-seconds", type=float, default=10.0, help="of each of the four parts of the fit")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="simulate these costs, and measure nothing")
    parser.add_argument("--sessions", type=int, default=100_000, metavar="N", help="of the fleet")
    parser.add_argument("--replicas", type=int, metavar="R", help="of the fleet")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
