"""Decisions on labelled rows: `duologue eval states`, with the facts that a committed figure needs.

    python benchmarks/states.py samples/test.jsonl --out benchmarks/results/states-alora-torch.json -- [eval options]

Everything after `--` is passed to `duologue eval states` (--adapter, --backend, --baselines, --train, --compare). The
rows come from whole sources that the adapter was not trained on; `duologue data build` writes them.
"""

import contextlib
import io
import json
import sys

import measuring

from duologue.cli.main import main as duologue


def main() -> int:
    """Run it."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("file", help="rows to decide on")
    args = parser.parse_args(words[:end])
    measurement = measuring.begin(args)
    line = io.StringIO()
    with contextlib.redirect_stdout(line):
        status = duologue(["eval", "states", args.file, "--json", *words[end + 1 :]])
    if status:
        return status
    found = json.loads(line.getvalue())
    found["model"] = {name: found.pop(name) for name in ("model", "backend", "weights", "adapter")}
    found["model"]["name"] = found["model"].pop("model")
    result = {**found}
    rows = [(place, *_row(result[place])) for place in ("idle", "speaking")]
    measuring.finish(args, measurement, result, ("", "n", "answer F1", "false answers", "accuracy"), rows)
    return 0


def _row(part: dict[str, object]) -> tuple[object, ...]:
    answer = part["answer"]
    assert isinstance(answer, dict)
    return part["n"], answer["f1"], part["false_answer_rate"], part["accuracy"]


if __name__ == "__main__":
    raise SystemExit(main())
