"""Builds a folder of dialogues in slices, with any workers; an interrupted build is continued.

`train-00000.jsonl`, `dev-00000.jsonl` and so on are shards; `manifest.json` has the recipe and the sources,
`statistics.json` and `report.md` have the statistics. Workers make rows; this process alone reads and writes files.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duologue.data.duplex.categories import CATEGORIES, Studio, TooShort
from duologue.data.duplex.dialogues import source_files
from duologue.data.duplex.planning import SPLITS, DuplexRecipe, Planner, RowPlan, Shard
from duologue.data.duplex.rewriting import Rewriter, Rules
from duologue.data.duplex.slicer import Slicer
from duologue.data.duplex.statistics import Statistics, markdown
from duologue.data.duplex.timeline import DuplexDialogue, Timeline
from duologue.data.duplex.transitions import Transitions
from duologue.data.jsonl import read_rows
from duologue.data.progress import StageProgress, silent
from duologue.data.workers import Here, Workers
from duologue.errors import BadData, UsageError

_BEFORE = 2  # most periods of silence before the first words: a session begins before them


@dataclass(frozen=True, slots=True)
class MadeShard:
    """The content of a shard's file."""

    name: str
    lines: str
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes rows. Every worker has one."""

    slicer: Slicer
    transitions: Mapping[str, Transitions]
    rewriter: Rewriter = field(default_factory=Rules)
    at_once: int = 1  # rows that wait for the rewriter at the same time

    def make(self, plan: RowPlan) -> DuplexDialogue:
        """The row of a plan. An error that occurs in it has a note that names the row and its sources."""
        try:
            try:
                return self._play(plan, plan.category, plan.instead_of)
            except TooShort:
                return self._play(plan, "basic", plan.category)
        except Exception as error:
            error.add_note(f"in row {plan.id}, made of {', '.join(source.id for source in plan.sources)}")
            raise

    def _play(self, plan: RowPlan, category: str, instead_of: str | None) -> DuplexDialogue:
        rng = random.Random(plan.seed)
        language = plan.sources[0].language
        timeline = Timeline(self.slicer, rng)
        timeline.quiet(rng.randint(0, _BEFORE))
        studio = Studio(timeline, self.transitions.get(language), self.rewriter, rng)
        CATEGORIES[category].play(studio, plan.sources)
        return timeline.finish(plan.id, category, language, instead_of)

    def shard(self, shard: Shard) -> MadeShard:
        """Make the rows of a shard.

        Raises:
            RemoteError: see `ModelRewriter`.
        """
        found, lines = Statistics(), []
        for row in self._made(shard.rows):
            lines.append(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
            found.add(row)
        return MadeShard(shard.name, "".join(lines), found)

    def _made(self, plans: Sequence[RowPlan]) -> Iterator[DuplexDialogue]:
        if self.at_once == 1:
            yield from map(self.make, plans)
            return
        pool = ThreadPoolExecutor(self.at_once)
        try:
            yield from pool.map(self.make, plans)
        finally:
            pool.shutdown(cancel_futures=True)


def read_dialogues(path: Path) -> Iterator[DuplexDialogue]:
    """The dialogues of a file, one by one. Raises `BadData` that names the line."""
    for number, row in read_rows(path):
        try:
            yield DuplexDialogue.from_json(row)
        except (BadData, TypeError) as error:
            raise BadData(f"{path}, line {number}: {error}") from None


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split: its shards, or one file."""
    return sorted([*folder.glob(f"{split}-*.jsonl"), *folder.glob(f"{split}.jsonl")])


def build(
    sources: Sequence[Path],
    out: Path,
    recipe: DuplexRecipe,
    workshop: Workshop,
    *,
    made_by: Mapping[str, str | None],
    workers: Workers | None = None,
    progress: StageProgress = silent,
) -> dict[str, Statistics]:
    """Build the folder `out`, or continue a build. Returns the statistics of each split.

    Args:
        made_by: what else determines the rows: the tokenizer, the rewriting model.
        workers: who makes rows; None: this process.

    Raises:
        BadData, UsageError: the sources or the folder cannot be used.
        RemoteError: see `ModelRewriter`.
        EngineError: see `Workers`.
    """
    files = source_files(sources)
    out.mkdir(parents=True, exist_ok=True)
    _check_manifest(out, recipe, made_by, files)
    planner = Planner(files, recipe, frozenset(workshop.transitions))
    splits = {split: Statistics() for split in SPLITS}

    def count(name: str, found: Statistics) -> None:
        splits[name.partition("-")[0]].merge(found)
        num_rows = splits["train"].dialogues.total()
        expected = recipe.num_dialogues or round(planner.num_sources / recipe.sources_per_row)
        progress("train", num_rows, max(num_rows, expected))

    def missing() -> Iterator[Shard]:
        """The shards to be made. Those that an earlier build has written are only counted."""
        for shard in planner.shards():
            if (path := out / f"{shard.name}.jsonl").exists():
                count(shard.name, Statistics.of(read_dialogues(path)))
            else:
                yield shard

    for made in (workers or Here()).map(workshop.shard, missing()):
        _replace(out / f"{made.name}.jsonl", made.lines)
        count(made.name, made.statistics)
    content: dict[str, Any] = {split: found.to_json() for split, found in splits.items()}
    content |= {"sources": planner.num_sources, "skipped": dict(sorted(planner.skipped.items()))}
    _replace(out / "statistics.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _replace(out / "report.md", markdown(splits, planner.skipped, planner.num_sources))
    return splits


def _check_manifest(
    folder: Path, recipe: DuplexRecipe, made_by: Mapping[str, str | None], files: Mapping[str, Path]
) -> None:
    """A folder belongs to one recipe and one set of sources."""
    manifest = {
        "recipe": recipe.to_json(),
        "made_by": made_by,
        "sources": {name: path.stat().st_size for name, path in files.items()},
    }
    path, content = folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    known = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if known is None and any(split_files(folder, split) for split in SPLITS):
        raise UsageError(f"{folder} has dialogues but no manifest.json; use another --out, or empty it")
    if known not in (None, content):
        raise UsageError(
            f"{folder} has dialogues of another recipe or of other sources (see manifest.json there); use another "
            "--out, or empty it"
        )
    _replace(path, content)


def _replace(path: Path, text: str) -> None:
    """Replace the content of a file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
