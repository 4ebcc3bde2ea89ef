"""The test: whole sources that no training has seen, cases of the hard set, over an answer and outside of one."""

import random
from collections.abc import Iterator
from pathlib import Path

from duologue.data import forms
from duologue.data.build import Builder, Scene, takes_leave
from duologue.data.corpus import Utterance
from duologue.data.forms import Ends
from duologue.data.pools import Pools
from duologue.data.recipes import IGNORE, INCOMPLETE, PROCESS, STOP, Recipe
from duologue.data.samples import Sample
from duologue.types import InputState, Role, Turn

HUMAN_TALK = {
    "human_question": (),
    "statement": (),
    "acknowledgement": (),
    "backchannel": (),
    "floor_holder": (INCOMPLETE,),
    "trailing_off": (INCOMPLETE,),
}
"""Acts of meetings, none of them said to an assistant, and the states that would be right beside ignore."""


def unseen(folder: Path, recipe: Recipe, ends: Ends | None = None) -> Iterator[Sample]:
    """Samples of sources in `recipe.unseen`; dialogues and stop commands come from documents kept back.

    Groups: queries whole and cut, background whole and cut, meeting acts, disfluent queries, turns that change course,
    follow-ups, stop commands. Each half over a running answer and half with a silent assistant, alone or in a dialogue,
    where that makes sense; only alone, and without stop commands, where the recipe has no others.
    """
    rng = random.Random(f"{recipe.seed} unseen")
    pools, home = Pools(folder, recipe, "test", unseen=True), Pools(folder, recipe, "test")
    num_per_group = recipe.num_test
    builder = Builder(home, recipe, "test", ends)  # scenes and stop lines from documents kept back
    for speaking in (False, True) if recipe.in_context else (False,):
        yield from _queries(pools, builder, rng, speaking, num_per_group, ends)
        yield from _background(pools, builder, rng, speaking, num_per_group)
        for _ in range(num_per_group // 3 if STOP in recipe.shares else 0):
            yield builder.sample(STOP, _scene(builder, speaking))
        for item in _take(pools.hard.get("disfl_qa", []), num_per_group // 3):
            yield _sample(item, PROCESS, _scene(builder, speaking), rng, item.text, whole=True)
    if not recipe.in_context:
        return
    for kind, accept in HUMAN_TALK.items():
        acts = [item for item in pools.hard.get("icsi_meeting_acts", []) if item.kind == kind]
        for item in _take(acts, num_per_group // 3):
            yield _sample(item, IGNORE, _scene(builder, True), rng, item.text, whole=True, accept=accept)
    yield from _turns(pools, builder, rng, num_per_group // 2)


def _scene(builder: Builder, speaking: bool) -> Scene:
    return builder.scene(in_context=True if speaking else None, speaking=speaking)


def _take(items: list[Utterance], num: int) -> list[Utterance]:
    return [item for item in items if len(forms.words(item.text)) <= 40][:num]


def _queries(
    pools: Pools, builder: Builder, rng: random.Random, speaking: bool, num: int, ends: Ends | None
) -> Iterator[Sample]:
    for items in pools.queries.values():
        share = _take(items[len(items) // 2 :] if speaking else items[: len(items) // 2], num // 2)
        judged = ends([forms.spoken(item.text) for item in share]) if ends is not None else [()] * len(share)
        for item, p in zip(share, judged, strict=True):
            scene = _scene(builder, speaking)
            yield _sample(item, PROCESS, scene, rng, item.text, whole=True)
            cut = forms.unfinished_cut(item.text, rng, p)
            if cut is not None and not (" " in cut and pools.is_whole(cut)):
                yield _sample(item, INCOMPLETE, scene, rng, cut, whole=False)


def _background(pools: Pools, builder: Builder, rng: random.Random, speaking: bool, num: int) -> Iterator[Sample]:
    for items in pools.background.values():
        share = _take(items[len(items) // 2 :] if speaking else items[: len(items) // 2], num // 2)
        for item in share:
            parts = forms.words(item.text)
            if len(parts) < 4:
                continue
            scene = _scene(builder, speaking)
            if len(parts) > 8 and rng.random() < 0.4:
                cut = " ".join(parts[: rng.randint(5, len(parts) - 1)])
                yield _sample(item, IGNORE, scene, rng, cut, whole=False, accept=(INCOMPLETE,))
            else:
                yield _sample(item, IGNORE, scene, rng, item.text, whole=True)


def _turns(pools: Pools, builder: Builder, rng: random.Random, num: int) -> Iterator[Sample]:
    """Follow-ups of dialogues at rest, and turns that change course, with what the assistant had said before."""
    found = 0
    for _ in range(num * 20):
        scene = builder.scene(in_context=True, speaking=False)
        if scene.next_user is None or len(forms.words(scene.next_user)) > 35:
            continue
        item = Utterance(scene.next_user, scene.source, "follow_up", 0.0)
        accept = (STOP,) if takes_leave(item.text) else ()
        yield _sample(item, PROCESS, scene, rng, item.text, whole=True, accept=accept)
        found += 1
        if found == num:
            break
    for item in _take([i for i in pools.hard.get("sgd_switches", []) if i.part >= 0.9 and i.before], num):
        context = (Turn(Role.USER, "Hello, I need some help."), Turn(Role.ASSISTANT, item.before))
        yield _sample(item, PROCESS, Scene(context), rng, item.text, whole=True)


def _sample(
    item: Utterance,
    state: InputState,
    scene: Scene,
    rng: random.Random,
    text: str,
    *,
    whole: bool,
    accept: tuple[InputState, ...] = (),
) -> Sample:
    question = whole and forms.is_question(item.text)
    text = forms.spoken(text) if rng.random() < 0.5 else forms.typed(text, rng, question=question, whole=whole)
    kind = item.kind
    if not whole:
        is_content = state is INCOMPLETE and forms.spoken(text).split(" ")[-1] not in forms.FUNCTION_WORDS
        kind = "content_cut" if is_content else "cut"
    return Sample(text, state, item.source, kind, accept, scene.context, scene.speaking, scene.system)
