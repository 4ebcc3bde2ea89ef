"""A model behind an OpenAI-compatible URL fills ballots. They bear its name, and are no people's."""

import random
import re
from collections.abc import Iterable

from duologue.core.events import Event, Received, Said, Suspended
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
    """A conversation as text: a line with its time whenever another begins to speak, and a dash where an answer is cut.

    Decisions are not in it.
    """
    lines: list[tuple[float, str, str]] = []  # time, who, words
    heard: dict[str, str] = {}  # by utterance
    speaking: object = None
    for event in events:
        match event:
            case Received(utterance=key, text=text):
                who, words = "user", f" {text.removeprefix(heard.get(key, ''))}"
                heard[key] = text
            case Said(answer=key, text=words):
                who = "assistant"
            case Suspended(answer=key):
                who, words = "assistant", " —"
            case _:
                continue
        if (who, key) == speaking:
            at, _, before = lines.pop()
            lines.append((at, who, before + words))
        elif words.strip():
            lines.append((event.at, who, words))
            speaking = (who, key)
    return "\n".join(f"{at:.0f} s, {who}: {' '.join(words.split())}" for at, who, words in lines)


def votes_in(answer: str) -> dict[str, str]:
    """The votes that an answer names, by criterion; a criterion that it names twice has none."""
    found: dict[str, set[str]] = {}
    for criterion, vote in _LINE.findall(answer):
        found.setdefault(criterion.lower(), set()).add(Vote(vote.lower()))
    return {criterion: votes.pop() for criterion, votes in found.items() if len(votes) == 1}
