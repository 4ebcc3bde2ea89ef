"""A folder of samples: train.jsonl, dev.jsonl, test.jsonl and the report on them, from a folder of sources."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from duologue.data import corpus, forms
from duologue.data.addressed import addressed
from duologue.data.build import Builder
from duologue.data.duplicates import Duplicates
from duologue.data.forms import Ends
from duologue.data.judge import Judge, Verdict
from duologue.data.pools import Pools, fixed_labels
from duologue.data.recipes import Recipe
from duologue.data.report import Report, markdown
from duologue.data.samples import Sample, read_samples, write_samples
from duologue.data.unseen import unseen
from duologue.errors import BadData, UsageError

_ADDRESSED = "background that speaks to an assistant"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done and of how much."""


class FolderBuilder:
    """Builds one folder. What is there from a run that was killed is kept, if it is of the same recipe and sources."""

    def __init__(
        self,
        sources: Path,
        out: Path,
        recipe: Recipe,
        *,
        ends: Ends | None = None,
        judge: Judge | None = None,
        made_by: Mapping[str, str | None] | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        """
        Args:
            ends: says which cuts of a request are complete in themselves (`forms.unfinished_cut`); None: rules alone.
            judge: a model that says which background lines are said to an assistant after all; None: rules alone.
            made_by: the names of both, since other ones would make other samples.

        Raises:
            UsageError: `out` has samples of another recipe; `sources` has nothing to test on.
            BadData: there is nothing to read in `sources`.
        """
        if recipe.num_test:
            _check_unseen(sources, recipe)
        self._sources, self._out, self._recipe = sources, out, recipe
        self._ends, self._judge, self._progress = ends, judge, progress
        self._known = Duplicates()
        self._reports: dict[str, Report] = {}
        self._contents: dict[str, dict[str, Any]] = {}  # of those that are complete
        self._dropped_before = _dropped(out / "report.json")
        self._words: set[int] = set()  # hashes of what is said in the splits before
        self._num_known = 0  # test rows whose words are among them
        self._made_by = dict(made_by or {})
        out.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        for text, state in fixed_labels(sources, recipe):
            self._known.claim(text, state)

    def build(self) -> dict[str, Any]:
        """Write what is missing; returns the content of report.json.

        Raises:
            BadData: a source has a bad line (named), or there is too little of something.
        """
        wanted = {"train": self._recipe.num_samples, "dev": self._recipe.num_dev}
        for split, number in wanted.items():
            self._write(split, self._built(split, number))
        if self._recipe.num_test:
            self._write("test", self._unseen())
        return {"recipe": _plain(self._recipe), **self._contents}

    def _write(self, split: str, samples: Iterator[Sample]) -> None:
        path, report = self._out / f"{split}.jsonl", Report(seed=self._recipe.seed)
        self._reports[split] = report
        if path.exists():
            for sample in read_samples(path):
                self._known.admit(sample)
                self._count(split, sample)
            for reason, number in self._dropped_before.get(split, {}).items():
                report.drop(reason, number)
            self._tell(split)
            return
        partial = path.with_suffix(".partial")
        write_samples(partial, samples)  # nothing is drawn before
        self._tell(split)
        partial.replace(path)

    def _tell(self, split: str) -> None:
        """Write the report on this split and those before it."""
        self._contents[split] = self._reports[split].to_json()
        if split == "test":
            self._contents[split]["words_known"] = self._num_known
        content = {"recipe": _plain(self._recipe), **self._contents}
        _put(self._out / "report.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        parts = [f"# {name}\n\n{markdown(content)}" for name, content in self._contents.items()]
        _put(self._out / "report.md", "\n".join(parts))

    def _built(self, split: str, number: int) -> Iterator[Sample]:
        pools = Pools(self._sources, self._recipe, split)
        builder = Builder(pools, self._recipe, split, self._ends, lambda text: self._is_addressed(split, text))
        for done, sample in enumerate(builder.samples(number, lambda sample: self._admit(split, sample)), 1):
            self._count(split, sample)
            self._progress(split, done, number)
            yield sample

    def _unseen(self) -> Iterator[Sample]:
        """Test samples that repeat none of the other splits. What is short recurs behind other contexts."""
        for sample in unseen(self._sources, self._recipe, self._ends):
            if self._admit("test", sample):
                self._count("test", sample)
                yield sample

    def _count(self, split: str, sample: Sample) -> None:
        self._reports[split].add(sample)
        words = hash(forms.spoken(sample.text))
        if split == "test":
            self._num_known += words in self._words
        else:
            self._words.add(words)

    def _admit(self, split: str, sample: Sample) -> bool:
        reason = self._known.admit(sample)
        if reason is not None:
            self._reports[split].drop(reason.value)
        return reason is None

    def _is_addressed(self, split: str, text: str) -> bool:
        found = addressed(text) is not None or (
            self._judge is not None and self._judge.verdict(text) is Verdict.ASSISTANT
        )
        if found:
            self._reports[split].drop(_ADDRESSED)
        return found

    def _check_manifest(self) -> None:
        """The folder is of one recipe and one set of sources, whose names and sizes stand in `manifest.json`."""
        files = corpus.source_files(self._sources)
        manifest = {
            "recipe": _plain(self._recipe),
            "made_by": self._made_by,
            "sources": {
                f"{kind}/{path.name}": path.stat().st_size for kind, paths in files.items() for path in paths.values()
            },
        }
        path = self._out / "manifest.json"
        if not path.exists():
            if any((self._out / f"{name}.jsonl").exists() for name in ("train", "dev", "test")):
                raise UsageError(f"{self._out} has samples of unknown making; give another --out, or empty it")
            _put(path, json.dumps(manifest, indent=2) + "\n")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadData(f"{path} is damaged ({error}); give another --out, or empty the folder") from None
        if known != manifest:
            raise UsageError(
                f"{self._out} has samples of another recipe or other sources (see manifest.json there); "
                "give another --out, or empty it"
            )


def _check_unseen(sources: Path, recipe: Recipe) -> None:
    """Now, not when all that is trained on has been built."""
    files = corpus.source_files(sources)
    for kind in ("queries", "background"):
        names = files[kind].keys()
        if not recipe.unseen & names or not names - recipe.unseen:
            raise UsageError(
                f"{sources / kind} has {', '.join(sorted(names)) or 'no source'}; the recipe keeps "
                f"{', '.join(sorted(recipe.unseen & names)) or 'none of these'} to test on. Name at least one to test "
                "on, and not all, with --unseen, or build no test with --test 0"
            )


def _dropped(report: Path) -> dict[str, dict[str, int]]:
    """What a run that was killed left out of the splits that it finished: the samples do not tell."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        return {split: dict(content[split]["dropped"]) for split in ("train", "dev", "test") if split in content}
    except (OSError, ValueError, KeyError):
        return {}


def _plain(recipe: Recipe) -> dict[str, Any]:
    plain = asdict(recipe)
    plain["shares"] = {state.value: share for state, share in recipe.shares.items()}
    plain["unseen"] = sorted(recipe.unseen)
    plain["systems"] = list(recipe.systems)
    return plain


def _put(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
