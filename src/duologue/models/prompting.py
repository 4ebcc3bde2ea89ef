"""Prompts for the state instead of using a trained probe: works with any chat model, but decides less reliably."""

from collections.abc import Sequence

from duologue.core.prompt import Probe
from duologue.errors import UsageError, require
from duologue.text.template import Template
from duologue.types import InputState, Token

_MEANINGS = {
    InputState.PROCESS: "a complete question or request to the assistant",
    InputState.INCOMPLETE: "unfinished, the speaker will go on",
    InputState.IGNORE: 'said to somebody else, or small noises like "mhm"; nothing to answer',
    InputState.STOP: "asking the assistant to stop talking",
}

_SHOTS = (
    ("what is the", InputState.INCOMPLETE),
    ("honey the soup is ready", InputState.IGNORE),
    ("how tall is a giraffe", InputState.PROCESS),
    ("okay be quiet now", InputState.STOP),
    ("tell me something about rivers please", InputState.PROCESS),
)

_ANSWERS = (("A", "B", "C", "D"), ("a", "b", "c", "d"), ("1", "2", "3", "4"))


def prompted_probe(template: Template, states: Sequence[InputState], *, shots: int = 0) -> Probe:
    """A probe that closes the user's turn, asks for its state, opens the answer, and watches the letters that may come.

    Raises:
        UsageError: `shots` is neither 0 nor 5, or no letters or digits are single tokens in this model.
    """
    require(shots in (0, len(_SHOTS)), f"a prompted adapter has 0 or {len(_SHOTS)} examples, not {shots}")
    names, watch = _answers(template, len(states))
    lines = ["Think of the last words of the user before this message. Which of these are they?"]
    lines += [f"{name}: {_MEANINGS[state]}" for name, state in zip(names, states, strict=True)]
    known = [(text, state) for text, state in _SHOTS[:shots] if state in states]
    lines += [f'Example: "{text}" is {names[list(states).index(state)]}.' for text, state in known]
    lines.append(f"Answer with {', '.join(names[:-1])} or {names[-1]} and nothing else.")
    tokens = (*template.user_close, *template.user("\n".join(lines), first=False), *template.header)
    if template.thought is not None:
        tokens += template.end_thought(template.thought)
    return Probe(tokens, watch, tuple(states))


def _answers(template: Template, num: int) -> tuple[tuple[str, ...], tuple[Token, ...]]:
    """Names for the choices, each a single token right after the header, and their ids."""
    for names in _ANSWERS:
        ids = [template.answer(name) for name in names[:num]]
        last = [tokens[-1] for tokens in ids if tokens]
        # The tokens before the letter must be the same for all choices, or they would be read at different positions.
        if len({tokens[:-1] for tokens in ids}) == 1 and len(ids[0]) == 1 and len(set(last)) == num:
            return names[:num], tuple(last)
    raise UsageError("this model's tokenizer has no single tokens for letters or digits, so it cannot be prompted")
