"""Builds a folder of dialogues in slices, with several processes; an interrupted build is continued.

`train-00000.jsonl`, `dev-00000.jsonl` and so on are shards; `manifest.json` has the recipe and the sources,
`statistics.json` and `report.md` have the statistics.
"""

import json
import multiprocessing
import random
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
from duologue.errors import BadData, EngineError, UsageError

_BEFORE = 2  # most periods of silence before the first words: a session begins before them
_AHEAD = 2  # shards per process that are planned before they are needed


@dataclass(frozen=True, slots=True)
class Workshop:
    """Makes rows. Every process has one."""

    folder: Path
    slicer: Slicer
    transitions: Mapping[str, Transitions]
    rewriter: Rewriter = field(default_factory=Rules)
    at_once: int = 1  # rows that wait for the rewriter at the same time

    def make(self, plan: RowPlan) -> DuplexDialogue:
        """The row of a plan."""
        try:
            return self._play(plan, plan.category, plan.instead_of)
        except TooShort:
            return self._play(plan, "basic", plan.category)

    def _play(self, plan: RowPlan, category: str, instead_of: str | None) -> DuplexDialogue:
        rng = random.Random(plan.seed)
        language = plan.sources[0].language
        timeline = Timeline(self.slicer, rng)
        timeline.quiet(rng.randint(0, _BEFORE))
        studio = Studio(timeline, self.transitions.get(language), self.rewriter, rng)
        CATEGORIES[category].play(studio, plan.sources)
        return timeline.finish(plan.id, category, language, instead_of)

    def write(self, shard: Shard) -> Statistics:
        """Make the rows of a shard and write its file.

        Raises:
            RemoteError: see `ModelRewriter`.
        """
        found, partial = Statistics(), self.folder / f"{shard.name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            for row in self._made(shard.rows):
                file.write(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
                found.add(row)
        partial.replace(self.folder / f"{shard.name}.jsonl")
        return found

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
    recipe: DuplexRecipe,
    workshop: Workshop,
    *,
    made_by: Mapping[str, str | None],
    workers: int = 1,
    progress: StageProgress = silent,
) -> dict[str, Statistics]:
    """Build the folder of `workshop`, or continue a build. Returns the statistics of each split.

    Args:
        made_by: what else determines the rows: the tokenizer, the rewriting model.
        workers: processes; with 1, everything is done in this one.

    Raises:
        BadData, UsageError: the sources or the folder cannot be used.
        RemoteError: see `ModelRewriter`.
        EngineError: a process was killed.
    """
    files, folder = source_files(sources), workshop.folder
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder, recipe, made_by, files)
    planner = Planner(files, recipe, frozenset(workshop.transitions))
    splits = {split: Statistics() for split in SPLITS}
    num_rows = 0
    for shard, found in _done(planner.shards(), workshop, workers):
        split = shard.name.partition("-")[0]
        splits[split].merge(found)
        num_rows += len(shard.rows) if split == "train" else 0
        expected = recipe.num_dialogues or round(planner.num_sources / recipe.sources_per_row)
        progress("train", num_rows, max(num_rows, expected))
    content: dict[str, Any] = {split: found.to_json() for split, found in splits.items()}
    content |= {"sources": planner.num_sources, "skipped": dict(sorted(planner.skipped.items()))}
    _replace(folder / "statistics.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _replace(folder / "report.md", markdown(splits, planner.skipped, planner.num_sources))
    return splits


def _done(shards: Iterable[Shard], workshop: Workshop, workers: int) -> Iterator[tuple[Shard, Statistics]]:
    """Every shard with its statistics, as it is done. Those that an earlier build has written are only counted."""

    def is_written(shard: Shard) -> bool:
        return (workshop.folder / f"{shard.name}.jsonl").exists()

    def counted(shard: Shard) -> Statistics:
        return Statistics.of(read_dialogues(workshop.folder / f"{shard.name}.jsonl"))

    if workers == 1:
        for shard in shards:
            yield shard, counted(shard) if is_written(shard) else workshop.write(shard)
        return
    # forking a process that has threads is not safe; libraries have some
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _set_up, (workshop,))
    running: dict[Future[Statistics], Shard] = {}
    try:
        for shard in shards:
            if is_written(shard):
                yield shard, counted(shard)
                continue
            running[pool.submit(_write, shard)] = shard
            if len(running) >= workers * (1 + _AHEAD):
                yield from _finished(running)
        while running:
            yield from _finished(running)
    except BrokenProcessPool:
        raise EngineError(
            "a process of the build was killed, perhaps because the memory was full; repeat the command to continue, "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(running: dict[Future[Statistics], Shard]) -> Iterator[tuple[Shard, Statistics]]:
    """Wait for a shard, and remove those that are done."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


_workshop: Workshop | None = None  # of a process of the pool


def _set_up(workshop: Workshop) -> None:
    global _workshop
    _workshop = workshop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one


def _write(shard: Shard) -> Statistics:
    assert _workshop is not None, "the pool sets it up"
    return _workshop.write(shard)


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
