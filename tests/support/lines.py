"""A small folder of sources, written for the tests: queries, background, dialogues, hard cases."""

import json
from pathlib import Path

_ASKED = (
    "what is the best way to clean a {}",
    "how many of you know where the {} is kept",
    "can you tell me how much a {} costs in the shop",
    "please put the {} on my list for saturday",
    "when did people begin to use a {} at home",
    "i would like to learn how the {} is made",
)
_SAID = (
    "So we left the {} in the garden and it rained all night.",
    "Well, the {} was never really his, you know.",
    "Did she bring the {} back before the others came?",
    "They sold the {} last year. I miss it.",
    "Right, and then the {} fell down the stairs.",
)
_THINGS = ("kettle", "lamp", "boat", "ladder", "piano", "carpet", "drum", "tent", "mirror", "shovel", "globe", "sledge")
_ANSWER = (
    "A {0} wants some care.\n\nFirst look at the {0} from all sides, then take a soft cloth and warm water, and be "
    "patient with every corner of the {0} until it is dry."
)


def write_sources(folder: Path) -> Path:
    """Write the sources below `folder` and return it."""
    for name, source in (("kitchen", "kitchen"), ("garden", "garden"), ("desk", "desk")):
        asked = [text.format(f"{source} {thing}") for text in _ASKED for thing in _THINGS]
        _write(folder / "queries" / f"{name}.jsonl", _utterances(asked, source, "assistant_query"))
    for name in ("train", "harbour", "market"):
        said = [text.format(f"{name} {thing}") for text in _SAID for thing in _THINGS]
        rows = _utterances(said, name, "talk")
        _write(
            folder / "background" / f"{name}.jsonl", [{**row, "doc": f"{name}-{i // 3}"} for i, row in enumerate(rows)]
        )
    _write(folder / "dialogues" / "talks.jsonl", [_dialogue(i, thing) for i in range(6) for thing in _THINGS])
    stops = [
        ("just stop it now", "general_commandstop"),
        ("would you be silent", "cancel"),
        ("mute the speakers", "audio_volume_mute"),
        ("cancel my table", "cancel_reservation"),
    ]
    # every command several times, so that each split has some
    rows = [
        {"id": f"stop-{i}-{n}", "text": text, "kind": "stop_command", "intent": intent}
        for i in range(12)
        for n, (text, intent) in enumerate(stops)
    ]
    _write(folder / "hard" / "stop_commands.jsonl", rows)
    acts = [f"uh did you move the {thing}" for thing in _THINGS]
    _write(folder / "hard" / "icsi_meeting_acts.jsonl", _utterances(acts, "acts", "human_question"))
    repairs = [f"where is the spoon no the {thing} from" for thing in _THINGS]
    _write(folder / "hard" / "disfl_qa.jsonl", _utterances(repairs, "disfl", "disfluent_query"))
    return folder


def _utterances(texts: list[str], source: str, kind: str) -> list[dict[str, str]]:
    return [{"id": f"{source}-{i}", "text": text, "kind": kind} for i, text in enumerate(texts)]


def _dialogue(number: int, thing: str) -> dict[str, object]:
    texts = [f"tell me about my {thing}", _ANSWER.format(thing), f"and where do i put the {thing} then", "In the hall."]
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "text": text} for i, text in enumerate(texts)]
    return {"id": f"talk-{number}-{thing}", "turns": turns}


def _write(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
