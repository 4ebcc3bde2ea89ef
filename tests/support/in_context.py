"""What people say behind a question and over an answer, written for the tests: the same words mean different things."""

from duologue.data.samples import Sample
from duologue.types import InputState, Role, Turn

PROCESS, INCOMPLETE, IGNORE, STOP = InputState.PROCESS, InputState.INCOMPLETE, InputState.IGNORE, InputState.STOP

_REPLIES = {
    "Certainly. Which number should the courier ring?": (
        "oh one six two five five nine eight one four two",
        "01625 598142",
    ),
    "And how many guests will there be?": ("four", "6", "only us two"),
    "Under what name, please?": ("lindgren", "Mara Lindgren", "it's under holt"),
    "Which flavour would you like, lemon, mint or cherry?": ("mint", "the last one", "Cherry."),
    "When was your appointment?": ("the sixth of may", "last wednesday", "May 6"),
    "The blue one is out of stock. Shall I order the grey one?": (
        "yes",
        "No.",
        "okay",
        "mhm",
        "no thank you",
        "go ahead",
    ),
    "What does the display show?": ("it says door open", "nothing", "e twenty two"),
    "Good. Which animal has the longest neck?": ("giraffe", "the giraffe", "i don't know"),
    "What would you like to eat tonight?": ("something light", "noodles", "you choose"),
}
_HALVES = {
    "Certainly. Which number should the courier ring?": ("oh one six", "it's oh one"),
    "When was your appointment?": ("the sixth of", "may the"),
    "Where should I send the invoice?": ("mara dot", "holt at"),
}
_MOMENTS = ("let me look for it", "one moment please", "hang on i need my reading glasses", "just a second")
_ANSWER = (
    "The lighthouse was built on a rock far outside the bay. For eighty years a keeper lived there with his family, and"
)
_OVER = (
    (IGNORE, ("okay", "mhm", "i see", "right", "oh wow", "ja", "嗯", "claro", "that's true")),
    (PROCESS, ("also tell me who built it", "and how tall is it", "no the other lighthouse", "make it shorter please")),
    (
        PROCESS,
        ("use metres instead", "actually skip the family part", "wait what about the boat", "leave out the dates"),
    ),
    (STOP, ("no no no", "excuse me", "hold on", "stop it please", "that's enough now")),
)
_DISTURBANCE = (STOP, PROCESS, INCOMPLETE)
"""Right where the user wants the floor: the answer must pause, whatever comes next."""


def samples_in_context() -> list[Sample]:
    """Rows with all states that are right."""
    asked = {question: (Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, question)) for question in (*_REPLIES, *_HALVES)}
    heard = (Turn(Role.USER, "tell me about the lighthouse"), Turn(Role.ASSISTANT, _ANSWER))
    found = [Sample(text, PROCESS, "reply", context=asked[q]) for q, texts in _REPLIES.items() for text in texts]
    found += [Sample(text, INCOMPLETE, "half", context=asked[q]) for q, texts in _HALVES.items() for text in texts]
    question = next(iter(_REPLIES))
    found += [Sample(text, INCOMPLETE, "moment", "", (IGNORE, STOP), asked[question]) for text in _MOMENTS]
    for state, texts in _OVER:
        accept = {STOP: _DISTURBANCE, PROCESS: (STOP,)}.get(state, ())
        name = {STOP: "wants in", PROCESS: "steering"}.get(state, "acknowledgement")
        found += [Sample(text, state, name, "", accept, heard, speaking=True) for text in texts]
    return found
