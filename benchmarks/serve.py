"""How many clients a server holds: WebSockets on loopback, each heard and spoken to all the while.

Claim: with llama.cpp and the default model on two cores, so many clients as `bench scale` finds sessions, less a fifth,
are served in real time for ten minutes: 95 of 100 decisions within 300 ms from words sent to decision received, nobody
waits a second for words, and the server's memory does not grow.

Why: a connection costs little beside its share of the passes.

How: the measurement of `duologue bench serve`, with a server of its own. Clients and server share the machine. The
exit status is 1 if it was not in real time.
"""

import argparse
import asyncio

import measuring

from duologue.evaluation.callers import LoadOutcome, LoadSetting, load
from duologue.evaluation.own_server import own_server

_HEADER = (
    "clients",
    "minutes",
    "decisions",
    "p50 (ms)",
    "p95",
    "longest wait (s)",
    "lost",
    "MB first",
    "last",
    "real time",
)


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    flags = [args.model, "--backend", args.backend, "--adapter", args.adapter, "--weights", args.weights or ""]
    flags += ["--threads", str(args.threads or 0), "--max-sessions", str(args.clients), "--context", str(args.context)]
    setting = LoadSetting(args.clients, args.minutes * 60, answer=args.answer, seed=args.seed)
    with own_server(flags) as server:
        outcome = asyncio.run(load(server.url, setting, memory=server.memory, told=_tell)).as_dict()
    model = {"name": args.model, "backend": args.backend, "weights": args.weights, "adapter": args.adapter}
    measuring.finish(args, measurement, {"model": model, **outcome}, _HEADER, [_row(outcome)])
    return int(not outcome["realtime"])


def _row(outcome: dict[str, object]) -> tuple[object, ...]:
    memory, decision = outcome["memory_mb"], outcome["decision_ms"]
    assert isinstance(memory, list)
    assert isinstance(decision, dict)
    return (
        outcome["clients"], round(float(str(outcome["seconds"])) / 60, 2), outcome["decisions"], decision["p50"],
        decision["p95"], outcome["longest_wait_s"], outcome["lost"], memory[0] if memory else None,
        memory[-1] if memory else None, "yes" if outcome["realtime"] else "no",
    )  # fmt: skip


def _tell(outcome: LoadOutcome) -> None:
    measuring.progress(" ".join(map(str, _row(outcome.as_dict()))))


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--context", type=int, default=1024, help="tokens of a conversation")
    parser.add_argument("--answer", type=int, default=128, help="most tokens of an answer")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
