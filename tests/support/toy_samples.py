"""Samples of random tokens whose state can be learned, for training tests."""

import random

from duologue.data.samples import Sample
from duologue.training.layout import Layout
from duologue.types import InputState

STATES = tuple(InputState)


def random_layouts(num: int, seed: int = 0) -> list[Layout]:
    rng = random.Random(seed)
    contexts = [(), *(tuple(rng.randrange(4, 300) for _ in range(rng.randint(1, 9))) for _ in range(3))]
    return [
        Layout(rng.choice(contexts), tuple(rng.randrange(4, 300) for _ in range(rng.randint(1, 7)))) for _ in range(num)
    ]


def toy_set(num: int, seed: int) -> tuple[list[Sample], list[Layout]]:
    """State and end are told by the last token, as function words tell that more will come. A third say no end."""
    rng = random.Random(seed)
    samples, layouts = [], []
    for layout in random_layouts(num, seed):
        label = rng.randrange(4)
        ends = label in (0, 3) if len(samples) % 3 else None
        samples.append(Sample("…", STATES[label], "toy", speaking=rng.random() < 0.5, ends=ends))
        layouts.append(Layout(layout.context, (*layout.text, 100 + 40 * label)))
    return samples, layouts
