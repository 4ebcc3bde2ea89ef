"""Labelled samples from sources: queries whole and cut, background, asides, stop; alone, in a dialogue, over an answer.

Splits are by whole sources (`Recipe.unseen`, tested on and nothing else) and, for the rest, by document: training,
calibration ("dev") and a small test part. The same recipe, seed and folder give the same samples.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from duologue.data import corpus, forms, phrases
from duologue.data.corpus import Dialogue, Utterance
from duologue.data.samples import Sample
from duologue.errors import BadData, UsageError
from duologue.types import InputState, Role, Turn

PROCESS, INCOMPLETE, IGNORE, STOP = (
    InputState.PROCESS,
    InputState.INCOMPLETE,
    InputState.IGNORE,
    InputState.STOP,
)

SPLITS = {"train": (0.0, 0.82), "dev": (0.82, 0.9), "test": (0.9, 1.0)}
"""Which documents of a source that is trained on belong to which split (`corpus.part_of`)."""

OPEN_WORDS = 4
"""Lines of our own with more words than this are in one split only."""

STOP_INTENTS = frozenset({"cancel", "general_commandstop", "audio_volume_mute"})
_LEAVE = re.compile(r"\b(that'?s (all|it)|that is all|that will be all|nothing else|no thanks|no thank you)\b")
_DEVICES = (
    "alarm speaker speakers volume sound sounds tv television music song video radio phone audio lights light process "
    "payment payments reservation meeting appointment order booking table list event account card notifications hours "
    "hour ringer noise device computer system program minutes pm am task action command commands last undo mistake"
)
_DEVICE_WORDS = frozenset(_DEVICES.split())
"""A stop command that names one of these is about a device, a booking or an earlier order: process, not stop."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is mixed, and how much of it."""

    num_samples: int = 8000
    in_context: float = 0.6  # share of samples inside a dialogue
    speaking: float = 0.7  # share of those where the assistant is in the middle of an answer
    texts_per_context: int = 4  # inputs that share one dialogue, so that its KV is computed once
    shares: dict[InputState, float] = field(
        default_factory=lambda: {PROCESS: 0.39, INCOMPLETE: 0.16, IGNORE: 0.34, STOP: 0.11}
    )
    max_words: int = 35  # longer utterances are not whole samples
    max_context_words: int = 110  # newest turns that fit
    systems: tuple[str | None, ...] = (  # None is the template's own; others keep the adapter from leaning on it
        None, None, None, None, "", "You are a helpful assistant.", "Answer briefly.",
    )  # fmt: skip
    unseen: frozenset[str] = frozenset(
        {"slurp", "webquestions", "self-instruct-seeds", "rev16-podcasts", "libritts", "parliament-committees",
         "icsi_meeting_acts", "disfl_qa", "sgd_switches"}
    )  # fmt: skip
    per_source: int = 3000  # utterances kept in memory per source
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.texts_per_context < 1:
            raise UsageError("a recipe needs at least one sample and one text per context")
        for name in ("in_context", "speaking"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Scene:
    """Where something is heard."""

    context: tuple[Turn, ...] = ()
    speaking: bool = False
    system: str | None = None
    next_user: str | None = None  # what the user of the dialogue said next
    source: str = ""  # of the dialogue


class Pools:
    """The utterances and dialogues of one split, sampled from the files of a folder."""

    def __init__(self, folder: Path, recipe: Recipe, split: str, *, unseen: bool = False) -> None:
        """Read the sources of `split`; with `unseen`, whole sources that are not trained on instead.

        Dialogues for contexts always come from the split's own documents.
        """
        if split not in SPLITS:
            raise UsageError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        low, high = SPLITS[split]
        rng = random.Random(f"{recipe.seed} {split} {unseen}")
        files = corpus.source_files(folder)
        stop_files = files["hard"].get("stop_commands")
        stops = corpus.utterances(stop_files, "stop_commands", recipe.per_source, rng) if stop_files else []
        hard_texts = {forms.spoken(item.text) for item in stops}

        def read(kind: str, keep: Callable[[Utterance], bool]) -> dict[str, list[Utterance]]:
            found = {}
            for source, path in files[kind].items():
                if (source in recipe.unseen) != unseen:
                    continue
                items = [
                    item
                    for item in corpus.utterances(path, source, recipe.per_source, rng)
                    if (unseen or low <= item.part < high) and keep(item)
                ]
                if items:
                    found[source] = items
            return found

        # hard/ wins over queries/, where the same stop commands stand without being marked
        self.queries = read("queries", lambda u: u.kind == "assistant_query" and forms.spoken(u.text) not in hard_texts)
        self.background = read("background", lambda u: len(forms.words(u.text)) >= 1)
        self.hard = read("hard", lambda u: u.source != "stop_commands")
        self.stops = [item for item in stops if low <= item.part < high and _is_stop(item)]
        self.not_stops = [item for item in stops if low <= item.part < high and _is_command(item)]
        self.dialogues: dict[str, list[Dialogue]] = {}
        for source, path in files["dialogues"].items():
            found = [d for d in corpus.dialogues(path, source, recipe.per_source, rng) if low <= d.part < high]
            if found:
                self.dialogues[source] = found
        for name, pool in (("queries", self.queries), ("background", self.background)):
            if not pool:
                raise BadData(f"{folder / name} leaves nothing for the split {split!r} (unseen={unseen})")


class Builder:
    """Draws samples from pools. One random generator; the order of calls decides everything."""

    def __init__(self, pools: Pools, recipe: Recipe, split: str) -> None:
        self._pools, self._recipe = pools, recipe
        self._rng = random.Random(f"{recipe.seed} {split} samples")
        low, high = SPLITS[split]
        # A line of our own is in one split only, as a document is; but what can be said in four words is a closed set
        # ("go on", "mhm", "that's enough"), and all of it is trained on.
        self._lines = {
            name: [line for line in lines if low <= corpus.part_of(line) < high or len(line.split()) <= OPEN_WORDS]
            for name, lines in phrases.sections().items()
        }

    def samples(self) -> Iterator[Sample]:
        """`num_samples` samples, those that share a scene one after the other."""
        recipe, rng = self._recipe, self._rng
        states, weights = list(recipe.shares), list(recipe.shares.values())
        num_left = recipe.num_samples
        while num_left > 0:
            scene = self.scene()
            for _ in range(min(recipe.texts_per_context, num_left)):
                yield self.sample(rng.choices(states, weights)[0], scene)
                num_left -= 1

    def scene(self, *, in_context: bool | None = None, speaking: bool | None = None) -> Scene:
        """A place for samples: nothing said yet, a dialogue at rest, or one with a running answer."""
        recipe, rng = self._recipe, self._rng
        system = rng.choice(recipe.systems)
        inside = rng.random() < recipe.in_context if in_context is None else in_context
        if not inside or not self._pools.dialogues:
            return Scene(system=system)
        speaks = rng.random() < recipe.speaking if speaking is None else speaking
        for _ in range(50):
            dialogue = rng.choice(self._pools.dialogues[rng.choice(list(self._pools.dialogues))])
            found = self._cut_dialogue(dialogue, speaks)
            if found is not None:
                context, next_user = found
                return Scene(context, speaks, system, next_user, dialogue.source)
        return Scene(system=system)

    def _cut_dialogue(self, dialogue: Dialogue, speaking: bool) -> tuple[tuple[Turn, ...], str | None] | None:
        """The turns up to a random answer, newest ones that fit; a running answer cut at a random whole word."""
        rng, turns = self._rng, dialogue.turns
        at = rng.randrange(1, len(turns), 2)  # an assistant's turn
        answer = forms.words(turns[at].text)
        if speaking:
            if len(answer) < 6:
                return None
            heard = rng.randint(1, min(len(answer) - 1, 70))
            # cut where a word ends, keeping the spaces and line breaks of the answer
            text = _first_words(turns[at].text, heard)
        else:
            if len(answer) > 90:
                return None
            text = turns[at].text
        context = [Turn(Role.ASSISTANT, text)]
        num_words = len(forms.words(text))
        first = at - 1
        for i in range(at - 1, -1, -2):  # user turns, newest first
            size = len(forms.words(turns[i].text)) + (len(forms.words(turns[i + 1].text)) if i + 1 < at else 0)
            if num_words + size > self._recipe.max_context_words and i != at - 1:
                break
            if i == at - 1 and len(forms.words(turns[i].text)) > self._recipe.max_context_words:
                return None
            first, num_words = i, num_words + size
        context = [*turns[first:at], *context]
        next_user = turns[at + 1].text if at + 1 < len(turns) else None
        return tuple(context), next_user

    def sample(self, state: InputState, scene: Scene) -> Sample:
        """One sample of `state` in `scene`."""
        make = {PROCESS: self._process, INCOMPLETE: self._incomplete, IGNORE: self._ignore, STOP: self._stop}[state]
        for _ in range(200):
            text, source, kind, accept, question, whole = make(scene)
            text = self._form(text, question=question, whole=whole)
            if text:
                return Sample(text, state, source, kind, accept, scene.context, scene.speaking, scene.system)
        raise BadData(f"the sources give no sample of {state}")  # pragma: no cover - lines of our own always do

    def _form(self, text: str, *, question: bool, whole: bool) -> str:
        if self._rng.random() < 0.5:
            return forms.spoken(text)
        return forms.typed(text, self._rng, question=question, whole=whole)

    def _process(self, scene: Scene) -> "_Made":
        text, source, kind = self._request(scene)
        accept = (STOP,) if kind == "follow_up" and takes_leave(text) else ()
        if scene.speaking and self._rng.random() < 0.25 and kind not in {"go_on", "stop_not"}:
            text = f"{self._rng.choice(phrases.lines('before_request'))} {text}"
        return text, source, kind, accept, forms.is_question(text), True

    def _request(self, scene: Scene) -> tuple[str, str, str]:
        """Something complete that is said to the assistant: text, source, kind."""
        rng, pools = self._rng, self._pools
        follow = scene.next_user
        if follow is not None and rng.random() < (0.5 if not scene.speaking else 0.2):
            parts = forms.words(follow)
            # short agreement over a running answer is a backchannel, not a follow-up
            if len(parts) <= self._recipe.max_words and (not scene.speaking or len(parts) >= 4):
                return follow, scene.source, "follow_up"
        draw = rng.random()
        own = 0.5 if scene.context else 0.22
        if draw < own * 0.55:
            return phrases.fill(rng.choice(self._lines["requests"]), rng), "own", "request"
        if draw < own * 0.8:
            return rng.choice(self._lines["go_on"]), "own", "go_on"
        if draw < own:
            if pools.not_stops and rng.random() < 0.4:
                return rng.choice(pools.not_stops).text, "stop_commands", "stop_not"
            return phrases.fill(rng.choice(self._lines["stop_not"]), rng), "own", "stop_not"
        query = self._query()
        if rng.random() < 0.1 and len(forms.words(query.text)) >= 5:
            parts, other = forms.words(query.text), forms.words(self._query().text)
            at = rng.randint(1, max(1, min(len(parts) - 1, 6)))
            return (
                phrases.repaired(parts[:at], parts[max(0, at - rng.randint(0, 2)) :], other, rng),
                query.source,
                "repaired",
            )
        return query.text, query.source, "query"

    def _query(self) -> Utterance:
        for _ in range(100):
            query = self._rng.choice(self._pools.queries[self._rng.choice(list(self._pools.queries))])
            if 2 <= len(forms.words(query.text)) <= self._recipe.max_words:
                return query
        raise BadData(f"the queries have no text of 2 to {self._recipe.max_words} words")

    def _incomplete(self, scene: Scene) -> "_Made":
        rng = self._rng
        if rng.random() < 0.12:
            return rng.choice(self._lines["unfinished"]), "own", "unfinished", (), False, False
        for _ in range(50):
            text, source, kind = self._request(scene)
            if kind in {"go_on", "stop_not"}:
                continue
            cut = forms.unfinished_cut(text, rng)
            if cut is not None:
                if scene.speaking and rng.random() < 0.2:
                    cut = f"{rng.choice(phrases.lines('before_request'))} {cut}"
                last = forms.spoken(cut).split(" ")[-1]
                return cut, source, "cut" if last in forms.FUNCTION_WORDS else "content_cut", (), False, False
        return rng.choice(self._lines["unfinished"]), "own", "unfinished", (), False, False

    def _ignore(self, scene: Scene) -> "_Made":
        rng = self._rng
        draw = rng.random()
        if scene.speaking and draw < 0.16:
            text = rng.choice(self._lines["backchannels"])
            accept = (INCOMPLETE,) if text in phrases.OPEN_NOISES else ()
            return text, "own", "backchannel", accept, False, True
        if draw < (0.4 if scene.speaking else 0.22):
            text = phrases.fill(rng.choice(self._lines["asides"]), rng)
            return text, "own", "aside", (), forms.is_question(text), True
        return self._background(scene)

    def _background(self, scene: Scene) -> "_Made":
        """Talk that is not meant for the assistant, as long as queries are; questions more often than they occur."""
        rng, pools = self._rng, self._pools
        want_question = rng.random() < 0.3
        target = len(forms.words(self._query().text))
        item = None
        for _ in range(60):
            item = rng.choice(pools.background[rng.choice(list(pools.background))])
            size = len(forms.words(item.text))
            if size < (1 if scene.speaking else 4) or (want_question and not item.text.endswith("?")):
                continue
            break
        assert item is not None
        parts = forms.words(item.text)
        if len(parts) > target + 3 and not (item.text.endswith("?") and len(parts) <= 20):
            cut = " ".join(parts[: max(target, 5)])
            return cut, item.source, "background_cut", (INCOMPLETE,), False, False
        return item.text, item.source, "background", (), forms.is_question(item.text), True

    def _stop(self, scene: Scene) -> "_Made":
        rng = self._rng
        if self._pools.stops and rng.random() < 0.25:
            item = rng.choice(self._pools.stops)
            return item.text, "stop_commands", "stop_command", (), False, True
        text = phrases.stop_phrase(rng.choice(self._lines["stop"]), rng)
        return text, "own", "stop", (), False, True


_Made = tuple[str, str, str, tuple[InputState, ...], bool, bool]  # text, source, kind, accept, question, whole


def build(folder: Path, recipe: Recipe, split: str) -> Iterator[Sample]:
    """Samples of `split` ("train", "dev" or "test") from the sources that are trained on."""
    yield from Builder(Pools(folder, recipe, split), recipe, split).samples()


def _first_words(text: str, num_words: int) -> str:
    """The first `num_words` words of `text` with the spaces between them as they are."""
    end = 0
    for _ in range(num_words):
        while end < len(text) and text[end].isspace():
            end += 1
        while end < len(text) and not text[end].isspace():
            end += 1
    return text[:end]


def takes_leave(text: str) -> bool:
    """Whether a follow-up says that nothing more is wanted: an answer is polite, and silence is right too."""
    return bool(
        re.search(
            r"\b(that'?s (all|it)|that is all|that will be all|nothing else|no thanks|no thank you)\b",
            forms.spoken(text),
        )
    )


def _is_stop(item: Utterance) -> bool:
    return item.kind == "stop_command" and item.intent in STOP_INTENTS and not _names_device(item.text)


def _is_command(item: Utterance) -> bool:
    return item.kind == "stop_command" and _names_device(item.text) and item.intent != "cancel"


def _names_device(text: str) -> bool:
    return bool(_DEVICE_WORDS & set(forms.spoken(text).split()))
