"""Listening while speaking costs no forward pass: six kinds of sessions on the same weights, saying the same words.

Claim: in overlap, channel division runs as many passes as for speaking alone, and half as many as the two channels one
after the other. Its KV holds the conversation alone and does not grow in silence.

Why: what is heard goes into the pass of the answer's next token. Time division writes a pair of slices every two
seconds, whether or not anybody speaks.

How: the measurement of `duologue bench cost`. The exit status is 1 unless a slice heard over an answer costs the
sequential session exactly one pass more than channel division.
"""

import argparse
from pathlib import Path

import measuring

from duologue.evaluation.cost import measure
from duologue.evaluation.cost_report import draw, tables
from duologue.evaluation.results import describe_model


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    model = measuring.load_model(args, context=4096)
    try:
        figures = measure(
            model,
            conversations=args.conversations,
            exchanges=args.exchanges,
            seed=args.seed,
            progress=lambda what, share=None: measuring.progress(what),
        )
        result = {"model": describe_model(model), **figures}
    finally:
        model.close()
    measuring.progress(tables(result["sessions"]))
    if args.picture is not None:
        draw(result["sessions"], args.picture)
    rows = [
        (name, one["passes"], one["overlap_passes"], one["tokens_fed"], one["seconds"], one["kv_entries_peak"])
        for name, one in result["sessions"].items()
    ]
    measuring.finish(
        args, measurement, result, ("", "passes", "in overlap", "tokens fed", "s", "KV entries, peak"), rows
    )
    cdm, sequential = (result["sessions"][name]["by_slices"][-1] for name in ("cdm", "sequential"))
    return int(cdm["overlap_passes"] + cdm["slices"] != sequential["overlap_passes"])


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--conversations", type=int, default=2)
    parser.add_argument("--exchanges", type=int, default=6, help="questions in each conversation")
    parser.add_argument("--picture", type=Path, help="also draw the figures into this file (PNG)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
