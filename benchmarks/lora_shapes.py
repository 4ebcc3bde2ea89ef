"""The cost of the LoRA at the probe by its shape: decisions beside a running answer.

Claim: on llama.cpp the pass of the probe costs as much as a token; the layers and the rank of the LoRA matter little
beside that. So the shape is chosen by the quality of its decisions (`experiments/run.py kinds`).

How: adapters with the shapes of that experiment and random matrices (the time does not depend on their values) take
turns, one answer each, and decide while it is generated after 300 to 500 tokens. Words arrive between two passes, as
in `latency.py`, *direct*. `ratio` compares the medians of each round with those of `rows`, which has no LoRA.

    python benchmarks/lora_shapes.py --weights BF16 --out benchmarks/results/lora-shapes-llamacpp-bf16.json
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import measuring
import numpy as np
from latency import Direct, Measured, Rig

from duologue.backends.lora import Factors, Lora
from duologue.evaluation.quantiles import summary
from duologue.evaluation.results import describe_model
from duologue.models.adapters import Adapter

ROWS = "rows"
SHAPES: dict[str, tuple[int, Callable[[str], bool]]] = {
    "rank 8": (8, lambda path: True),
    "rank 2": (2, lambda path: True),
    "rank 32": (32, lambda path: True),
    "attention only": (8, lambda path: "self_attn" in path),
    "MLP only": (8, lambda path: "mlp" in path),
    "upper half of the layers": (8, lambda path: int(path.split(".")[1]) >= 15),
}
"""Name of a shape → its rank, and which linear layers it has."""


def shaped(adapter: Adapter, rank: int, has: Callable[[str], bool], chance: np.random.Generator) -> Adapter:
    """`adapter` with random matrices of another shape."""
    assert adapter.lora is not None

    def random(*size: int) -> Any:
        return (chance.standard_normal(size) * 0.01).astype(np.float16)

    layers = {
        path: Factors(random(rank, pair.a.shape[1]), random(pair.b.shape[0], rank))
        for path, pair in adapter.lora.layers.items()
        if has(path)
    }
    return replace(adapter, lora=Lora(layers, adapter.lora.scale))


def main() -> None:
    """Run it."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="answers talked over per shape")
    args = parser.parse_args()
    measurement = measuring.begin(args)
    chance = np.random.default_rng(args.seed)
    args.adapter = "alora"
    trained = measuring.load_model(args)
    trained.close()
    with ExitStack() as models:
        rigs = {}
        for name in (ROWS, *SHAPES):
            args.adapter = name if name == ROWS else shaped(trained.adapter, *SHAPES[name], chance)
            model = measuring.load_model(args)
            models.callback(model.close)
            rigs[name] = Rig(model, args.seed)
            Direct(rigs[name], Measured()).speaking()  # to warm up
        rounds: dict[str, list[list[float]]] = {name: [] for name in rigs}
        for number in range(args.rounds):
            for name, rig in rigs.items():
                measured = Measured()
                Direct(rig, measured).speaking()
                rounds[name].append(measured.decisions)
            measuring.progress(f"round {number + 1} of {args.rounds}")
    found = {}
    for name, decisions in rounds.items():
        ratios = [median(own) / median(rows) for own, rows in zip(decisions, rounds[ROWS], strict=True) if own and rows]
        every = summary([ms for one in decisions for ms in one])
        found[name] = {**every, "ratio": round(median(ratios), 3)}
    table = [(name, str(row["n"]), str(row["p50"]), str(row["p95"]), str(row["ratio"])) for name, row in found.items()]
    result = {"model": describe_model(trained), "decision_ms": found}
    measuring.finish(args, measurement, result, ("shape", "n", "ms p50", "p95", "of rows"), table)


if __name__ == "__main__":
    main()
