"""How many live sessions one machine serves: each has a history, speaks five tokens a second, and listens meanwhile.

Claim: with llama.cpp and the default model on two cores, twelve sessions with 512 tokens of history each run in real
time: 95 of 100 decisions within 300 ms, and every session at its five tokens a second.

Why: the pending tokens of all sessions go into one forward pass, which reads the weights once for all of them.

How: the measurement of `duologue bench scale`. For each history length, search for the largest number of sessions in
real time, up to `--most`; then measure the numbers given with `--also`, whether or not they run in real time. The
result holds every measurement on the way. Decisions are forced; all passes are real, probes included. The exit status
is 1 if not even one session runs in real time.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import measuring

from duologue import pictures
from duologue.evaluation.results import describe_model
from duologue.evaluation.scale import MAX_P95_MS, ScaleResult, ScaleSetting, largest, measure

_HEADER = ("context", "sessions", "decision p50 (ms)", "p95", "tokens/s each, least", "missed", "passes", "real time")


class Measurements:
    """Measurements with one history length, on a model loaded for the largest number of sessions."""

    def __init__(self, args: argparse.Namespace, context: int, most: int) -> None:
        self.outcomes: list[dict[str, Any]] = []
        self._setting = ScaleSetting(1, context, args.seconds, seed=args.seed)
        self.model = measuring.load_model(args, context=self._setting.max_length, sessions=most)

    def measured(self, sessions: int) -> ScaleResult:
        """Measure so many sessions, and report the result."""
        setting = ScaleSetting(sessions, self._setting.context_tokens, self._setting.seconds, seed=self._setting.seed)
        model = self.model
        outcome = asyncio.run(measure(model.backend, model.template, model.probe, setting))
        self.outcomes.append(outcome.as_dict())
        measuring.progress(" ".join(map(str, row(self.outcomes[-1]))))
        return outcome


def row(outcome: dict[str, Any]) -> tuple[Any, ...]:
    """One measurement, for the table."""
    decision, rate = outcome["decision_ms"], outcome["tokens_per_second"]
    return (
        outcome["context_tokens"], outcome["sessions"], decision["p50"], decision["p95"], rate["min"],
        outcome["missed_deadlines"], outcome["passes"], "yes" if outcome["realtime"] else "no",
    )  # fmt: skip


def draw(outcomes: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG file: the p95 of decisions by the number of sessions, one line per history length."""

    def fill(axes: Any) -> None:
        for context in sorted({one["context_tokens"] for one in outcomes}):
            points = sorted(
                (o["sessions"], o["decision_ms"]["p95"]) for o in outcomes if o["context_tokens"] == context
            )
            axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=f"{context:,} tokens of history")
        axes.axhline(MAX_P95_MS, color="0.7", linestyle="--", label="real time")
        axes.set(title="Latency of 95 of 100 decisions", xlabel="live sessions", ylabel="ms", yscale="log")
        axes.legend(fontsize=8)

    pictures.draw(path, [fill], width=6.0)


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    outcomes: list[dict[str, Any]] = []
    found: dict[str, int] = {}
    described: dict[str, Any] = {}
    for context in args.contexts:
        also = [number for number, of in args.also if of == context]
        measurements = Measurements(args, context, max([args.most, *also]))
        try:
            described = describe_model(measurements.model)
            found[str(context)], _ = largest(args.most, measurements.measured)
            for number in also:
                if number not in {outcome["sessions"] for outcome in measurements.outcomes}:
                    measurements.measured(number)
        finally:
            measurements.model.close()
        outcomes += sorted(measurements.outcomes, key=lambda outcome: outcome["sessions"])
    if args.picture is not None:
        draw(outcomes, args.picture)
    result = {"model": described, "most_tried": args.most, "largest": found, "outcomes": outcomes}
    measuring.finish(args, measurement, result, _HEADER, map(row, outcomes))
    return int(not any(found.values()))


def _pair(text: str) -> tuple[int, int]:
    sessions, _, context = text.partition("@")
    return int(sessions), int(context)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048], help="tokens of history")
    parser.add_argument("--most", type=int, default=48, help="the most sessions to try")
    parser.add_argument(
        "--also", type=_pair, nargs="*", default=[(12, 512), (32, 512)], metavar="N@T", help="N sessions with T tokens"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--picture", type=Path, help="also draw the figures into this file (PNG; needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
