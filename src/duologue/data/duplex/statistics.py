"""What a data set is like: the table of the paper (MiniCPM-Duplex, table 1), from the rows themselves."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from duologue.data.duplex.categories import CATEGORIES
from duologue.data.duplex.rewriting import RULES
from duologue.data.duplex.timeline import DuplexDialogue

PAPER: Mapping[str, tuple[int, float, int]] = {
    "basic": (1_458_353, 153.9, 2_342),
    "topic_interweaving": (489_065, 427.7, 6_820),
    "generation_termination": (1_468_141, 89.3, 1_318),
    "regeneration": (806_687, 171.2, 2_590),
    "dialogue_reset": (300_318, 194.7, 2_907),
    "back_on_topic": (327_286, 199.1, 2_496),
}
"""Dialogues, slice pairs and tokens (means) of Duplex-UltraChat."""


@dataclass(slots=True)
class Statistics:
    """Sums over rows; those of several shards can be added."""

    dialogues: Counter[str] = field(default_factory=Counter)  # by category
    pairs: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)  # pairs in which the assistant says nothing
    languages: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)  # categories for which sources were too short
    written: Counter[str] = field(default_factory=Counter)  # texts that are not in the sources, by who wrote them
    refused: Counter[str] = field(default_factory=Counter)  # a model's texts that were not used, by reason

    def add(self, row: DuplexDialogue) -> None:
        """Count a row."""
        self.dialogues[row.category] += 1
        self.pairs[row.category] += len(row.output)
        self.tokens[row.category] += row.num_tokens
        self.silent[row.category] += sum(assistant is None for _, assistant in row.output)
        self.languages[row.language] += 1
        if row.instead_of:
            self.replaced[row.instead_of] += 1
        for part in row.parts:
            if "by" in part:
                self.written[part["by"]] += 1
            if "refused" in part:
                self.refused[part["refused"]] += 1

    def merge(self, other: "Statistics") -> None:
        """Add the sums of another shard."""
        for name in self.__slots__:
            getattr(self, name).update(getattr(other, name))

    @classmethod
    def of(cls, rows: Iterable[DuplexDialogue]) -> "Statistics":
        """The sums over `rows`."""
        found = cls()
        for row in rows:
            found.add(row)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values, sorted."""
        return {name: dict(sorted(getattr(self, name).items())) for name in self.__slots__}


def markdown(splits: Mapping[str, Statistics], skipped: Mapping[str, int], num_sources: int) -> str:
    """The report on a data set."""
    lines = []
    for split, found in splits.items():
        if found.dialogues:
            lines += [f"# {split}", "", *_table(found), "", *_notes(found), ""]
    lines += ["# Sources", "", f"{num_sources:,} dialogues were read."]
    if skipped:
        lines += ["Left out, by reason:", "", *(f"- {reason}: {num:,}" for reason, num in sorted(skipped.items()))]
    return "\n".join(lines) + "\n"


def _table(found: Statistics) -> list[str]:
    """Means by category, with those of the paper."""
    lines = [
        "| category | interrupts | dialogues | slice pairs | tokens | silent | paper: pairs | paper: tokens |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, category in CATEGORIES.items():
        if num := found.dialogues[name]:
            _, pairs, tokens = PAPER[name]
            cells = [name.replace("_", " "), "yes" if category.interrupts else "no", *_means(found, [name], num)]
            lines.append(f"| {' | '.join(cells)} | {pairs:,.1f} | {tokens:,} |")
    total = sum(found.dialogues.values())
    lines.append(f"| all | | {' | '.join(_means(found, list(found.dialogues), total))} | 170.4 | 2,570 |")
    return lines


def _means(found: Statistics, names: list[str], num: int) -> list[str]:
    pairs, tokens, silent = (
        sum(counts[name] for name in names) for counts in (found.pairs, found.tokens, found.silent)
    )
    share = silent / pairs if pairs else 0.0
    return [f"{num:,}", f"{pairs / num:,.1f}", f"{tokens / num:,.0f}", f"{100 * share:.0f} %"]


def _notes(found: Statistics) -> list[str]:
    """What else is worth knowing."""
    lines = [f"Languages: {_listed(found.languages)}."]
    if found.written:
        lines.append(f"Texts that are not in the sources, by who wrote them: {_listed(found.written)}.")
    if found.refused:
        lines.append(f"A model's texts that were not used, so that {RULES} wrote them: {_listed(found.refused)}.")
    if found.replaced:
        replaced = Counter({name.replace("_", " "): num for name, num in found.replaced.items()})
        lines.append(f"Basic instead, because the sources were too short: {_listed(replaced)}.")
    return lines


def _listed(counts: Counter[str]) -> str:
    """The most frequent first; those of the same frequency by name, whatever was counted first."""
    return ", ".join(f"{name} {num:,}" for name, num in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
