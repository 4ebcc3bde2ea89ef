"""The picture of the papers' systems on the same weights, from result files of `behaviour.py` and `cost.py`.

On the left, what each system does right in scripted conversations, by action; on the right, how the tokens it has fed
grow with the conversation. The table beside it is `comparison` of `document_tables.py`.
"""

import argparse
from pathlib import Path
from typing import Any

import measuring
from document_tables import COMPARED, behaviour_runs

from duologue import pictures
from duologue.evaluation.results import Results

_ACTIONS = {"maintain": "go on", "stop_and_listen": "stop", "takeover": "answer", "dismiss": "stay silent"}


def draw(results: Results, path: Path) -> None:
    """Write the picture to `path`."""
    runs = behaviour_runs(results)
    shown = [(f"{name}, {by}".replace("`", ""), runs[run]) for name, by, run, _ in COMPARED if run in runs]
    costs = next((result["sessions"] for _, result in results.of("cost")), {})

    def right(axes: Any) -> None:
        height = 0.8 / len(_ACTIONS)
        for number, (action, label) in enumerate(_ACTIONS.items()):
            places = [i - 0.4 + height * (number + 0.5) for i in range(len(shown))]
            axes.barh(places, [100 * run["actions"][action] for _, run in shown], height, label=label)
        axes.set(yticks=range(len(shown)), yticklabels=[name for name, _ in shown], xlim=(0, 100), xlabel="right, %")
        axes.invert_yaxis()
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_ACTIONS), frameon=False)

    def fed(axes: Any) -> None:
        names = {session: name for name, _, _, session in COMPARED if session in costs}
        for session, name in names.items():
            found = costs[session]["by_exchange"]
            axes.plot([one["exchanges"] for one in found], [one["tokens_fed"] for one in found], marker=".", label=name)
        axes.set(xlabel="exchanges", ylabel="tokens fed", ylim=(0, None))
        axes.legend(fontsize="small")

    pictures.draw(path, [right, fed], width=12.0, height=5.0)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=measuring.ROOT / "docs" / "comparison.png")
    args = parser.parse_args()
    draw(Results(measuring.RESULTS), args.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
