"""Labelled samples from sources: queries whole and cut, background, asides, stop; alone, in a dialogue, over an answer.

Whole sources are held out for the test (`Recipe.unseen`) and for calibration ("dev", `Recipe.calibration`). The rest is
split by document. The same recipe, seed and folder give the same samples. A builder draws in the language of its pools.
"""

import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, final

from duologue.data import corpus, forms, mandarin, phrases
from duologue.data.corpus import SPLITS, CorpusDialogue, CorpusUtterance, Pools
from duologue.data.forms import EndOfTurn
from duologue.data.recipes import IGNORE, INCOMPLETE, PROCESS, STOP, Recipe
from duologue.data.samples import Sample
from duologue.errors import BadData
from duologue.text.words import first_words
from duologue.types import InputState, Role, Turn

T = TypeVar("T")

OPEN_WORDS = 4
"""Lines of our own that are longer than this (in words; 1.5 times as many characters in scripts without spaces) belong
to one split only. Shorter ones belong to all."""

_MISRECOGNISED = 0.1  # share of texts in spoken form that get a recogniser's errors, the same for all states
_TRIES = 30  # draws of one state in one scene
_RECENT, _EXHAUSTED = 200, 10  # sources are exhausted if the last 200 samples took ten draws each
_NAMED = 0.06  # share of scenes in which the assistant has a name
_SEVERAL = 0.36  # share of requests that are drawn from turns of several sentences or clauses, if there are any
_TURNS_TRIED = 10  # draws of such a turn
_STOCK = 128  # queries that are scored together

_LEAVE = re.compile(
    r"\b(that'?s (all|it|everything)|that is (all|everything)|that will be all|nothing (else|more)|no thanks?"
    r"|no thank you|not right now|not at the moment|(i'm|i am) (all )?(set|good|fine)|nope)\b"
)
_ASKS = re.compile(
    r"\b(what|when|where|which|who|how|can|could|would|will|do|does|is|are|find|tell|book|show|get|need)\b"
)
_AGREEMENT = forms.word_set(
    "yes yeah yep okay ok sure great good perfect right correct that's that is it it's all sounds looks fine nice "
    "cool thanks thank you very much so to me works for i like love wonderful awesome excellent absolutely"
)
_BARE_ANSWER = re.compile(
    r"((yes|no|yeah) )?(i|it|that|they|he|she|we|you) (is|are|was|do|does|did|would|will|am|can|could)"
)


@dataclass(frozen=True, slots=True)
class Scene:
    """The situation in which something is heard."""

    context: tuple[Turn, ...] = ()
    speaking: bool = False
    system: str | None = None
    next_user: str | None = None  # the next turn of the dialogue's user
    next_answer: str = ""  # and the assistant's answer to it
    source: str = ""  # of the dialogue
    question: str = ""  # the kind of our own question that the assistant has asked (`ask_…` in english.txt)
    called: str = ""  # the assistant's name, if it was given one

    @property
    def is_asked(self) -> bool:
        """Whether the assistant has just asked something, and waits."""
        return not self.speaking and bool(self.context) and forms.asks(self.context[-1].text)

    @property
    def last(self) -> str:
        """What the assistant said last, as far as it was heard."""
        return self.context[-1].text if self.context else ""


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is said, before it gets its form."""

    text: str
    source: str
    kind: str
    accept: tuple[InputState, ...] = ()
    question: bool = False
    whole: bool = True
    response: str = ""


_SYSTEMS: Mapping[tuple[str, str | None], str | None] = {
    ("zh", "You are a helpful assistant."): "你是一个乐于助人的助手。",
    ("zh", "Answer briefly."): "请简短回答。",
}
"""System prompts of recipes in other languages."""

_ADDRESSED = frozenset({"follow_up", "query", "request", "repaired", "statement", "joint"})
_UNTIMED = frozenset({"moment", "small_talk", "unfinished"})
"""Kinds after which it is not known whether the turn goes on."""
_CUT = frozenset({"follow_up", "query", "request", "statement", "reply"})
_FRAGMENTS = frozenset({"phone", "code", "mail", "birth", "when", "where", "count", "size", "money", "long"})
"""Kinds of replies that say nothing whole where nothing was asked."""
_ASKED_SHARES = {PROCESS: 1.5, INCOMPLETE: 1.4, IGNORE: 0.35, STOP: 0.6}
"""Behind a question nearly everything is a reply: by how much the shares of the states change."""


@final
class SampleBuilder:
    """Draws samples from pools. One random generator; the order of calls determines everything."""

    def __init__(
        self,
        pools: Pools,
        recipe: Recipe,
        split: str,
        end_of_turn: EndOfTurn | None = None,
        is_device_directed: Callable[[str], bool] = lambda text: False,
    ) -> None:
        """
        Args:
            end_of_turn: detects cuts that are complete requests (`forms.unfinished_cut`); None: by rules alone.
            is_device_directed: whether a line of background is addressed to an assistant after all.
        """
        self._pools, self._recipe, self._language = pools, recipe, pools.language
        self._end_of_turn, self._is_device_directed = end_of_turn, is_device_directed
        self._rng = random.Random(f"{recipe.seed} {split} samples")
        self._known_ends: dict[str, Sequence[float]] = {}
        self._to_cut: list[CorpusUtterance] = []
        low, high = SPLITS[split]
        # A line of our own is in one split only, as a document is. But what can be said in four words is a closed set
        # ("go on", "mhm", "that's enough"), and training uses all of it.
        self._lines = {
            name: [line for line in lines if low <= corpus.part_of(line) < high or is_open(line)]
            for name, lines in phrases.sections(self._language).items()
        }
        self._questions = [
            name.removeprefix("ask_")
            for name in self._lines
            if name.startswith("ask_")
            and all(self._lines.get(name.replace("ask_", part)) for part in ("ask_", "reply_", "half_"))
        ]

    def samples(
        self, num_samples: int, admit: Callable[[Sample], bool] = lambda sample: True, *, at_most: bool = False
    ) -> Iterator[Sample]:
        """`num_samples` samples; those that share a scene follow each other.

        A sample that is not admitted is drawn again. Too many refusals raise `BadData`. With `at_most`, the samples end
        when the sources are exhausted: when only one draw in `_EXHAUSTED` is still admitted.
        """
        recipe, rng = self._recipe, self._rng
        states, weights = list(recipe.shares), list(recipe.shares.values())
        asked = [share * _ASKED_SHARES[state] for state, share in recipe.shares.items()]
        num_left, refused = num_samples, 0
        num_draws: deque[int] = deque(maxlen=_RECENT)
        while num_left > 0:
            scene = self.scene(goes_on=rng.random() < recipe.follow_ups)
            if recipe.own_lines and rng.random() < _NAMED:
                scene = self._with_name(scene)
            for _ in range(min(recipe.texts_per_context, num_left)):
                state = rng.choices(states, asked if scene.is_asked else weights)[0]
                drawn = ((number, self.sample(state, scene)) for number in range(1, _TRIES + 1))
                number, found = next((draw for draw in drawn if admit(draw[1])), (_TRIES, None))
                num_draws.append(number)
                if at_most and sum(num_draws) > _EXHAUSTED * _RECENT:
                    return
                if found is None:
                    refused += 1
                    if refused > num_samples:
                        raise BadData(
                            f"the sources do not give {num_samples} different samples; ask for fewer with --samples"
                        )
                    continue
                yield found
                num_left -= 1

    def scene(
        self,
        *,
        in_context: bool | None = None,
        speaking: bool | None = None,
        asked: bool | None = None,
        goes_on: bool = False,
    ) -> Scene:
        """A scene for samples: nothing said yet, a dialogue at rest, or one with a running answer.

        With `asked`, the dialogue at rest ends with a question of the assistant, or does not; None: either. With
        `goes_on`, a dialogue whose next user turn is known, if the sources have one.
        """
        recipe, rng = self._recipe, self._rng
        system = rng.choice(recipe.systems)
        system = _SYSTEMS.get((self._language, system), system)
        inside = rng.random() < recipe.in_context if in_context is None else in_context
        if not inside or not self._pools.dialogues:
            return Scene(system=system)
        if rng.random() < recipe.speaking if speaking is None else speaking:
            found = self._running_answer() if recipe.own_lines and rng.random() < 0.2 else None
            return replace(found or self._dialogue(speaking=True, goes_on=goes_on), system=system)
        wanted = rng.random() < recipe.asked if asked is None else asked
        if wanted and recipe.own_lines and self._questions and rng.random() < 0.65:
            found = self._reply() if self._pools.replies and rng.random() < 0.5 else self._own_question()
        else:
            found = self._dialogue(speaking=False, goes_on=goes_on, asked=wanted)
        return replace(found, system=system)

    def _with_name(self, scene: Scene) -> Scene:
        """`scene` with an assistant that has a name, by its system prompt or because it has introduced itself."""
        rng = self._rng
        name = rng.choice(phrases.lines("slot_called", self._language))
        if scene.context and (scene.context[0].role is Role.ASSISTANT or rng.random() < 0.6):
            told = forms.sentence(
                rng.choice(phrases.lines("called_system", self._language)).format(called=name.capitalize())
            )
            return replace(scene, called=name, system=told)
        greets = Turn(Role.USER, rng.choice(phrases.lines("called_greeting", self._language)))
        line = rng.choice(phrases.lines("called_introduction", self._language)).format(called=name.capitalize())
        return replace(scene, called=name, context=(greets, Turn(Role.ASSISTANT, forms.sentence(line)), *scene.context))

    def _dialogue(self, *, speaking: bool, goes_on: bool, asked: bool | None = None) -> Scene:
        """A dialogue of the sources, cut at an answer. Where none asks anything, the answer may be any."""
        chosen = other = Scene()
        for _ in range(50):
            dialogue = _draw(self._pools.dialogues, self._rng, self._recipe)
            found = self._cut_dialogue(dialogue, speaking)
            if found is None:
                continue
            if asked is not None and found.is_asked is not asked:
                if other.next_user is None or not goes_on:
                    other = found
                continue
            chosen = found
            if chosen.next_user is not None or not goes_on:
                break
        return other if asked and not chosen.context else chosen

    def _running_answer(self) -> Scene | None:
        """A running answer that the user follows up, of sources that know a turn only, or an earlier question."""
        rng, pools = self._rng, self._pools
        if pools.switches and rng.random() < 0.5:
            item = _draw(pools.switches, rng, self._recipe)
            heard = _first_words(item.before, rng.randint(3, max(3, len(forms.words(item.before)) - 1)))
            return Scene((Turn(Role.ASSISTANT, heard),), True, None, item.text, "", item.source)
        if pools.later_queries:
            item = _draw(pools.later_queries, rng, self._recipe)
            heard = rng.choice(self._lines["running_answer"])
            context = (Turn(Role.USER, item.earlier), Turn(Role.ASSISTANT, heard))
            return Scene(context, True, None, item.text, "", item.source)
        return None

    def _reply(self) -> Scene:
        """A question of the assistant that a source has with its reply."""
        item = _draw(self._pools.replies, self._rng, self._recipe)
        return Scene(self._asked(item.before), False, None, item.text, "", item.source)

    def _own_question(self) -> Scene:
        """A question of our own, whose replies are of one kind."""
        rng = self._rng
        kinds = self._questions  # a kind with many replies, such as yes and no, is asked for more often
        kind = rng.choices(kinds, [len(self._lines[f"reply_{kind}"]) for kind in kinds])[0]
        question = forms.sentence(self._fill(f"ask_{kind}"))
        if rng.random() < 0.6:
            opening = forms.sentence(rng.choice(self._lines["ask_opening"]))
            question = f"{opening}。{question}" if forms.is_unspaced(opening) else f"{opening}. {question}"
        return Scene(self._asked(question), question=kind)

    def _asked(self, question: str) -> tuple[Turn, ...]:
        """A dialogue that ends with a question of the assistant; what the user said before it is a request."""
        rng, asks = self._rng, Turn(Role.ASSISTANT, question)
        draw = rng.random()
        if draw < 0.35:
            return (asks,)
        said = self._any_query().text if draw < 0.6 else self._fill("ask_before")
        return (Turn(Role.USER, said), asks)

    def _cut_dialogue(self, dialogue: CorpusDialogue, speaking: bool) -> Scene | None:
        """The newest turns that fit, up to a random answer; a running answer is cut at a random whole word."""
        rng, turns, limit = self._rng, dialogue.turns, self._recipe.max_context_words
        at = rng.randrange(1, len(turns), 2)  # an assistant's turn
        text = turns[at].text
        num_words = len(forms.words(text))
        if speaking:
            if num_words < 6:
                return None
            num_words = rng.randint(1, min(num_words - 1, 70))
            text = _first_words(text, num_words)
        elif num_words > 90:
            return None
        sizes = [len(forms.words(turn.text)) for turn in turns[:at]]
        if sizes[at - 1] > limit:
            return None
        first, num_words = at - 1, num_words + sizes[at - 1]
        while first and num_words + sizes[first - 1] + sizes[first - 2] <= limit:
            num_words += sizes[first - 1] + sizes[first - 2]
            first -= 2
        context = (*turns[first:at], Turn(Role.ASSISTANT, text))
        following = [turn.text for turn in turns[at + 1 : at + 3]]
        next_user, next_answer = (*following, None, None)[:2]
        return Scene(context, speaking, None, next_user, next_answer or "", dialogue.source)

    def sample(self, state: InputState, scene: Scene) -> Sample:
        """One sample of `state` in `scene`."""
        make = {PROCESS: self._process, INCOMPLETE: self._incomplete, IGNORE: self._ignore, STOP: self._stop}[state]
        for _ in range(200):
            draft = make(scene)
            text = forms.random_form(draft.text, self._rng, question=draft.question, whole=draft.whole)
            if text and self._recipe.own_lines and text == forms.spoken(text) and self._rng.random() < _MISRECOGNISED:
                text = forms.misrecognised(text, self._rng)
            if text:
                is_known = state in (PROCESS, INCOMPLETE) and draft.kind not in _UNTIMED
                source = named(draft.source, self._language)
                return Sample(
                    text, state, source, draft.kind, draft.accept, scene.context, scene.speaking, scene.system,
                    draft.response, draft.whole and draft.kind != "joint" if is_known else None,
                )  # fmt: skip
        raise BadData(f"the sources give no sample of {state}")  # pragma: no cover - our own lines always do

    # ------------------------------------------------------------------------------------------------------- process

    def _process(self, scene: Scene) -> _Draft:
        part = self._part_of_turn(scene) if self._recipe.own_lines and self._rng.random() < _SEVERAL else None
        draft = part or self._request(scene)
        accept = draft.accept
        leaves = draft.kind in ("follow_up", "reply") and takes_leave(draft.text) and not scene.is_asked
        if leaves or (scene.speaking and draft.kind in ("complaint", "steering")):
            accept = (STOP,)
        elif draft.kind == "small_talk" and scene.context:
            accept = (IGNORE,)  # a "thanks" in passing needs no answer
        text = self._as_spoken(draft.text, scene) if draft.kind in _ADDRESSED else draft.text
        if scene.called and draft.kind in _ADDRESSED and self._rng.random() < 0.4:
            text = forms.join([scene.called, text])
        return replace(draft, text=text, accept=accept, question=forms.is_question(draft.text))

    def _part_of_turn(self, scene: Scene) -> _Draft | None:
        """A turn of several sentences or clauses up to a joint, where it goes on, or as often up to its end.

        Both are of the same turns, so that neither the source nor its style tells them apart.
        """
        rng, most = self._rng, self._recipe.max_words
        for turn in self._turns(scene):
            parts, places = forms.words(turn.text), forms.joints(turn.text)
            if not places or len(parts) > most:
                continue
            if rng.random() < 0.5:
                return turn
            head = forms.join(parts[: rng.choice(places)])
            return _Draft(head, turn.source, "joint", (INCOMPLETE,), question=forms.is_question(head))
        return None

    def _turns(self, scene: Scene) -> Iterator[_Draft]:
        """Turns that may be said in `scene`: the dialogue's own, then some of the sources."""
        rng, pools = self._rng, self._pools
        if scene.next_user is not None:
            kind = "reply" if scene.is_asked else "follow_up"
            yield _Draft(scene.next_user, scene.source, kind, response=scene.next_answer)
        for _ in range(_TURNS_TRIED):
            if pools.statements and rng.random() < 0.5:
                item = _draw(pools.statements, rng, self._recipe)
                yield _Draft(item.text, item.source, "statement")
            else:
                item = self._query()
                yield _Draft(item.text, item.source, "query", response=item.answer)

    def _as_spoken(self, text: str, scene: Scene) -> str:
        """What is said to the assistant, sometimes with an opener or a hesitation."""
        if not self._recipe.own_lines:
            return text
        text = self._hesitant(text)
        if self._rng.random() < (0.25 if scene.speaking else 0.15):
            text = forms.join([self._rng.choice(phrases.lines("before_request", self._language)), text])
        return text

    def _hesitant(self, text: str) -> str:
        has_words = " " in text or forms.is_unspaced(text)
        return phrases.hesitant(text, self._rng) if self._rng.random() < 0.06 and has_words else text

    def _request(self, scene: Scene, draw_query: Callable[[], CorpusUtterance] | None = None) -> _Draft:
        """A complete request to the assistant."""
        rng, pools, own = self._rng, self._pools, self._recipe.own_lines
        if scene.question and rng.random() < 0.9:
            return self._own(f"reply_{scene.question}" if rng.random() < 0.9 else "reply_any", "reply")
        follow = scene.next_user
        if follow is not None and rng.random() < (0.85 if scene.is_asked else 0.7 if not scene.speaking else 0.4):
            parts = forms.words(follow)
            # agreement over a running answer is a backchannel, not a follow-up
            agrees = len(parts) < 4 or _agrees(forms.spoken(follow))
            unclear = scene.speaking and (agrees or takes_leave(follow))
            if len(parts) <= self._recipe.max_words and not unclear:
                kind = "reply" if scene.is_asked else "follow_up"
                return _Draft(follow, scene.source, kind, response=scene.next_answer)
        if own and scene.speaking and rng.random() < 0.28:
            return self._own("steering", "steering")
        if pools.statements and rng.random() < 0.15:
            item = _draw(pools.statements, rng, self._recipe)
            if len(forms.words(item.text)) <= self._recipe.max_words:
                return _Draft(item.text, item.source, "statement")
        if own and rng.random() < (0.4 if scene.context else 0.25):
            return self._own_request(scene)
        if scene.speaking and pools.complaints and rng.random() < 0.04:
            return _Draft(rng.choice(pools.complaints).text, "stop_commands", "complaint")
        query = (draw_query or self._query)()
        if self._recipe.own_lines and rng.random() < 0.24 and len(forms.words(query.text)) >= 5:
            head, tail = self._around_a_repair(query.text)
            text = phrases.repaired(head, tail, forms.words(self._any_query().text), rng, self._language)
            return _Draft(text, query.source, "repaired", response=query.answer)
        return _Draft(query.text, query.source, "query", response=query.answer)

    def _around_a_repair(self, text: str) -> tuple[list[str], list[str]]:
        """The words of a request before the speaker errs, and those with which the speaker resumes it."""
        parts = forms.words(text)
        if forms.is_unspaced(text):  # where its words end is not known: it is begun again
            return [], parts
        at = self._rng.randint(0, max(1, min(len(parts) - 1, 9)))
        return parts[:at], parts[max(0, at - self._rng.randint(0, 3)) :]

    def _own_request(self, scene: Scene) -> _Draft:
        rng, pools = self._rng, self._pools
        draw = rng.random()
        if draw < 0.5:
            return self._own("requests", "request")
        if draw < 0.62 and not scene.speaking:
            return self._own("small_talk", "small_talk")
        if draw < 0.78:
            sizes = [len(self._lines[section]) for section in ("go_on", "complaints")]
            (section,) = rng.choices(("go_on", "complaints"), sizes)
            return self._own(section, section.removesuffix("s"))
        if pools.not_stops and rng.random() < 0.4:
            return _Draft(rng.choice(pools.not_stops).text, "stop_commands", "stop_not")
        return self._own("stop_not", "stop_not")

    def _own(self, section: str, kind: str) -> _Draft:
        """A line of our own with filled slots."""
        return _Draft(self._fill(section), "own", kind)

    def _fill(self, section: str) -> str:
        """A line of our own with filled slots."""
        return phrases.fill(self._rng.choice(self._lines[section]), self._rng, self._language)

    def _any_query(self) -> CorpusUtterance:
        return _draw(self._pools.queries, self._rng, self._recipe)

    def _query(self) -> CorpusUtterance:
        for _ in range(100):
            query = self._any_query()
            if 2 <= len(forms.words(query.text)) <= self._recipe.max_words and not forms.is_cut_off(query.text):
                return query
        raise BadData(f"the queries have no text of 2 to {self._recipe.max_words} words")

    # ---------------------------------------------------------------------------------------------------- incomplete

    def _incomplete(self, scene: Scene) -> _Draft:
        rng, own = self._rng, self._recipe.own_lines
        draw = rng.random() if own else 1.0
        if scene.is_asked and draw < 0.2:
            return replace(self._own("moment", "moment"), accept=(IGNORE, STOP))
        if scene.question and draw < 0.85:
            return replace(self._own(f"half_{scene.question}", "half_reply"), whole=False)
        if own and not scene.context and draw > 0.92 and (kinds := sorted(_FRAGMENTS.intersection(self._questions))):
            return replace(self._own(f"reply_{rng.choice(kinds)}", "fragment"), accept=(IGNORE,), whole=False)
        if draw < 0.12:
            return self._unfinished()
        if draw < 0.2:
            return self._broken_repair(scene)
        for _ in range(50):
            draft = self._request(scene, self._query_to_cut)
            if draft.kind not in _CUT:
                continue
            if self._recipe.cuts == "random":
                cut, kind = forms.random_cut(draft.text, rng), "random_cut"
            else:
                # the model judges texts that stand alone; turns of a dialogue are cut by rules
                ends = self._ends_of(draft.text) if draft.kind == "query" else ()
                cut = forms.unfinished_cut(draft.text, rng, ends)
                kind = "cut" if cut is None or forms.ends_in_function_word(cut) else "content_cut"
            if cut is None or (own and self._may_be_whole(cut)):
                continue
            cut = self._as_spoken(cut, scene)
            if own and self._may_be_whole(cut):
                continue
            if own and rng.random() < 0.06:
                cut = forms.join([cut, phrases.filler(self._language, rng)])
            return _Draft(cut, draft.source, kind, whole=False)
        return self._unfinished()

    def _query_to_cut(self) -> CorpusUtterance:
        """One of a stock of queries that are scored together, which is many times faster than one by one."""
        if not self._to_cut:
            self._to_cut = [self._query() for _ in range(_STOCK)]
            self._score([query.text for query in self._to_cut])
        return self._to_cut.pop()

    def _ends_of(self, text: str) -> Sequence[float]:
        self._score([text])
        return self._known_ends[text]

    def _score(self, texts: Sequence[str]) -> None:
        """Compute the end-of-turn probabilities of new texts."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known_ends]
        spoken = [forms.spoken(text) for text in new]
        found = self._end_of_turn(spoken) if self._end_of_turn is not None else [()] * len(new)
        self._known_ends.update(zip(new, found, strict=True))

    def _may_be_whole(self, cut: str) -> bool:
        """Whether a cut is all that somebody else said, or an answer to a question."""
        plain = forms.spoken(cut)
        is_bare = mandarin.is_bare_answer(plain) or _BARE_ANSWER.fullmatch(plain) is not None
        return (len(forms.words(plain)) > 1 and self._pools.is_whole(plain)) or is_bare

    def _broken_repair(self, scene: Scene) -> _Draft:
        """A request with a self-correction that breaks off at once, or after a word that requires a continuation."""
        rng = self._rng
        query = self._query()
        head, tail = self._around_a_repair(query.text)
        opened = [n for n in range(1, min(4, len(tail))) if forms.is_cut_off(tail[n - 1])]
        more = tail[: rng.choice(opened)] if opened and rng.random() < 0.5 else []
        text = phrases.repaired(head, more, forms.words(self._any_query().text), rng, self._language)
        return _Draft(self._as_spoken(text, scene), query.source, "repaired_cut", whole=False)

    def _unfinished(self) -> _Draft:
        return _Draft(self._rng.choice(self._lines["unfinished"]), "own", "unfinished", whole=False)

    # -------------------------------------------------------------------------------------------------- ignore, stop

    def _ignore(self, scene: Scene) -> _Draft:
        rng = self._rng
        if not self._recipe.own_lines:
            return self._background(scene)
        if rng.random() < (0.4 if scene.called else 0.03):
            return self._to_another(scene)
        draw = rng.random()
        if scene.speaking and draw < 0.22 and not re.search("[?？]", scene.last[-80:]):
            section = "backchannels" if rng.random() < 0.8 else "backchannels_other"
            text = rng.choice(self._lines[section])
            return _Draft(text, "own", "backchannel", (INCOMPLETE,) if text in phrases.OPEN_NOISES else ())
        if scene.speaking and draw < 0.28 and len(parts := forms.words(scene.last)[-40:]) > 4:
            size = rng.randint(3, min(9, len(parts) - 1))
            at = rng.randint(0, len(parts) - size)
            return _Draft(forms.join(parts[at : at + size]), "own", "echo", whole=False)
        if not scene.speaking and not scene.is_asked and draw < 0.06:
            return _Draft(rng.choice(self._lines["noises"]), "own", "noise", (INCOMPLETE,))
        if draw < (0.45 if scene.speaking else 0.65 if scene.is_asked else 0.24):
            return self._to_others("asides", "aside")
        if self._lines["overheard"] and not scene.is_asked and rng.random() < 0.12:
            return self._to_others("overheard", "overheard")
        return self._background(scene)

    def _to_others(self, section: str, kind: str) -> _Draft:
        draft = self._own(section, kind)
        return replace(draft, question=forms.is_question(draft.text))

    def _to_another(self, scene: Scene) -> _Draft:
        """A request to somebody, or to an assistant, of another name."""
        others = phrases.lines("slot_called", self._language) if scene.called else ()
        name = self._rng.choice(
            [name for name in (*phrases.lines("slot_name", self._language), *others) if name != scene.called]
        )
        query = self._own("requests", "request") if self._rng.random() < 0.5 else self._query()
        text = forms.join([name, query.text])
        return _Draft(text, query.source, "to_another", question=forms.is_question(query.text))

    def _background(self, scene: Scene) -> _Draft:
        """Talk to others, cut to the length of queries; questions are more frequent than in the sources."""
        rng, pools = self._rng, self._pools
        want_question = rng.random() < (0.5 if scene.speaking else 0.3)
        target = min(len(forms.words(self._any_query().text)), self._recipe.max_words)
        want_short = scene.speaking and rng.random() < 0.2  # listeners say little
        shortest = 1 if scene.speaking else 7 if scene.is_asked else 3  # behind a question, a few words are a reply
        asked_by_people = pools.human_questions if want_question and not want_short and rng.random() < 0.5 else None
        item, others = None, []
        for _ in range(60):
            drawn = _draw(asked_by_people or pools.background, rng, self._recipe)
            size = len(forms.words(drawn.text))
            if size < shortest or (size >= 3 and pools.is_whole(drawn.text)):
                continue
            if (want_short and size > 4) or (want_question and not want_short and not drawn.text.endswith(("?", "？"))):
                others.append(drawn)
            elif not self._is_device_directed(drawn.text):
                item = drawn
                break
        else:  # such talk is rare in these sources; other talk will do
            item = next((other for other in others if not self._is_device_directed(other.text)), None)
        if item is None and self._recipe.own_lines and scene.is_asked:
            return self._to_others("asides", "aside")  # a small corpus may have no line that is long enough
        if item is None:
            raise BadData("background/ has no, or almost no, line that is not addressed to an assistant")
        parts = forms.words(item.text)
        if len(parts) > target + 3 and not (item.text.endswith(("?", "？")) and len(parts) <= 20):
            cut = forms.join(parts[: max(target, 5)])
            return _Draft(cut, item.source, "background_cut", (INCOMPLETE,), whole=False)
        return _Draft(item.text, item.source, "background", question=forms.is_question(item.text))

    def _stop(self, scene: Scene) -> _Draft:
        rng, lines = self._rng, self._lines
        accept: tuple[InputState, ...] = (PROCESS,) if scene.is_asked else ()
        if self._recipe.own_lines and scene.speaking and rng.random() < 0.25:
            return replace(self._own("wants_in", "wants_in"), accept=(PROCESS, INCOMPLETE))
        if self._pools.stops and rng.random() < 0.25:
            text, source, kind = rng.choice(self._pools.stops).text, "stop_commands", "stop_command"
        else:
            # in silence, "hold on" asks for a moment
            cores = lines["stop"] if scene.speaking else [line for line in lines["stop"] if line not in phrases.PAUSES]
            core = rng.choice(cores)
            accept = (PROCESS, INCOMPLETE) if core in phrases.PAUSES else accept
            text, source, kind = phrases.stop_phrase(core, rng, self._language), "own", "stop"
        if self._recipe.own_lines:
            text = self._hesitant(text)
        return _Draft(text, source, kind, accept, question=forms.is_question(text))


def _agrees(plain: str) -> bool:
    """Whether a text in normal form does nothing but agree or thank."""
    return mandarin.agrees(plain) or _AGREEMENT.issuperset(plain.split())


def is_open(line: str) -> bool:
    """Whether a line of our own is so short that all splits have it; see `OPEN_WORDS`."""
    num_words = len(forms.words(line))
    return num_words <= OPEN_WORDS * (1.5 if forms.is_unspaced(line) else 1)


def named(source: str, language: str) -> str:
    """The name of a source of samples; those of other languages than English begin with the language."""
    return source if language == "en" or source.startswith(f"{language}/") else f"{language}/{source}"


def _draw(pool: Mapping[str, Sequence[T]], rng: random.Random, recipe: Recipe) -> T:
    """An item of a random source; the source's probability is proportional to the square root of its size.

    Sources on one subject (`Recipe.families`) share the probability of one source of their size.
    """
    sources = list(pool)
    weights = [math.sqrt(len(pool[source])) for source in sources]
    for family in recipe.families:
        inside = [at for at, source in enumerate(sources) if source in family]
        if len(inside) > 1:
            total = sum(weights[at] ** 2 for at in inside)
            for at in inside:
                weights[at] = weights[at] ** 2 / math.sqrt(total)
    return rng.choice(pool[rng.choices(sources, weights)[0]])


def _first_words(text: str, num_words: int) -> str:
    """The first `num_words` words of `text`, with the spaces and line breaks between them unchanged."""
    if forms.is_unspaced(text):
        return first_words(text, num_words)
    found = re.match(rf"(?:\s*\S+){{0,{num_words}}}", text)
    return found[0] if found else ""


def takes_leave(text: str) -> bool:
    """Whether a follow-up says that nothing more is wanted: an answer is polite, and silence is right too."""
    plain = forms.spoken(text)
    if forms.is_unspaced(text):
        return mandarin.takes_leave(plain)
    return bool(_LEAVE.search(plain)) and not _ASKS.search(plain) and "?" not in text
