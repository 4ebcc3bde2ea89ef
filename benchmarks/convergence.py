"""Training with the defaults converges on any model, because its learning rates follow from the model.

    python benchmarks/convergence.py --data DIR --models NAME … [--unscaled] [--out FILE]

DIR has train.jsonl and dev.jsonl from `duologue data build`. For each model, an `alora` adapter is trained as by
`duologue train alora`, and compared with the prompted model on held-out samples. With `--unscaled`, the rates are those
of the default model whatever the model, as before; such a run should diverge where the gains are much larger.
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import measuring
import torch

from duologue.backends.torch.loading import read_model
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.errors import UsageError
from duologue.evaluation.markdown import MISSING
from duologue.models.adapters import Adapter
from duologue.models.catalogue import find
from duologue.training.probe import rates
from duologue.training.probe.run import ProbeRun, train_probe
from duologue.training.recipes import PROBE_RECIPES


def train(name: str, data: Path, dtype: str) -> dict[str, Any]:
    """Train around one model; what it said and found."""
    source = find(name)
    said: list[str] = []

    def say(line: str) -> None:
        measuring.progress(f"{source.name}: {line}")
        said.append(line)

    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = read_model(source.location, dtype=dtype)
        run = ProbeRun(data, Path(folder), PROBE_RECIPES["alora"])
        error = None
        try:
            train_probe(run, model, HfTokenizer(tokenizer), name=source.name, say=say)
        except UsageError as caught:
            error = str(caught)
        facts: dict[str, Any] = {}
        with contextlib.suppress(UsageError):
            facts = dict(Adapter.load(Path(folder)).facts)
    kept = ("samples", "rates", "epochs", "temperature", "compared", "seconds")
    held_out = {place: figures for place, figures in facts.get("dev", {}).items() if place != "cases"}
    return {
        "model": source.name,
        "said": said,
        "error": error,
        **{key: facts.get(key) for key in kept},
        "dev": held_out,
    }


def main() -> int:
    """Train around each model."""
    parser = measuring.arguments(__doc__, with_model=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--unscaled", action="store_true", help="the rates of the default model for all")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    measurement = measuring.begin(args)
    if args.unscaled:
        rates.Gains.of = classmethod(lambda cls, model, layouts: rates.DEFAULT_GAINS)  # type: ignore[method-assign]
    found = [train(name, args.data, args.dtype) for name in args.models]
    losses = [each["epochs"][-1]["dev_loss"] if each["epochs"] else MISSING for each in found]
    rows = [(each["model"], loss, each["error"] or "") for each, loss in zip(found, losses, strict=True)]
    figures = {"unscaled": args.unscaled, "results": found}
    measuring.finish(args, measurement, figures, ("model", "held-out loss", "error"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
