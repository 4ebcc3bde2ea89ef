"""What every benchmark script has in common: its flags, loading a model, and the end of a run."""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from duologue.cli.command import add_options
from duologue.cli.main import main as duologue
from duologue.cli.options import MODEL_WITHOUT_CONTEXT
from duologue.cli.options import load_model as load
from duologue.evaluation import results
from duologue.evaluation.markdown import table
from duologue.models.catalogue import find
from duologue.models.model import Model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CONTEXT = 2048  # tokens of a conversation, unless a script says otherwise


def arguments(doc: str | None, *, with_model: bool = True) -> argparse.ArgumentParser:
    """Flags of every benchmark; `doc` is the script's docstring, which `--help` shows."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random (default 0)")
    parser.add_argument("--out", type=Path, help="write the result file here")
    if with_model:
        add_options(parser.add_argument_group("model"), MODEL_WITHOUT_CONTEXT)
    return parser


def load_model(args: argparse.Namespace, *, context: int = CONTEXT, sessions: int = 1, **changes: Any) -> Model:
    """The model that the flags name, with `changes` to the flags."""
    changed = argparse.Namespace(**{**vars(args), **changes})
    return load(changed, context_length=context, sessions=sessions)


def gguf_file(args: argparse.Namespace) -> Path:
    """The file of the model that the flags name.

    Raises:
        SystemExit: llama.cpp does not run it.
    """
    path = find(args.model).path
    if path is None or path.suffix != ".gguf" or args.backend not in ("auto", "llamacpp"):
        raise SystemExit("this benchmark measures GGUF files with llama.cpp")
    return path


def begin(args: argparse.Namespace) -> results.Measurement:
    """Note the facts of the run. Call it before the work."""
    return results.Measurement(Path(sys.argv[0]).stem, seed=args.seed)


def finish(
    args: argparse.Namespace,
    measurement: results.Measurement,
    figures: Mapping[str, Any],
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
) -> None:
    """Print a table for people and one line of JSON for programs, and write the result file if `--out` names one."""
    result = measurement.result(figures)
    print(table(header, rows))
    if not result["hardware"]["quiet"]:
        progress("note: other processes used the cores meanwhile; times are longer than on a quiet machine")
    print(json.dumps(result, ensure_ascii=False))
    if args.out:
        results.write(result, args.out)


def run_eval(
    what: str,
    doc: str | None,
    header: Sequence[object],
    rows: Callable[[dict[str, Any]], Iterable[Sequence[object]]],
) -> int:
    """A script around `duologue eval WHAT FILE --json`; what follows `--` is passed to it. Returns the exit status.

    `rows` makes the table for people from the figures.
    """
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = arguments(doc, with_model=False)
    parser.add_argument("file", help="rows to decide on")
    args = parser.parse_args(words[:end])
    measurement = begin(args)
    line = io.StringIO()
    with contextlib.redirect_stdout(line):
        status = duologue(["eval", what, args.file, "--json", *words[end + 1 :]])
    if status:
        return status
    found = json.loads(line.getvalue())
    found["model"] = {name: found.pop(name) for name in ("model", "backend", "weights", "adapter")}
    found["model"]["name"] = found["model"].pop("model")
    finish(args, measurement, found, header, rows(found))
    return 0


def progress(text: str) -> None:
    """Report progress on standard error, apart from the result."""
    print(text, file=sys.stderr, flush=True)
