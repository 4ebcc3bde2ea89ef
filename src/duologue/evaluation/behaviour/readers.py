"""Reads recorded conversations and other benchmarks as cases.

Missing parts are filled in: if a set has the user's words over an answer, but not the answer, the assistant says
`NEUTRAL`. Audio is not read; the words must be available as text.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from duologue.core import events as e
from duologue.core.history import Ledger
from duologue.core.transitions import Floor
from duologue.data.jsonl import read_rows
from duologue.errors import BadData
from duologue.evaluation.behaviour.cases import (
    PLAYED_PER_S,
    Act,
    Action,
    Case,
    Expectation,
    check,
    plain_words,
    read_cases,
    spoken,
)
from duologue.server.record import is_record, read_record
from duologue.types import Role, Turn

NEUTRAL = (
    "That is a good question, and there is quite a lot to say about it. Let me begin with the most important part and "
    "then go through the rest step by step. First of all, it helps to know where it comes from and why people care. "
    "After that we can look at how it is done in practice, what can go wrong, and what you can do about it. At the end "
    "I will give you a short summary, so that you can remember what matters most."
)
_AT_S = 3.0  # when the user speaks over an answer
_FIRST_S = 1.0  # when the user speaks to a silent assistant


def read(path: Path, form: str | None = None) -> list[Case]:
    """The cases of a file or folder in the format `form`. Without `form`, records are recognised by their first line.

    Raises:
        BadData: a file is invalid; the message says where.
    """
    if form is None:
        form = "record" if is_record(path) else "cases"
    if form == "cases":
        return read_cases(path)
    try:
        cases = list(_READERS[form](path))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OSError) as error:
        raise BadData(f"{path} is not what --read {form} expects: {type(error).__name__}: {error}") from error
    if not cases:
        raise BadData(f"{path} has nothing that --read {form} knows")
    for case in cases:
        try:
            check(case)
        except BadData as error:
            raise BadData(f"{path}, {case.id}: {error}") from error
    return cases


def _over(name: str, kind: str, question: str, text: str, action: Action, intent: str, answer: str = NEUTRAL) -> Case:
    """Somebody says `text` over an answer to `question`."""
    _, _, end = spoken(text, _AT_S, "")
    one = Expectation(action, _AT_S, end, floor=Floor.SPEAKING, to=_to(action, text), intent=intent)
    return Case(name, kind, (Turn(Role.USER, question),), answer, (Act(_AT_S, speak=text),), (one,))


def _to_silence(name: str, kind: str, text: str, history: Sequence[Turn] = (), intent: str = "completion") -> Case:
    """The user says `text`, with pauses, to a silent assistant that must answer its end."""
    _, pauses, end = spoken(text, _FIRST_S, "")
    expect, start = [], _FIRST_S
    for at, seconds in pauses:
        expect.append(Expectation(Action.WAIT, start, at, seconds, intent="incomplete"))
        start = at + seconds
    expect.append(Expectation(Action.ANSWER, start, end, to=_to(Action.ANSWER, text), intent=intent))
    return Case(name, kind, tuple(history), None, (Act(_FIRST_S, speak=text),), tuple(expect))


def _to(action: Action, text: str) -> str:
    return " ".join(plain_words(text)) if action is Action.ANSWER else ""


def _record(path: Path) -> Iterator[Case]:
    """One case for each utterance of a recorded conversation, which expects what happened; to be corrected by hand."""
    recorded = read_record(path)
    texts: dict[int, str] = {}
    for event in recorded.events:
        if isinstance(event, e.Said):
            texts[event.answer] = texts.get(event.answer, "")[: event.start] + event.text
    ledger, speaking = Ledger(recorded.history), 0
    groups: list[tuple[list[Turn], str | None, list[e.Received], list[e.Event]]] = []
    for event in recorded.events:
        if isinstance(event, e.Received) and event.text:
            words = groups[-1][2] if groups else []
            if not words or words[-1].utterance != event.utterance or words[-1].final:
                over = ledger.floor is Floor.SPEAKING
                groups.append((ledger.history, texts.get(speaking) if over else None, [], []))
            groups[-1][2].append(event)
        elif groups:
            groups[-1][3].append(event)
        if isinstance(event, e.Said):
            speaking = event.answer
        ledger(event)
    for number, (history, answer, words, then) in enumerate(groups, 1):
        yield _recorded(f"{path.stem}-{number:02d}", history, answer, words, then)


def _recorded(name: str, history: list[Turn], answer: str | None, words: list[e.Received], then: list[e.Event]) -> Case:
    begin = _FIRST_S
    if answer is not None:
        begin = round(len(history[-1].text) / PLAYED_PER_S + 0.2, 2)  # as much has been heard as in the record
        history = history[:-1]
    acts = [
        Act(round(begin + word.at - words[0].at, 2), text=word.text, utterance="u", final=word.final) for word in words
    ]
    known = [word for word in words if word.text == words[-1].text]
    at = round(begin + known[0].at - words[0].at, 2)
    floor = Floor.SILENT if answer is None else Floor.SPEAKING
    action = Action.WAIT if answer is None else Action.GO_ON
    for event in then:
        if isinstance(event, e.Promoted):
            action = Action.ANSWER
        elif isinstance(event, e.Resumed) and answer is None:
            action = Action.RESUME
        elif isinstance(event, e.Dropped) and event.reason == "stop" and answer is not None:
            action = Action.STOP
    one = Expectation(action, begin, at, floor=floor, to=_to(action, words[-1].text))
    return Case(name, "recorded", tuple(history), answer, tuple(acts), (one,))


def _flexi(path: Path) -> Iterator[Case]:
    """FLEXI (arXiv 2509.22243), `data_text_json/*.json`. What the assistant does unasked is left out."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        rows = json.loads(file.read_text(encoding="utf-8"))
        items = list(rows.items()) if isinstance(rows, dict) else [pair for row in rows for pair in row.items()]
        for key, row in items:
            row = row[0] if isinstance(row, list) else row
            name = f"{file.stem}-{key}"
            if "interrupt" in row:
                yield _over(name, "flexi", row["context"], row["interrupt"], Action.ANSWER, "interruption")
            elif "Pause2" in row:
                begin, end = row["pause_timestamp"]
                text = f"{row['Pause1']} [{end - begin:.2f}] {row['Pause2']}"
                yield _to_silence(name, "flexi", text)
            elif "Pause1" in row and file.stem.startswith("user"):
                yield _over(name, "flexi", row["text"], row["Pause1"], Action.GO_ON, "backchannel")
            elif file.stem.startswith("turn_taking"):
                yield _to_silence(name, "flexi", row["text"])


def _full_duplex_bench(path: Path) -> Iterator[Case]:
    """Full-Duplex-Bench v1: folders with `transcription.json` and pause, turn_taking or interrupt.json."""
    for file in sorted(path.rglob("*.json")):
        name = f"{file.parent.parent.name}-{file.parent.name}"
        if file.name == "interrupt.json":
            row = json.loads(file.read_text(encoding="utf-8"))[0]
            yield _over(name, "full_duplex_bench", row["context"], row["interrupt"], Action.ANSWER, "interruption")
        elif file.name in ("pause.json", "turn_taking.json"):
            marks = json.loads(file.read_text(encoding="utf-8"))
            words = json.loads((file.parent / "transcription.json").read_text(encoding="utf-8"))
            words = words["chunks"] if isinstance(words, dict) else words
            yield _timed(name, words, marks, is_pause=file.name == "pause.json")


def _timed(name: str, words: list[Any], marks: list[Any], *, is_pause: bool) -> Case:
    said = [word["text"].strip() for word in words]
    ends = [round(_FIRST_S + word["timestamp"][1], 3) for word in words]
    acts = [
        Act(end, text=" ".join(said[:i]), utterance="u", final=i == len(said) and not is_pause)
        for i, end in enumerate(ends, 1)
    ]
    if is_pause:
        times = [(round(_FIRST_S + mark["timestamp"][0], 3), mark["timestamp"]) for mark in marks]
        expect = [Expectation(Action.WAIT, at, at, round(t[1] - t[0], 3), intent="incomplete") for at, t in times]
    else:
        at = max(round(_FIRST_S + marks[0]["timestamp"][0], 3), ends[-1])
        expect = [Expectation(Action.ANSWER, _FIRST_S, at, to=_to(Action.ANSWER, said[-1]), intent="completion")]
    return Case(name, "full_duplex_bench", (), None, tuple(acts), tuple(expect))


_TAG = re.compile(r"<\|([^|>]+)\|>")
_CODETT = {"maintain": Action.GO_ON, "stop": Action.ANSWER, "takeover": Action.ANSWER, "dismiss": Action.WAIT}


def _codett(path: Path) -> Iterator[Case]:
    """CoDeTT: rows of `messages`; the last one has the tags of action and intent, the one before the system's state."""
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        for number, row in read_rows(file):
            *before, asked, label = row["messages"]
            name, intent = _TAG.findall(label["content"].lower())[-2:]
            action = _CODETT["stop" if name.startswith("stop") else name]
            if name.startswith("stop") and intent == "dismissal":
                action = Action.STOP
            text = re.split(r"(?:输入内容|Input)\s*[::]", asked["content"])[-1].strip()
            turns = [Turn(Role(one["role"]), one["content"]) for one in before if one["role"] in ("user", "assistant")]
            name = f"{file.stem}-{number}"  # of the case
            if "SystemSpeaking" in asked["content"]:
                answer = turns.pop().text if turns and turns[-1].role is Role.ASSISTANT else NEUTRAL
                question = turns[-1].text if turns else "Please tell me about it."
                yield _over(name, "codett", question, text, action, intent, max(answer, NEUTRAL, key=len))
            else:
                closed = turns[: len(turns) - (bool(turns) and turns[-1].role is Role.USER)]
                case = _to_silence(name, "codett", text, closed, intent)
                one = case.expect[-1]
                wait = Expectation(Action.WAIT, one.start, one.at, intent=intent)
                expect = case.expect if action is Action.ANSWER else (*case.expect[:-1], wait)
                yield Case(name, case.kind, case.history, None, case.acts, expect)


_CUE = re.compile(r"(\d+):(\d+):(\d+)[,.](\d+)\s*-->\s*(\d+):(\d+):(\d+)[,.](\d+)\s*\n\[([^\]]+)\]\s*(.*)")
_TURNS = ("Normal Turn", "Strong Floor Hold", "Bounded Response")


def _turnbench(path: Path) -> Iterator[Case]:
    """TurnBench: folders with `speaker_1_annotation_a.srt` (the user) and `speaker_2_…` (the assistant)."""
    for file in sorted(path.rglob("speaker_1_annotation_a.srt")):
        users = list(_srt(file))
        others = list(_srt(file.with_name("speaker_2_annotation_a.srt")))
        for number, (start, _, label, text) in enumerate(users):
            name = f"{file.parent.name}-{number}"
            running = next((one for one in others if one[0] < start < one[1] and one[2] in _TURNS), None)
            if not plain_words(text):
                continue
            if running is not None and ("Interruption" in label or "Backchannel" in label):
                action = Action.ANSWER if "Interruption" in label else Action.GO_ON
                asked = next((u[3] for u in reversed(users) if u[1] <= running[0] and u[2] in _TURNS), "Go ahead.")
                answer = max(running[3], NEUTRAL, key=len)
                yield _over(name, "turnbench", asked, text, action, label, answer)
            elif running is None and label in _TURNS:
                yield _to_silence(name, "turnbench", text, intent=label)


def _srt(path: Path) -> Iterator[tuple[float, float, str, str]]:
    """Start, end, label and words of each entry."""
    for found in _CUE.finditer(path.read_text(encoding="utf-8").replace("\r", "")):
        h, m, s, ms, h2, m2, s2, ms2 = map(int, found.groups()[:8])
        yield h * 3600 + m * 60 + s + ms / 1000, h2 * 3600 + m2 * 60 + s2 + ms2 / 1000, found[9], found[10].strip()


_READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "record": _record,
    "flexi": _flexi,
    "full_duplex_bench": _full_duplex_bench,
    "codett": _codett,
    "turnbench": _turnbench,
}
