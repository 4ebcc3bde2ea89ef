"""Added tokens never win: an exported GGUF file, checked on text that it was not computed from.

Claim: in a file written by `duologue export`, no token of the adapter is ever the most probable token of ordinary text,
greedy answers are those of the base, and decisions are those of the rows.

Why: one vector added to all state and padding rows keeps them below the best base token on text that the model writes
by itself. Decisions use the softmax of the state rows alone, which a common shift does not change.

How: as `duologue export --format gguf --tokens N`. The vector is computed from N tokens, and the written file is
checked on N others. The exit status is 1 if an added token won.
"""

import argparse
import tempfile
import time
from pathlib import Path

import measuring

from duologue.evaluation.results import describe_model
from duologue.export.gguf import export_gguf
from duologue.models.adapters import Adapter


def main() -> int:
    """Run it."""
    args = _arguments()
    measurement = measuring.begin(args)
    source = measuring.gguf_file(args)
    model = measuring.load_model(args)
    described = describe_model(model)
    adapter: Adapter = model.adapter
    model.close()
    if adapter.rows is None:
        raise SystemExit("this adapter has no rows")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = export_gguf(
            source, adapter.rows, Path(folder) / "out.gguf", states=adapter.states,
            weights=described["weights"].upper(), num_tokens=args.tokens, threads=args.threads or 1,
        )  # fmt: skip
    result = {
        "model": described, "tokens": report.leads.num_tokens, "won": report.leads.num_won,
        "smallest_lead": round(report.leads.smallest, 3), "greedy_tokens_as_the_base": report.num_same,
        "decision_error": round(report.decision_error, 5), "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    names = ("tokens", "won", "smallest_lead", "greedy_tokens_as_the_base", "decision_error", "seconds")
    measuring.finish(args, measurement, result, ("", "found"), [(name, result[name]) for name in names])
    return int(report.leads.num_won > 0)


def _arguments() -> argparse.Namespace:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=50_000, help="tokens to compute from, and as many to check on")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
