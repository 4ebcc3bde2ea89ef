"""The test set: whole sources that no training has seen, and cases of the hard set, over an answer and in silence."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import final

from duologue.data import forms, phrases
from duologue.data.build import SampleBuilder, Scene, named, takes_leave
from duologue.data.corpus import CorpusUtterance, Pools
from duologue.data.forms import EndOfTurn
from duologue.data.recipes import IGNORE, INCOMPLETE, PROCESS, STOP, Recipe
from duologue.data.samples import Sample
from duologue.types import InputState, Role, Turn

_OWN_QUESTIONS = frozenset({"evi_spoken"})
"""Sources whose questions were not asked by the assistant of the dialogue, but written afterwards."""

_BEFORE_QUESTION = {
    "en": ("Hello.", "I need some help, please.", "Can you help me with something?", "Yes."),
    "zh": ("你好。", "请帮我一个忙。", "我有件事想问你。", "好的。"),
}

HUMAN_TALK = {
    "human_question": (),
    "statement": (),
    "acknowledgement": (),
    "backchannel": (),
    "floor_holder": (INCOMPLETE,),
    "trailing_off": (INCOMPLETE,),
}
"""Dialogue acts of meetings, none of them addressed to an assistant, and the states accepted besides ignore."""


@final
class UnseenSamples:
    """Draws samples of the sources in `recipe.unseen`; dialogues and stop commands come from held-out documents.

    One random generator; the order of calls determines everything.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, end_of_turn: EndOfTurn | None = None, *, language: str | None = None
    ) -> None:
        self._recipe, self._end_of_turn = recipe, end_of_turn
        self._rng = random.Random(f"{recipe.seed} unseen")
        self._pools = Pools(folder, recipe, "test", language=language, unseen=True)
        self._language = self._pools.language
        # scenes and stop commands from held-out documents
        pools = Pools(folder, recipe, "test", language=language, requires=("queries",))
        self._builder = SampleBuilder(pools, recipe, "test", end_of_turn)

    def samples(self) -> Iterator[Sample]:
        """All samples of the test.

        Groups: queries whole and cut, background whole and cut, meeting acts, disfluent queries, turns that change
        course, follow-ups, replies, statements, steering, wanting in, echoes, stop commands. Where it makes sense, half
        of each group is heard over a running answer and half by a silent assistant, alone or in a dialogue. Recipes
        without contexts or stop commands get neither.
        """
        recipe, hard, third = self._recipe, self._pools.hard, self._recipe.num_test // 3
        for speaking in (False, True) if recipe.in_context else (False,):
            yield from self._queries(speaking)
            yield from self._background(speaking)
            for _ in range(third if STOP in recipe.shares else 0):
                yield self._builder.sample(STOP, self._scene(speaking))
            for item in _take(hard.get("disfl_qa", []), third):
                yield self._sample(item, PROCESS, self._scene(speaking))
        if not recipe.in_context:
            return
        yield from self._own_lines()
        yield from self._replies(2 * third)
        yield from self._unseen_turns()
        for kind, accept in HUMAN_TALK.items():
            acts = [item for item in hard.get("icsi_meeting_acts", []) if item.kind == kind]
            for item in _take(acts, third):
                yield self._sample(item, IGNORE, self._scene(True), accept=accept)
        yield from self._turns(recipe.num_test // 2)

    def _scene(self, speaking: bool, asked: bool | None = None) -> Scene:
        return self._builder.scene(in_context=True if speaking else None, speaking=speaking, asked=asked)

    def _half(self, items: list[CorpusUtterance], speaking: bool) -> list[CorpusUtterance]:
        """The items of a source that are heard in one place: those of the other place are different."""
        middle = len(items) // 2
        return _take(items[middle:] if speaking else items[:middle], self._recipe.num_test // 2)

    def _queries(self, speaking: bool) -> Iterator[Sample]:
        for items in self._pools.queries.values():
            share = self._half(items, speaking)
            texts = [forms.spoken(item.text) for item in share]
            ends = self._end_of_turn(texts) if self._end_of_turn is not None else [()] * len(share)
            for item, p in zip(share, ends, strict=True):
                scene = self._scene(speaking)
                yield self._sample(item, PROCESS, scene)
                cut = forms.unfinished_cut(item.text, self._rng, p)
                if cut is not None and not (len(forms.words(cut)) > 1 and self._pools.is_whole(cut)):
                    yield self._sample(item, INCOMPLETE, scene, cut=cut)

    def _background(self, speaking: bool) -> Iterator[Sample]:
        rng = self._rng
        for items in self._pools.background.values():
            for item in self._half(items, speaking):
                parts = forms.words(item.text)
                if len(parts) < 4:
                    continue
                scene = self._scene(speaking, asked=False)  # behind a question, talk to others may be a reply
                if len(parts) > 8 and rng.random() < 0.4:
                    cut = forms.join(parts[: rng.randint(5, len(parts) - 1)])
                    yield self._sample(item, IGNORE, scene, cut=cut, accept=(INCOMPLETE,))
                else:
                    yield self._sample(item, IGNORE, scene)

    def _turns(self, num: int) -> Iterator[Sample]:
        """Follow-ups of dialogues at rest, and turns that change course after what the assistant had said."""
        found = 0
        for _ in range(num * 20):
            if found == num:
                break
            scene = self._builder.scene(in_context=True, speaking=False)
            if scene.next_user is None or len(forms.words(scene.next_user)) > 35:
                continue
            item = CorpusUtterance(scene.next_user, scene.source, "follow_up", 0.0)
            yield self._sample(item, PROCESS, scene, accept=(STOP,) if takes_leave(item.text) else ())
            found += 1
        switches = [i for i in self._pools.hard.get("sgd_switches", []) if i.part >= 0.9 and i.before]
        for item in _take(switches, num):
            context = (Turn(Role.USER, phrases.GREETING[self._language]), Turn(Role.ASSISTANT, item.before))
            yield self._sample(item, PROCESS, Scene(context))

    def _own_lines(self) -> Iterator[Sample]:
        """Lines of our own that no training has: replies, halves of replies, and what is said over an answer."""
        for section, state, kind in (("replies", PROCESS, "own_reply"), ("halves", INCOMPLETE, "half_reply")):
            for line in phrases.lines(f"unseen_{section}", self._language):
                question, *replies = (part.strip() for part in line.split("|"))
                for text in replies:
                    item = CorpusUtterance(text, "own", kind, 0.0)
                    yield self._sample(
                        item, state, Scene(self._asked(question)), cut=text if state is INCOMPLETE else None
                    )
        questions = [line.split("|")[0].strip() for line in phrases.lines("unseen_replies", self._language)]
        for text in phrases.lines("unseen_moments", self._language):
            item = CorpusUtterance(text, "own", "moment", 0.0)
            for question in self._rng.sample(questions, 3):
                yield self._sample(item, INCOMPLETE, Scene(self._asked(question)), accept=(IGNORE, STOP))
        for section, state, accept in (
            ("steering", PROCESS, (STOP,)),
            ("wants_in", STOP, (PROCESS, INCOMPLETE)),
        ):
            for text in phrases.lines(f"unseen_{section}", self._language):
                item = CorpusUtterance(text, "own", section, 0.0)
                for _ in range(3):
                    yield self._sample(item, state, self._scene(True), accept=accept)
        for _ in range(self._recipe.num_test // 3):
            scene = self._scene(True)
            parts = forms.words(scene.last)
            if len(parts) < 6:
                continue
            size = self._rng.randint(4, min(9, len(parts)))
            at = self._rng.randint(max(0, len(parts) - 30), len(parts) - size)
            item = CorpusUtterance(forms.join(parts[at : at + size]), "own", "echo", 0.0)
            yield self._sample(item, IGNORE, scene)

    def _asked(self, question: str) -> tuple[Turn, ...]:
        said = self._rng.choice(_BEFORE_QUESTION[self._language])
        return (Turn(Role.USER, said), Turn(Role.ASSISTANT, question))

    def _replies(self, num: int) -> Iterator[Sample]:
        """Real turns behind a question of the assistant, from held-out dialogues."""
        found = 0
        for _ in range(num * 20):
            scene = self._builder.scene(in_context=True, speaking=False, asked=True)
            if scene.question or scene.next_user is None or len(forms.words(scene.next_user)) > 35:
                continue
            if scene.source in _OWN_QUESTIONS:
                continue
            yield self._sample(CorpusUtterance(scene.next_user, scene.source, "reply", 0.0), PROCESS, scene)
            found += 1
            if found == num:
                return

    def _unseen_turns(self) -> Iterator[Sample]:
        """Statements and complaints of customers to a silent assistant."""
        for items in self._pools.statements.values():
            for item in _take(items, self._recipe.num_test // 2):
                yield self._sample(replace(item, kind="customer"), PROCESS, self._scene(False))

    def _sample(
        self,
        item: CorpusUtterance,
        state: InputState,
        scene: Scene,
        *,
        cut: str | None = None,
        accept: tuple[InputState, ...] = (),
    ) -> Sample:
        """`item`, whole or as the given cut, in one of the two forms."""
        text, kind, whole = item.text if cut is None else cut, item.kind, cut is None
        question = whole and forms.is_question(item.text)
        text = forms.random_form(text, self._rng, question=question, whole=whole)
        if not whole:
            is_content = state is INCOMPLETE and not forms.ends_in_function_word(text)
            kind = "half_reply" if item.kind == "half_reply" else "content_cut" if is_content else "cut"
        ends = whole if state in (PROCESS, INCOMPLETE) and kind != "moment" else None
        source = named(item.source, self._language)
        return Sample(text, state, source, kind, accept, scene.context, scene.speaking, scene.system, ends=ends)


def _take(items: list[CorpusUtterance], num: int) -> list[CorpusUtterance]:
    """The first `num` items of at most 40 words."""
    return [item for item in items if len(forms.words(item.text)) <= 40][:num]
