"""docs/protocol.md says what the code does: types, fields and settings are the same."""

import json
import re
from dataclasses import fields
from pathlib import Path

from duologue.core.events import EVENT_TYPES, Decision
from duologue.server.config import ServerConfig
from duologue.server.duplex.connection import MESSAGES
from duologue.server.settings import ConversationSettings, read_turns
from duologue.voice.timeline import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows(name: str) -> list[list[str]]:
    part = TEXT.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_messages():
    told = {names(kind)[0]: cell for kind, cell, _ in rows("messages")}
    assert {kind: names(cell) for kind, cell in told.items()} == {kind: list(items) for kind, items in MESSAGES.items()}
    for kind, items in MESSAGES.items():
        assert re.findall(r"`(\w+)` \(needed\)", told[kind]) == [name for name, item in items.items() if item.is_needed]
    listed = re.search(r"^client   (.*)$", TEXT, re.MULTILINE)
    assert listed is not None
    assert listed[1].split(" · ") == list(MESSAGES)


def test_settings():
    assert [names(name)[0] for name, *_ in rows("settings")] == [item.name for item in fields(ConversationSettings)]


def test_events():
    told = {names(kind)[0]: names(cell) for kind, cell, _ in rows("events")}
    assert set(told) == set(EVENT_TYPES)
    for kind, event in EVENT_TYPES.items():
        known = []
        for item in fields(event):
            known += ["state", "p", "probabilities", "p_ends"] if item.type is Decision else [item.name]
        assert told[kind] == [name for name in known if name != "at"], kind


def test_what_the_voice_tells():
    assert {name for kind, *_ in rows("voice") for name in names(kind)} == KINDS


def test_the_example_is_made_of_messages():
    exchange = re.search(r"```jsonl exchange\n(.*?)```", TEXT, re.DOTALL)
    assert exchange is not None
    for line in exchange[1].splitlines():
        message = json.loads(line[2:])
        kind = message["type"]
        if line.startswith(">"):
            assert message.keys() - {"type"} <= set(MESSAGES[kind])
        else:
            assert kind == "started" or kind in EVENT_TYPES
    assert read_turns([{"role": "user", "text": "hi"}])


def test_settings_of_the_server():
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    part = text.split("<!-- reference:server-settings -->")[1].split("<!-- end -->")[0]
    told = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| `")]
    assert told == [[f"`{item.name}`", _shown(item.default), item.metadata["help"]] for item in fields(ServerConfig)]


def _shown(value: object) -> str:
    if value in ("", ()):
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
