"""How many clients a server holds: WebSockets on loopback, each heard and spoken to all the while.

Claim: with llama.cpp and the default model on two cores, a fifth fewer clients than `bench scale` finds sessions are
served in real time for ten minutes: 95 of 100 decisions within 300 ms from words sent to decision received, no client
waits a second for words, and the server's memory does not grow.

Why: a connection costs little beside its share of the passes.

How: the measurement of `duologue bench serve`, by default with a server of its own that shares the machine with the
clients. The exit status is 1 if it was not in real time.

    python benchmarks/serve.py --backend llamacpp --weights BF16 --adapter rows --clients 13 --minutes 10
"""

import measuring

from duologue.cli.bench_serve import LOAD, measured
from duologue.cli.command import add_options


def main() -> int:
    """Run it."""
    parser = measuring.arguments(__doc__)
    add_options(parser, LOAD)
    parser.add_argument("--context", type=int, default=1024, help="tokens of a conversation (default 1024)")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    found = measured(args)
    model = {"name": args.model, "backend": args.backend, "weights": args.weights, "adapter": args.adapter}
    shown = ("clients", "seconds", "decisions", "decision_ms", "longest_wait_s", "lost", "memory_growth", "realtime")
    measuring.finish(
        args, measurement, {"model": model, **found}, ("", "found"), [(name, found[name]) for name in shown]
    )
    return int(not found["realtime"])


if __name__ == "__main__":
    raise SystemExit(main())
