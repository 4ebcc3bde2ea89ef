"""What people type and say in a first conversation, written for the tests, apart from the lines that are trained on."""

import json
from pathlib import Path

from duologue.data.samples import Sample
from duologue.types import InputState, Role, Turn

_CONTEXTS = {
    "volcano": (
        "Tell me how volcanoes work.",
        "Volcanoes form where molten rock, called magma, rises through cracks in the crust. As pressure builds up",
    ),
    "bread": (
        "how do i bake bread",
        "For bread you need flour, water, salt and yeast. Mix them, knead the dough and let it rest an hour.",
    ),
}


def demo_samples() -> list[Sample]:
    """The lines of `demo_lines.jsonl` in their dialogues; a running answer is cut where the user has heard it to."""
    samples = []
    for line in (Path(__file__).parent / "demo_lines.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        speaking = bool(row.get("speaking"))
        context: tuple[Turn, ...] = ()
        if "context" in row:
            asked, answer = _CONTEXTS[row["context"]]
            heard = " ".join(answer.split()[:14]) if speaking else answer
            context = (Turn(Role.USER, asked), Turn(Role.ASSISTANT, heard))
        samples.append(Sample(row["text"], InputState(row["state"]), "demo", context=context, speaking=speaking))
    return samples
