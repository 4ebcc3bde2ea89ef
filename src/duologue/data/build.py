"""Labelled samples from sources: queries whole and cut, background, asides, stop; alone, in a dialogue, over an answer.

Splits are by whole sources (`Recipe.unseen`, tested on and nothing else) and, for the rest, by document: training,
calibration ("dev") and a small test part. The same recipe, seed and folder give the same samples.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from duologue.data import corpus, forms, phrases
from duologue.data.corpus import Dialogue, Utterance
from duologue.data.forms import Ends
from duologue.data.pools import SPLITS, Pools
from duologue.data.recipes import IGNORE, INCOMPLETE, PROCESS, STOP, Recipe
from duologue.data.samples import Sample
from duologue.errors import BadData
from duologue.types import InputState, Role, Turn

OPEN_WORDS = 4
"""Lines of our own with more words than this are in one split only."""

_TRIES = 30  # draws of one state in one scene
_STOCK = 128  # queries that are judged together

_LEAVE = re.compile(
    r"\b(that'?s (all|it|everything)|that is (all|everything)|that will be all|nothing (else|more)|no thanks?"
    r"|no thank you|not right now|not at the moment|(i'm|i am) (all )?(set|good|fine)|nope)\b"
)
_ASKS = re.compile(
    r"\b(what|when|where|which|who|how|can|could|would|will|do|does|is|are|find|tell|book|show|get|need)\b"
)
_AGREEMENT_WORDS = (
    "yes yeah yep okay ok sure great good perfect right correct that's that is it it's all sounds looks fine nice "
    "cool thanks thank you very much so to me works for i like love wonderful awesome excellent absolutely"
)
_AGREEMENT = frozenset(_AGREEMENT_WORDS.split())
_BARE_ANSWER = re.compile(
    r"((yes|no|yeah) )?(i|it|that|they|he|she|we|you) (is|are|was|do|does|did|would|will|am|can|could)"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where something is heard."""

    context: tuple[Turn, ...] = ()
    speaking: bool = False
    system: str | None = None
    next_user: str | None = None  # what the user of the dialogue said next
    next_answer: str = ""  # and what the assistant answered to that
    source: str = ""  # of the dialogue


class Builder:
    """Draws samples from pools. One random generator; the order of calls decides everything."""

    def __init__(
        self,
        pools: Pools,
        recipe: Recipe,
        split: str,
        ends: Ends | None = None,
        is_addressed: Callable[[str], bool] = lambda text: False,
    ) -> None:
        """
        Args:
            ends: if given, says which cuts of a request are complete in themselves (`forms.unfinished_cut`).
            is_addressed: whether a line of background speaks to an assistant after all.
        """
        self._pools, self._recipe, self._ends, self._is_addressed = pools, recipe, ends, is_addressed
        self._rng = random.Random(f"{recipe.seed} {split} samples")
        self._known_ends: dict[str, Sequence[float]] = {}
        self._to_cut: list[Utterance] = []
        low, high = SPLITS[split]
        # A line of our own is in one split only, as a document is; but what can be said in four words is a closed set
        # ("go on", "mhm", "that's enough"), and all of it is trained on.
        self._lines = {
            name: [line for line in lines if low <= corpus.part_of(line) < high or len(line.split()) <= OPEN_WORDS]
            for name, lines in phrases.sections().items()
        }

    def samples(self, num_samples: int, admit: Callable[[Sample], bool] = lambda sample: True) -> Iterator[Sample]:
        """`num_samples` samples, those that share a scene one after the other.

        One that is not admitted is drawn again; `BadData` if that goes on and on.
        """
        recipe, rng = self._recipe, self._rng
        states, weights = list(recipe.shares), list(recipe.shares.values())
        num_left, refused = num_samples, 0
        while num_left > 0:
            scene = self.scene(goes_on=rng.random() < recipe.follow_ups)
            for _ in range(min(recipe.texts_per_context, num_left)):
                state = rng.choices(states, weights)[0]
                drawn = (self.sample(state, scene) for _ in range(_TRIES))
                found = next((sample for sample in drawn if admit(sample)), None)
                if found is None:
                    refused += 1
                    if refused > num_samples:
                        raise BadData(
                            f"the sources do not give {num_samples} different samples; ask for fewer with --samples"
                        )
                    continue
                yield found
                num_left -= 1

    def scene(self, *, in_context: bool | None = None, speaking: bool | None = None, goes_on: bool = False) -> Scene:
        """A place for samples: nothing said yet, a dialogue at rest, or one with a running answer.

        With `goes_on`, a dialogue whose user says something next, where the sources have one.
        """
        recipe, rng = self._recipe, self._rng
        system = rng.choice(recipe.systems)
        inside = rng.random() < recipe.in_context if in_context is None else in_context
        if not inside or not self._pools.dialogues:
            return Scene(system=system)
        speaks = rng.random() < recipe.speaking if speaking is None else speaking
        chosen = Scene(system=system)
        for _ in range(50):
            dialogue = rng.choice(self._pools.dialogues[rng.choice(list(self._pools.dialogues))])
            found = self._cut_dialogue(dialogue, speaks)
            if found is not None:
                context, next_user, next_answer = found
                chosen = Scene(context, speaks, system, next_user, next_answer, dialogue.source)
                if next_user is not None or not goes_on:
                    break
        return chosen

    def _cut_dialogue(self, dialogue: Dialogue, speaking: bool) -> tuple[tuple[Turn, ...], str | None, str] | None:
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
        following = [turn.text for turn in turns[at + 1 : at + 3]]
        return tuple(context), following[0] if following else None, following[1] if len(following) > 1 else ""

    def sample(self, state: InputState, scene: Scene) -> Sample:
        """One sample of `state` in `scene`."""
        make = {PROCESS: self._process, INCOMPLETE: self._incomplete, IGNORE: self._ignore, STOP: self._stop}[state]
        for _ in range(200):
            made = make(scene)
            text = self._form(made.text, question=made.question, whole=made.whole)
            if text:
                return Sample(
                    text, state, made.source, made.kind, made.accept, scene.context, scene.speaking, scene.system,
                    made.response,
                )  # fmt: skip
        raise BadData(f"the sources give no sample of {state}")  # pragma: no cover - lines of our own always do

    def _form(self, text: str, *, question: bool, whole: bool) -> str:
        if self._rng.random() < 0.5:
            return forms.spoken(text)
        return forms.typed(text, self._rng, question=question, whole=whole)

    def _process(self, scene: Scene) -> "_Made":
        made = self._request(scene)
        accept: tuple[InputState, ...] = ()
        if (made.kind == "follow_up" and takes_leave(made.text)) or (made.kind == "complaint" and scene.speaking):
            accept = (STOP,)
        elif made.kind == "small_talk" and scene.context:
            accept = (IGNORE,)  # a "thanks" in passing needs no answer
        text = self._said(made.text, scene) if made.kind in _ADDRESSED else made.text
        return replace(made, text=text, accept=accept, question=forms.is_question(made.text))

    def _said(self, text: str, scene: Scene) -> str:
        """`text` as people say it, who begin with something else and hesitate: all that is said to the assistant."""
        if not self._recipe.own_lines:
            return text
        if self._rng.random() < 0.06 and " " in text:
            text = phrases.hesitant(text, self._rng)
        if self._rng.random() < (0.25 if scene.speaking else 0.15):
            text = f"{self._rng.choice(phrases.lines('before_request'))} {text}"
        return text

    def _request(self, scene: Scene, draw_query: Callable[[], Utterance] | None = None) -> "_Made":
        """Something complete that is said to the assistant."""
        rng, pools = self._rng, self._pools
        follow = scene.next_user
        if follow is not None and rng.random() < (0.7 if not scene.speaking else 0.35):
            parts = forms.words(follow)
            # agreement over a running answer is a backchannel, not a follow-up
            agrees = len(parts) < 4 or _AGREEMENT.issuperset(forms.spoken(follow).split())
            if len(parts) <= self._recipe.max_words and not (scene.speaking and agrees):
                return _Made(follow, scene.source, "follow_up", response=scene.next_answer)
        if self._recipe.own_lines and rng.random() < (0.5 if scene.context else 0.25):
            return self._own_request(scene)
        if scene.speaking and pools.complaints and rng.random() < 0.04:
            return _Made(rng.choice(pools.complaints).text, "stop_commands", "complaint")
        query = (draw_query or self._query)()
        if self._recipe.own_lines and rng.random() < 0.24 and len(forms.words(query.text)) >= 5:
            head, tail = self._around_a_repair(query.text)
            text = phrases.repaired(head, tail, forms.words(self._any_query().text), rng)
            return _Made(text, query.source, "repaired", response=query.answer)
        return _Made(query.text, query.source, "query", response=query.answer)

    def _around_a_repair(self, text: str) -> tuple[list[str], list[str]]:
        """The words of a request before somebody says something else, and those with which he takes it up again."""
        parts = forms.words(text)
        at = self._rng.randint(0, max(1, min(len(parts) - 1, 9)))
        return parts[:at], parts[max(0, at - self._rng.randint(0, 3)) :]

    def _own_request(self, scene: Scene) -> "_Made":
        rng, pools = self._rng, self._pools
        draw = rng.random()
        if draw < 0.5:
            return _Made(phrases.fill(rng.choice(self._lines["requests"]), rng), "own", "request")
        if draw < 0.62 and not scene.speaking:
            return _Made(phrases.fill(rng.choice(self._lines["small_talk"]), rng), "own", "small_talk")
        if draw < 0.78:
            line = rng.choice([*self._lines["go_on"], *self._lines["complaints"]])
            return _Made(line, "own", "go_on" if line in self._lines["go_on"] else "complaint")
        if pools.not_stops and rng.random() < 0.4:
            return _Made(rng.choice(pools.not_stops).text, "stop_commands", "stop_not")
        return _Made(phrases.fill(rng.choice(self._lines["stop_not"]), rng), "own", "stop_not")

    def _query(self) -> Utterance:
        for _ in range(100):
            query = self._any_query()
            if 2 <= len(forms.words(query.text)) <= self._recipe.max_words and not forms.is_cut_off(query.text):
                return query
        raise BadData(f"the queries have no text of 2 to {self._recipe.max_words} words")

    def _query_to_cut(self) -> Utterance:
        """One of a stock of queries that were judged together, which is many times as fast as one by one."""
        if not self._to_cut:
            self._to_cut = [self._query() for _ in range(_STOCK)]
            self._judge([query.text for query in self._to_cut])
        return self._to_cut.pop()

    def _ends_of(self, text: str) -> Sequence[float]:
        if text not in self._known_ends:
            self._judge([text])
        return self._known_ends[text]

    def _judge(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known_ends]
        found = self._ends([forms.spoken(text) for text in new]) if self._ends is not None else [()] * len(new)
        self._known_ends.update(zip(new, found, strict=True))

    def _any_query(self) -> Utterance:
        return self._rng.choice(self._pools.queries[_source(self._pools.queries, self._rng)])

    def _incomplete(self, scene: Scene) -> "_Made":
        rng, own = self._rng, self._recipe.own_lines
        draw = rng.random() if own else 1.0
        if draw < 0.12:
            return self._unfinished()
        if draw < 0.2:
            return self._broken_repair(scene)
        for _ in range(50):
            made = self._request(scene, self._query_to_cut)
            if made.kind not in _CUT:
                continue
            if self._recipe.cuts == "random":
                cut, kind = forms.random_cut(made.text, rng), "random_cut"
            else:
                cut, kind = forms.unfinished_cut(made.text, rng, self._ends_of(made.text)), "cut"
                if cut is not None and forms.spoken(cut).split(" ")[-1] not in forms.FUNCTION_WORDS:
                    kind = "content_cut"
            if cut is None or (own and self._may_be_whole(cut)):
                continue
            cut = self._said(cut, scene)
            if own and rng.random() < 0.06:
                cut = f"{cut} {rng.choice(phrases.FILLERS)}"
            return _Made(cut, made.source, kind, whole=False)
        return self._unfinished()

    def _may_be_whole(self, cut: str) -> bool:
        """Whether a cut is what somebody else said and no more, or an answer to a question."""
        plain = forms.spoken(cut)
        return (" " in plain and self._pools.is_whole(plain)) or bool(_BARE_ANSWER.fullmatch(plain))

    def _broken_repair(self, scene: Scene) -> "_Made":
        """A request that somebody begins to correct: up to there, or to a word after which something must come."""
        rng = self._rng
        query = self._query()
        head, tail = self._around_a_repair(query.text)
        opened = [n for n in range(1, min(4, len(tail))) if forms.is_cut_off(tail[n - 1])]
        more = tail[: rng.choice(opened)] if opened and rng.random() < 0.5 else []
        text = phrases.repaired(head, more, forms.words(self._any_query().text), rng)
        return _Made(self._said(text, scene), query.source, "repaired_cut", whole=False)

    def _unfinished(self) -> "_Made":
        return _Made(self._rng.choice(self._lines["unfinished"]), "own", "unfinished", whole=False)

    def _ignore(self, scene: Scene) -> "_Made":
        rng = self._rng
        if not self._recipe.own_lines:
            return self._background(scene)
        draw = rng.random()
        if scene.speaking and draw < 0.18:
            text = rng.choice(self._lines["backchannels"])
            return _Made(text, "own", "backchannel", (INCOMPLETE,) if text in phrases.OPEN_NOISES else ())
        asked = bool(scene.context) and scene.context[-1].text.rstrip().endswith("?")  # "mhm" may be an answer
        if not scene.speaking and not asked and draw < 0.06:
            return _Made(rng.choice(self._lines["noises"]), "own", "noise", (INCOMPLETE,))
        if draw < (0.4 if scene.speaking else 0.24):
            text = phrases.fill(rng.choice(self._lines["asides"]), rng)
            return _Made(text, "own", "aside", question=forms.is_question(text))
        return self._background(scene)

    def _background(self, scene: Scene) -> "_Made":
        """Talk that is not meant for the assistant, as long as queries are; questions more often than they occur."""
        rng, pools = self._rng, self._pools
        want_question = rng.random() < (0.5 if scene.speaking else 0.3)
        target = min(len(forms.words(self._any_query().text)), self._recipe.max_words)
        want_short = scene.speaking and rng.random() < 0.2  # listeners say little
        item, others = None, []
        for _ in range(60):
            drawn = rng.choice(pools.background[_source(pools.background, rng)])
            size = len(forms.words(drawn.text))
            if size < (1 if scene.speaking else 3):
                continue
            if (want_short and size > 4) or (want_question and not want_short and not drawn.text.endswith("?")):
                others.append(drawn)
            elif not self._is_addressed(drawn.text):
                item = drawn
                break
        else:  # such talk is rare here; another will do
            item = next((other for other in others if not self._is_addressed(other.text)), None)
        if item is None:
            raise BadData("background/ has no line, or next to none, that is not said to an assistant")
        parts = forms.words(item.text)
        if len(parts) > target + 3 and not (item.text.endswith("?") and len(parts) <= 20):
            cut = " ".join(parts[: max(target, 5)])
            return _Made(cut, item.source, "background_cut", (INCOMPLETE,), whole=False)
        return _Made(item.text, item.source, "background", question=forms.is_question(item.text))

    def _stop(self, scene: Scene) -> "_Made":
        rng = self._rng
        if self._pools.stops and rng.random() < 0.25:
            text, source, kind = rng.choice(self._pools.stops).text, "stop_commands", "stop_command"
        else:
            text, source, kind = phrases.stop_phrase(rng.choice(self._lines["stop"]), rng), "own", "stop"
        if self._recipe.own_lines and rng.random() < 0.06 and " " in text:
            return _Made(phrases.hesitant(text, rng), source, kind, question=forms.is_question(text))
        return _Made(text, source, kind, question=forms.is_question(text))


@dataclass(frozen=True, slots=True)
class _Made:
    """What is said, before it has a form."""

    text: str
    source: str
    kind: str
    accept: tuple[InputState, ...] = ()
    question: bool = False
    whole: bool = True
    response: str = ""


_ADDRESSED = frozenset({"follow_up", "query", "request", "repaired"})
_CUT = frozenset({"follow_up", "query", "request"})


def _source(pool: Mapping[str, Sequence[Utterance]], rng: random.Random) -> str:
    """A random source; large ones more often, but not as much more as they are larger."""
    names = list(pool)
    return rng.choices(names, [math.sqrt(len(pool[name])) for name in names])[0]


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
    plain = forms.spoken(text)
    return bool(_LEAVE.search(plain)) and not _ASKS.search(plain) and "?" not in text
