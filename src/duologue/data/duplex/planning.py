"""Which dialogues make which rows, and which rows a shard has. Depends on sources, recipe and seed alone.

Dialogues are collected into blocks of one split and one language; a block makes the rows of a shard. So a build can be
divided among processes and continued, and the result is the same.
"""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from duologue.data.duplex.categories import CATEGORIES
from duologue.data.duplex.dialogues import SourceDialogue, stream
from duologue.errors import BadData, refuse

SPLITS = ("train", "dev")
SHARD = 200
"""Rows of a shard; the last ones of a split and a language may have fewer."""


@dataclass(frozen=True, slots=True)
class DuplexRecipe:
    """What a data set is to be like. The same recipe and sources give the same rows."""

    num_dialogues: int | None = None
    """Dialogues to train on; None: as many as the sources give if each is used once."""
    dev: float = 0.03
    """Share of the source dialogues that the split dev is made of."""
    shares: Mapping[str, float] = field(default_factory=lambda: {name: one.share for name, one in CATEGORIES.items()})
    """Of the categories; by default those of the paper."""
    language: str | None = None
    """Language of all sources; None: found dialogue by dialogue."""
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(self.shares.keys() - CATEGORIES.keys())
        refuse(
            [
                (bool(unknown), f"no category {', '.join(unknown)}; there are {', '.join(CATEGORIES)}"),
                (min(self.shares.values(), default=0) < 0, "a share must not be negative"),
                (not any(self.shares.values()), "at least one category needs a share"),
                (self.num_dialogues is not None and self.num_dialogues < 1, "at least one dialogue is needed"),
                (not 0 <= self.dev < 0.5, f"the share of dev must be from 0 to less than 0.5, got {self.dev}"),
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """For the manifest of a folder."""
        return asdict(self)

    @property
    def sources_per_row(self) -> float:
        """Source dialogues that a row takes on average."""
        weights = {name: share * sum(CATEGORIES[name].num_sources) / 2 for name, share in self.shares.items()}
        return sum(weights.values()) / sum(self.shares.values())


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A row to be made."""

    id: str
    category: str
    sources: tuple[SourceDialogue, ...]
    seed: str
    instead_of: str | None = None  # the category that the sources are too short for


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of a file."""

    name: str  # "train-00012"
    rows: tuple[RowPlan, ...]


@final
class Planner:
    """Plans the shards of a build, one by one."""

    def __init__(self, files: Mapping[str, Path], recipe: DuplexRecipe, languages: frozenset[str]) -> None:
        """`languages` are those that have transitions; dialogues in others are not interrupted."""
        self._files, self._recipe, self._languages = files, recipe, languages
        self.skipped: Counter[str] = Counter()
        """What could not be used of the sources, by reason."""
        self.num_sources = 0
        """Dialogues in the sources, as far as they were read; in full after the first pass over them."""
        self._num_rows: Counter[str] = Counter()
        self._num_shards: Counter[str] = Counter()
        self._blocks: dict[tuple[str, str], list[SourceDialogue]] = defaultdict(list)
        self._block_size = max(5, round(SHARD * recipe.sources_per_row))

    def shards(self) -> Iterator[Shard]:
        """All shards. The sources are read again and again, until there are enough rows.

        Raises:
            BadData: a file cannot be read, or no dialogue can be used.
        """
        epoch = 0
        while not self._is_done:
            used = 0
            for dialogue in self._dialogues(epoch):
                used += 1
                split = "dev" if dialogue.part >= 1 - self._recipe.dev else "train"
                if split == "dev" and epoch:
                    continue
                key = split, dialogue.language if dialogue.language in self._languages else "other"
                self._blocks[key].append(dialogue)
                if len(self._blocks[key]) >= self._block_size:
                    yield from self._flush(key)
                if self._is_done:
                    break
            if not used:
                reasons = ", ".join(f"{reason}: {num}" for reason, num in sorted(self.skipped.items())) or "no line"
                raise BadData(
                    f"{', '.join(map(str, self._files.values()))} give no dialogue that can be used ({reasons})"
                )
            for key in list(self._blocks):
                yield from self._flush(key)
            epoch += 1
            if self._recipe.num_dialogues is None:
                return
            if not self._num_rows["train"]:
                raise BadData("all dialogues are in the split dev; give more sources, or another --dev")

    @property
    def _is_done(self) -> bool:
        wanted = self._recipe.num_dialogues
        return wanted is not None and self._num_rows["train"] >= wanted

    def _dialogues(self, epoch: int) -> Iterator[SourceDialogue]:
        recipe = self._recipe
        skipped = Counter[str]() if epoch else self.skipped
        for dialogue in stream(self._files, seed=f"{recipe.seed} {epoch}", language=recipe.language, skipped=skipped):
            self.num_sources += not epoch
            yield dialogue

    def _flush(self, key: tuple[str, str]) -> Iterator[Shard]:
        """The shard of a block, which is emptied."""
        split, language = key
        block = self._blocks.pop(key)
        num = max(1, round(len(block) / self._recipe.sources_per_row))
        if split == "train" and self._recipe.num_dialogues is not None:
            num = min(num, self._recipe.num_dialogues - self._num_rows[split])
        if num < 1:
            return
        name = f"{split}-{self._num_shards[split]:05d}"
        self._num_shards[split] += 1
        self._num_rows[split] += num
        yield Shard(name, tuple(self._rows(name, num, block, can_interrupt=language in self._languages)))

    def _rows(self, name: str, num: int, block: list[SourceDialogue], *, can_interrupt: bool) -> Iterator[RowPlan]:
        recipe = self._recipe
        rng = random.Random(f"{recipe.seed} {name}")
        shares = {
            name: share for name, share in recipe.shares.items() if can_interrupt or not CATEGORIES[name].interrupts
        }
        if not any(shares.values()):
            shares = {"basic": 1.0}
        draw = _Draw(block, rng)
        for number, wanted in enumerate(rng.choices(list(shares), list(shares.values()), k=num)):
            category = CATEGORIES[wanted]
            sources = draw(rng.randint(*category.num_sources), category.suits)
            # a block may have too few dialogues, or none with an answer that is long enough
            is_possible = len(sources) >= category.num_sources[0]
            yield RowPlan(
                id=f"{name}-{number:03d}",
                category=wanted if is_possible else "basic",
                sources=tuple(sources if is_possible else draw(1)),
                seed=f"{recipe.seed} {name} {number}",
                instead_of=None if is_possible else wanted,
            )


@final
class _Draw:
    """Draws dialogues from a block: all of them, in random order, before one is drawn again."""

    def __init__(self, block: list[SourceDialogue], rng: random.Random) -> None:
        self._block, self._rng = block, rng
        self._left: deque[SourceDialogue] = deque()

    def __call__(self, num: int, suits: Any = lambda dialogue: True) -> list[SourceDialogue]:
        """Up to `num` different dialogues that suit."""
        found: list[SourceDialogue] = []
        for _ in range(2):  # what is left, and then all
            passed: list[SourceDialogue] = []
            while self._left and len(found) < num:
                dialogue = self._left.popleft()
                fits = suits(dialogue) and all(dialogue.id != other.id for other in found)
                (found if fits else passed).append(dialogue)
            self._left.extendleft(reversed(passed))
            if len(found) == num:
                break
            known = {dialogue.id for dialogue in self._left}
            again = [dialogue for dialogue in self._block if dialogue.id not in known]
            self._rng.shuffle(again)
            self._left.extend(again)
        return found
