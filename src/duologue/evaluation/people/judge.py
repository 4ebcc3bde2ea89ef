"""A model behind an OpenAI-compatible URL fills ballots. They bear its name, and are no people's."""

import random
import re
from collections.abc import Iterable, Iterator

from duologue.core.events import Committed, Event, Heard, Received, Said, Suspended
from duologue.data.chat_client import ChatClient
from duologue.evaluation.people.ballots import Ballots
from duologue.evaluation.people.criteria import QUESTIONS, Criterion, Vote
from duologue.evaluation.people.study import Study
from duologue.models.opening import Progress

PROMPT = "\n".join(
    (
        "You compare two conversations, A and B. In both, the same user says the same words at the same times, each to "
        "another spoken assistant. Each line has its time in seconds. An assistant should answer what is meant for it "
        "once the user has finished, stop when it is interrupted, and not react to words for somebody else.",
        "Answer these questions:",
        *(f"{criterion}: {question}" for criterion, question in QUESTIONS.items()),
        'Write one line for each, with A, B or tie, and nothing else. For example: "overall: tie"',
    )
)

_CUT = "—"
_LINE = re.compile(rf"^\W*({'|'.join(Criterion)})\W+(a|b|tie)\b", re.IGNORECASE | re.MULTILINE)


def judge_all(study: Study, client: ChatClient, *, chance: random.Random, progress: Progress) -> tuple[int, int]:
    """Let the model of `client` vote on every example that it has not voted on. Each vote is kept at once.

    Returns:
        How many ballots it has now, and how many of them lack a vote, since it did not name one.

    Raises:
        RemoteError: the server does not answer; what it has answered is kept.
        BadData: a record cannot be read.
    """
    ballots = Ballots(study.ballots)
    rater = ballots.join(study.examples, study.pair, chance=chance, judge=client.model)
    own = ballots.of(rater, judge=client.model)
    num_partial = 0
    for number, ballot in enumerate(own):
        progress("judging", number / len(own))
        if not ballot.is_complete:
            conversations = (transcript(study.record(system, ballot.example)) for system in (ballot.a, ballot.b))
            a, b = conversations
            votes = votes_in(client.ask(PROMPT, f"Conversation A:\n{a}\n\nConversation B:\n{b}"))
            ballot = ballots.cast(rater, ballot.example, votes, judge=client.model)
        num_partial += not ballot.is_complete
    return len(own), num_partial


def transcript(events: Iterable[Event]) -> str:
    """What was said to the assistant, and heard of it: a line with its time whenever another begins to speak.

    A dash stands where an answer is cut. Decisions are not in it.
    """
    lines: list[tuple[float, str, str]] = []  # time, who, words
    speaking: object = None
    for who, key, at, words in _spoken(events):
        if (who, key) == speaking:
            begun, _, before = lines.pop()
            lines.append((begun, who, before + words))
        elif words.strip() not in ("", _CUT):
            lines.append((at, who, words))
            speaking = (who, key)
    return "\n".join(f"{at:.0f} s, {who}: {' '.join(words.split())}" for at, who, words in lines)


def _spoken(events: Iterable[Event]) -> Iterator[tuple[str, object, float, str]]:
    """Who, in which utterance or answer, when, and the new words."""
    received: dict[str, str] = {}  # by utterance
    said: dict[int, str] = {}  # by answer
    heard: dict[int, int] = {}  # characters, by answer
    for event in events:
        match event:
            case Received(at, key, text):
                yield "user", key, at, f" {text.removeprefix(received.get(key, ''))}"
                received[key] = text
            case Said(_, answer, start, text):
                said[answer] = said.get(answer, "")[:start] + text
            case Heard(at, answer, position):
                yield "assistant", answer, at, said.get(answer, "")[heard.get(answer, 0) : position]
                heard[answer] = position
            case Committed(at, answer, text):
                yield "assistant", answer, at, text[heard.get(answer, 0) :]
            case Suspended(at, answer):
                yield "assistant", answer, at, f" {_CUT}"


def votes_in(answer: str) -> dict[str, str]:
    """The votes that an answer names, by criterion; a criterion that it names twice has none."""
    found: dict[str, set[str]] = {}
    for criterion, vote in _LINE.findall(answer):
        found.setdefault(criterion.lower(), set()).add(Vote(vote.lower()))
    return {criterion: votes.pop() for criterion, votes in found.items() if len(votes) == 1}
