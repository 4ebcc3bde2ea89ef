"""The result of `duologue eval timing` for people: Markdown tables."""

from collections.abc import Mapping
from typing import Any

from duologue.evaluation.markdown import MISSING, percent, table

_ENOUGH = 200
"""Rows below which a share is uncertain by ten points or so, since only some of them are joints."""


def tables(result: Mapping[str, Any]) -> str:
    """The waits of all rows, of questions and of statements, and the operating points of the dial."""
    sections = {"all": result, "questions": result["questions"], "statements": result["statements"]}
    pauses = list(result["early"])
    header = ["last sentence", "n", "AUC", *(f"early, {pause} s" for pause in pauses), "delay p50", "p95"]
    waits = table(header, [_section(name, one) for name, one in sections.items()])
    points = table(
        ["at most so many pauses early", "delay by the dial", "by a constant wait"],
        [[percent(float(share), 0), _ms(result["points"][share]), _ms(result["constant"][share])]
         for share in result["points"]],
    )  # fmt: skip
    few = "" if result["n"] >= _ENOUGH else f"\n\nOnly {result['n']} rows: these figures say little."
    return (
        f"{result['model']} with {result['adapter']} on {result['backend']}, {result['weights']}: {result['n']} rows "
        f"of {result['file']}, eagerness {result['eagerness']:g}. Early: percent of pauses of so many seconds in which "
        f"the floor is taken. Delays in ms, without the time of the decision.\n\n{waits}\n\n{points}{few}"
    )


def _section(name: str, one: Mapping[str, Any]) -> list[str]:
    early = [percent(share) for share in one["early"].values()]
    return [name, str(one["n"]), percent(one["auc"]), *early, *(_ms(delay) for delay in one["delay_ms"].values())]


def _ms(delay: float | None) -> str:
    return MISSING if delay is None else f"{delay:.0f}"
