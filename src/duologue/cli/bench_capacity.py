"""`duologue bench capacity`: how many live sessions a fleet of replicas would serve in real time, by simulation."""

import argparse
import asyncio
import json
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from duologue.cli.bench_scale import CONTEXT, HEADER, line
from duologue.cli.command import Command, Option, number, whole
from duologue.cli.options import MODEL_WITHOUT_CONTEXT, load_model
from duologue.errors import require

if TYPE_CHECKING:
    from duologue.evaluation.capacity import Replica

_EPILOG = """\
Passes of a few live sessions are measured for half a minute, unless --costs names a file. Then the sessions of
`duologue bench scale` are simulated: the same users, sessions, engine and scheduler on a virtual clock. With --costs,
only the tokenizer and the adapter of the model are used.

examples:
  duologue bench capacity                                        the largest number of sessions of one replica
  duologue bench capacity --save-costs cpu.json                  keep what was measured
  duologue bench capacity --costs cpu.json --sessions 1000 --replicas 100
  duologue bench capacity --costs gpu.json --most 512 --json | tail -1
"""


COMMAND = Command(
    "simulate how many live sessions a fleet runs in real time",
    "Measure what forward passes cost on this machine, or read it from a file, and simulate how many live sessions "
    "replicas with these costs serve in real time: 95 % of decisions within 300 ms, and 5 tokens per second for each "
    "session.",
    options=(
        Option("--sessions", type=whole(least=1), metavar="N", help="also simulate N sessions in total"),
        Option(
            "--replicas",
            type=whole(least=1),
            default=1,
            metavar="R",
            help="replicas that share these sessions (default 1)",
        ),
        Option(
            "--most",
            type=whole(least=1),
            default=64,
            metavar="N",
            help="maximum number of sessions of one replica to try in the search (default 64)",
        ),
        CONTEXT,
        Option(
            "--seconds",
            type=number(least=1),
            default=20.0,
            metavar="S",
            help="simulated duration of each conversation (default 20)",
        ),
        Option("--costs", type=Path, metavar="FILE", help="what passes cost, in place of a measurement (JSON)"),
        Option("--save-costs", type=Path, metavar="FILE", help="write what was measured into this file"),
        Option(
            "--measure-sessions",
            type=whole(least=1),
            default=8,
            metavar="N",
            help="maximum number of sessions in the measurement (default 8)",
        ),
        Option(
            "--measure-seconds",
            type=number(least=1),
            default=8.0,
            metavar="S",
            help="duration of each of its four parts (default 8)",
        ),
        Option("--seed", type=int, default=0, metavar="N", help="random seed of words, noise and routing (default 0)"),
        Option("--json", action="store_true", help="also print the result as a last line of JSON"),
    ),
    groups={"model": MODEL_WITHOUT_CONTEXT},
    epilog=_EPILOG,
)


def run(args: argparse.Namespace) -> int:
    """Measure or read the costs, simulate, and print one line per simulation."""
    from duologue.evaluation.capacity import simulate_fleet, spread
    from duologue.evaluation.scale import ScaleResult, ScaleSetting, largest

    require(args.costs is None or args.save_costs is None, "--save-costs saves a measurement, and --costs replaces it")
    replica = _replica(args)
    print(f"{replica.cost.source}: {'; '.join(replica.cost.assumptions)}")
    print(HEADER)

    @cache
    def simulated(sessions: int) -> ScaleResult:
        result = replica.simulate(ScaleSetting(sessions, args.context, args.seconds, seed=args.seed))
        print(line(result.as_dict()), flush=True)
        return result

    found, best = largest(args.most, simulated)
    figures = {"costs": replica.cost.as_dict(), "largest": found, "replica": best.as_dict()}
    print(f"{found} sessions of a replica run in real time" + ("; try more with --most" if found == args.most else ""))
    if args.sessions is not None:
        loads = spread(args.sessions, args.replicas, seed=args.seed)
        fleet = simulate_fleet(loads, simulated).as_dict()
        figures["fleet"] = fleet
        decision, share = fleet["decision_ms"], fleet["sessions_per_replica"]
        print(
            f"{args.sessions:,} sessions on {args.replicas:,} replicas, {share['min']} to {share['max']} on each: "
            f"{100 * fleet['share_in_realtime']:.1f} % run in real time, decision p50 {decision['p50']:.0f} ms, "
            f"p95 {decision['p95']:.0f} ms"
        )
    if args.json:
        print(json.dumps(figures))
    return 0


def _replica(args: argparse.Namespace) -> "Replica":
    """The replica that the options describe. The weights are freed before anything is simulated."""
    from duologue.evaluation.capacity import Replica
    from duologue.evaluation.pass_cost import PassCost, measured_cost
    from duologue.evaluation.scale import ScaleSetting

    cost = None if args.costs is None else PassCost.read(args.costs)
    length = ScaleSetting(1, args.context, args.measure_seconds).max_length
    sessions = args.measure_sessions if cost is None else 1
    with closing(load_model(args, context_length=length, sessions=sessions)) as model:
        if cost is None:
            measuring = measured_cost(
                model,
                context_tokens=args.context,
                sessions=sessions,
                seconds=args.measure_seconds,
                seed=args.seed,
            )
            cost = asyncio.run(measuring)
        if args.save_costs is not None:
            cost.write(args.save_costs)
        return Replica(model.template, model.probe, model.backend.info, cost)
