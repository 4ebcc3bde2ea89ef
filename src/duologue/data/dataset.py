"""A folder of samples built from a folder of sources: train, dev, test, timing.jsonl, and a report."""

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby, product
from pathlib import Path
from typing import Any, final

from duologue.data import corpus, forms, phrases
from duologue.data.build import SampleBuilder
from duologue.data.corpus import Pools, fixed_labels
from duologue.data.device_directed import Addressee, Judge, device_directed
from duologue.data.forms import EndOfTurn
from duologue.data.near import NearTexts
from duologue.data.progress import StageProgress, silent
from duologue.data.recipes import Recipe
from duologue.data.report import Report, markdown
from duologue.data.samples import Duplicates, Sample, read_samples, write_samples
from duologue.data.timing import timing_samples
from duologue.data.unseen import UnseenSamples
from duologue.errors import UsageError, refuse

_DEVICE_DIRECTED = "background that speaks to an assistant"
_NEAR_TEST = "near to a text of the test"


@final
class DatasetBuilder:
    """Builds one folder. Splits that a killed run completed are kept, if recipe and sources are the same."""

    def __init__(
        self,
        sources: Path,
        out: Path,
        recipe: Recipe,
        *,
        end_of_turn: EndOfTurn | None = None,
        judge: Judge | None = None,
        made_by: Mapping[str, str | None] | None = None,
        at_most: Collection[str] = (),
        progress: StageProgress = silent,
    ) -> None:
        """
        Args:
            end_of_turn: detects cuts that are complete requests (`forms.unfinished_cut`); None: by rules alone.
            judge: a model that detects background lines addressed to an assistant; None: by rules alone.
            made_by: the names of both, because other models would give other samples.
            at_most: splits that may get fewer samples than the recipe says, if the sources do not give more.

        Raises:
            UsageError: `out` has samples of another recipe; `sources` has nothing to test on.
            BadData: there is nothing to read in `sources`.
        """
        if recipe.num_test:
            _check_unseen(sources, recipe)
        self._sources, self._out, self._recipe = sources, out, recipe
        self._end_of_turn, self._judge, self._progress = end_of_turn, judge, progress
        self._at_most = at_most
        self._known = Duplicates()
        self._near_test = NearTexts(
            [
                *corpus.unseen_texts(sources, recipe),
                *(line for language in recipe.languages for line in phrases.unseen(language)),
            ]
            if recipe.num_test
            else ()
        )
        self._reports: dict[str, Report] = {}
        self._content: dict[str, Any] = {"recipe": recipe.to_json()}  # of report.json: the splits written so far
        self._dropped_before = _dropped(out / "report.json")
        self._words: set[int] = set()  # hashes of the texts in earlier splits
        self._num_known = 0  # test samples whose text is among them
        out.mkdir(parents=True, exist_ok=True)
        self._check_manifest(dict(made_by or {}))
        for text, state in fixed_labels(sources, recipe):
            self._known.claim(text, state)

    def build(self) -> dict[str, Any]:
        """Write the missing splits; returns the content of report.json.

        Raises:
            BadData: a source has a bad line (named), or there is too little of something.
        """
        for split, number in {"train": self._recipe.num_samples, "dev": self._recipe.num_dev}.items():
            self._write(split, self._split_samples(split, number))
        if self._recipe.num_test:
            self._write("test", self._test_samples())
            self._write_timing()
        return self._content

    def _write(self, split: str, samples: Iterator[Sample]) -> None:
        """Write a split, or count the samples of one that is complete, and update the report."""
        path, report = self._out / f"{split}.jsonl", Report(seed=self._recipe.seed)
        self._reports[split] = report
        if path.exists():
            for sample in read_samples(path):
                self._known.admit(sample)
                self._count(split, sample)
            for reason, number in self._dropped_before.get(split, {}).items():
                report.drop(reason, number)
            self._write_report(split)
        else:
            partial = path.with_suffix(".partial")
            write_samples(partial, samples)
            self._write_report(split)
            partial.replace(path)

    def _write_timing(self) -> None:
        """Write timing.jsonl, if the sources of the test have turns of several sentences or clauses."""
        path = self._out / "timing.jsonl"
        samples: list[Sample] = []
        for language in self._recipe.languages if not path.exists() else ():
            samples += timing_samples(self._sources, self._recipe, language)
        if samples:
            write_samples(path.with_suffix(".partial"), samples)
            path.with_suffix(".partial").replace(path)

    def _write_report(self, split: str) -> None:
        """Write the report on this split and earlier ones."""
        self._content[split] = self._reports[split].to_json()
        if split == "test":
            self._content[split]["words_known"] = self._num_known
        _replace(self._out / "report.json", json.dumps(self._content, indent=2, ensure_ascii=False) + "\n")
        parts = [f"# {name}\n\n{markdown(self._content[name])}" for name in self._reports]
        _replace(self._out / "report.md", "\n".join(parts))

    def _split_samples(self, split: str, number: int) -> Iterator[Sample]:
        if split == "train":  # once, for all splits
            for files in corpus.files_by_language(self._sources, self._recipe).values():
                for reason, num in corpus.left_out(files).items():
                    self._reports[split].drop(reason, num)
        languages = self._recipe.languages
        numbers = [number * (at + 1) // len(languages) - number * at // len(languages) for at in range(len(languages))]
        drawn = [self._drawn(split, *each) for each in zip(languages, numbers, strict=True)]
        for done, sample in enumerate(_taking_turns(drawn), 1):
            self._count(split, sample)
            self._progress(split, done, number)
            yield sample

    def _drawn(self, split: str, language: str, number: int) -> Iterator[Sample]:
        """Samples of a split in one language."""
        pools = Pools(self._sources, self._recipe, split, language=language, is_left_out=self._near_test.__contains__)
        builder = SampleBuilder(
            pools, self._recipe, split, self._end_of_turn, lambda text: self._is_device_directed(split, text)
        )
        return builder.samples(number, lambda sample: self._admit(split, sample), at_most=split in self._at_most)

    def _test_samples(self) -> Iterator[Sample]:
        """Test samples that are not in another split. Short texts may recur after another context."""
        for language in self._recipe.languages:
            unseen = UnseenSamples(self._sources, self._recipe, self._end_of_turn, language=language)
            for sample in unseen.samples():
                if self._admit("test", sample):
                    self._count("test", sample)
                    done = self._reports["test"].num_samples
                    self._progress(f"test: {done} samples", done, 0)
                    yield sample

    def _count(self, split: str, sample: Sample) -> None:
        self._reports[split].add(sample)
        words = hash(forms.spoken(sample.text))
        if split == "test":
            self._num_known += words in self._words
        else:
            self._words.add(words)

    def _admit(self, split: str, sample: Sample) -> bool:
        if split != "test" and sample.text in self._near_test:
            self._reports[split].drop(_NEAR_TEST)
            return False
        reason = self._known.admit(sample)
        if reason is not None:
            self._reports[split].drop(reason.value)
        return reason is None

    def _is_device_directed(self, split: str, text: str) -> bool:
        judge = self._judge
        found = device_directed(text) is not None or (
            judge is not None and judge.addressee(text) is Addressee.ASSISTANT
        )
        if found:
            self._reports[split].drop(_DEVICE_DIRECTED)
        return found

    def _check_manifest(self, made_by: Mapping[str, str | None]) -> None:
        """A folder belongs to one recipe and one set of sources, which are described in `manifest.json`."""
        files = corpus.files_by_language(self._sources, self._recipe)
        manifest = {
            "recipe": self._recipe.to_json(),
            "made_by": made_by,
            "sources": {
                path.relative_to(self._sources).as_posix(): path.stat().st_size
                for kinds in files.values()
                for paths in kinds.values()
                for path in paths.values()
            },
        }
        path, content = self._out / "manifest.json", json.dumps(manifest, indent=2) + "\n"
        known = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        has_samples = any((self._out / f"{name}.jsonl").exists() for name in ("train", "dev", "test"))
        refuse(
            [
                (
                    known is None and has_samples,
                    f"{self._out} has samples but no manifest.json; use another --out, or empty it",
                ),
                (
                    has_samples and known not in (None, content),
                    f"{self._out} has samples of another recipe or of other sources (see manifest.json there); use "
                    "another --out, or empty it",
                ),
            ]
        )
        _replace(path, content)


def _check_unseen(sources: Path, recipe: Recipe) -> None:
    """Check at the start, not after the training samples are built, that there are sources to test on."""
    by_language = corpus.files_by_language(sources, recipe)
    for language, kind in product(by_language, ("queries", "background")):
        names = by_language[language][kind].keys()
        if len(names) == 1 and language != "en" and not recipe.unseen & names:
            continue  # some of its documents are held out
        if not recipe.unseen & names or not names - recipe.unseen:
            raise UsageError(
                f"{sources / kind} has {', '.join(sorted(names)) or 'no source'}; the recipe holds out "
                f"{', '.join(sorted(recipe.unseen & names)) or 'none of these'} for the test. Hold out at least one, "
                "but not all, with --unseen, or build no test with --test 0"
            )


def _taking_turns(drawn: list[Iterator[Sample]]) -> Iterator[Sample]:
    """The samples of several builders in turn; those that share a scene follow each other."""
    scenes = [(group for _, group in groupby(each, lambda sample: (sample.context, sample.system))) for each in drawn]
    while scenes:
        for each in tuple(scenes):
            group = next(each, None)
            if group is None:
                scenes.remove(each)
            else:
                yield from group


def _dropped(report: Path) -> dict[str, dict[str, int]]:
    """What a killed run dropped from the splits that it completed: their samples do not tell."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        return {split: dict(content[split]["dropped"]) for split in ("train", "dev", "test") if split in content}
    except (OSError, ValueError, KeyError):
        return {}


def _replace(path: Path, text: str) -> None:
    """Replace the content of a file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
