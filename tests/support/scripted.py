"""Conversations without a model: characters are tokens, words decide what is thought of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from duologue.backends.pair import PairBackend
from duologue.backends.scripted import ScriptedBackend
from duologue.core.base_session import SessionFactory
from duologue.core.config import SessionConfig
from duologue.core.events import Event, Said
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.core.transcript import ListenerModel
from duologue.engine.engine import Engine
from duologue.engine.trace import Trace
from duologue.text.template import Template
from duologue.types import InputState, Role, Token, Turn

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STATES = tuple(InputState)


class ByteTokenizer:
    """Every byte is a token, and so are the two marks of ChatML."""

    vocab_size = 258
    special_text: Mapping[str, str] = {}
    special_tokens: Mapping[str, Token] = {"<|im_start|>": 256, "<|im_end|>": 257}
    bos = None
    stop_tokens = frozenset({257})

    def __init__(self, chat_template: str = CHATML) -> None:
        self.chat_template: str | None = chat_template

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        if not special:
            return list(text.encode())
        parts = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text)
        return [
            t for part in parts for t in ([self.special_tokens[part]] if part in self.special_tokens else part.encode())
        ]

    def decode(self, tokens: Sequence[Token]) -> str:
        marks = {token: text.encode() for text, token in self.special_tokens.items()}
        return b"".join(marks.get(t, bytes([t]) if t < 256 else b"") for t in tokens).decode(errors="replace")


PROBE = Probe(tokens=(258,), watch=(259, 260, 261, 262), states=STATES)
TIMED = replace(PROBE, timing=(263, 264))


def judged(words: str) -> InputState:
    """What the script thinks of a user's turn, by how it ends."""
    if words.endswith(("stop", "be quiet")):
        return InputState.STOP
    if words.endswith(("mhm", "aside", "radio talk")):
        return InputState.IGNORE
    if words.endswith(("the", "a", "about", "to", ",")):
        return InputState.INCOMPLETE
    return InputState.PROCESS


class OtherTokenizer(ByteTokenizer):
    """The same, but every byte has another id."""

    def encode(self, text: str, *, special: bool = False) -> list[Token]:
        return [255 - t if t < 256 else t for t in super().encode(text, special=special)]

    def decode(self, tokens: Sequence[Token]) -> str:
        return super().decode([255 - t if t < 256 else t for t in tokens])


class Talk:
    """A session on a scripted backend, with what happened in it.

    With `listens`, another scripted model judges the words, which has a tokenizer of its own.
    """

    listens_by_default = False

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        *,
        judge: Callable[[str], InputState | tuple[float, ...]] = judged,
        ends: Callable[[str], float] | None = None,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
        chat_template: str = CHATML,
        system: str | None = None,
        capacity: int = 1 << 20,
        max_seqs: int = 256,
        make: SessionFactory = Session,
        listens: bool | None = None,
        listener_length: int = 4096,
        num_soft: int = 0,
    ) -> None:
        self.listens = self.listens_by_default if listens is None else listens
        self.tokenizer = ByteTokenizer(chat_template)
        self.template = Template.from_tokenizer(self.tokenizer, system=system)
        self.answers = dict(answers or {})
        self.judge = judge
        self.ends = ends
        limits = {"capacity": capacity, "max_seqs": max_seqs}
        self.backend: Any = ScriptedBackend(
            self._speak, self._judge, vocab_size=258, num_added=7, embedding_width=2 if num_soft else 0, **limits
        )
        probe = replace(PROBE if ends is None else TIMED, num_soft=num_soft)
        options: dict[str, Any] = {"policy": policy, "config": config, "history": history}
        if self.listens:
            self.other = OtherTokenizer()
            listener = ScriptedBackend(self._never, self._judge_other, vocab_size=258, num_added=7, **limits)
            speaker = ScriptedBackend(self._speak, self._never, vocab_size=258, **limits)
            self.speaker, self.listener = speaker, listener
            self.backend = PairBackend(speaker, listener)
            options["listener"] = ListenerModel(Template.from_tokenizer(self.other), listener_length)
        self.session = make(self.template, probe, **options)
        self.trace = Trace()
        self.engine = Engine(self.backend, max_tokens_per_pass=None, clock=lambda: self.session.now)
        self.handle = self.engine.open(self.session, sink=self.trace)
        self.events: list[Event] = []

    def _turns(self, ids: list[Token]) -> list[tuple[str, str]]:
        turns: list[list[Token]] = []
        for token in ids:  # by the marks' ids: a user may have typed their text
            if token == 256:
                turns.append([])
            elif token < 256:
                turns[-1].append(token)
        parts = [self.tokenizer.decode(turn).partition("\n") for turn in turns]
        return [(role, words.removesuffix("\n")) for role, _, words in parts]

    def template_turns(self, ids: list[Token]) -> list[tuple[str, str]]:
        """Turns of a branch as a model would read them, without the system turn and the notes of cuts."""
        turns = [turn for turn in self._turns(ids) if turn[0] != "system"]
        note = self.session.policy.cut_note
        return [(role, words.removesuffix(note) if role == "assistant" and note else words) for role, words in turns]

    def _speak(self, ids: list[Token]) -> Token:
        turns = self._turns(ids)
        asked = next((words for role, words in reversed(turns[:-1]) if role == "user"), "")
        answer = self.answers.get(asked, f"This is what there is to say of {asked}, and it is quite a lot of words.")
        written = bytes(token for token in ids[len(ids) - ids[::-1].index(256) :] if token < 256).partition(b"\n")[2]
        if b"</think>\n\n" in written:  # however the thought ended
            written, answer = written.rpartition(b"</think>\n\n")[2], answer.rpartition("</think>\n\n")[2]
        rest = answer.encode().removeprefix(written)
        return rest[0] if rest and answer.encode().startswith(written) else 257

    def _never(self, ids: list[Token]) -> Any:
        raise AssertionError("this model has another task")

    def _judge_other(self, ids: list[Token]) -> tuple[float, ...]:
        return self._judge([255 - t if t < 256 else t for t in ids])

    def _judge(self, ids: list[Token]) -> tuple[float, ...]:
        role, words = self._turns(ids)[-1]
        assert role == "user", "the words of a user are judged"
        verdict = self.judge(words)
        p_ends = 0.5 if self.ends is None else self.ends(words)
        if isinstance(verdict, InputState):
            verdict = tuple(0.91 if state is verdict else 0.03 for state in STATES)
        return (*verdict, 1 - p_ends, p_ends)

    def told(self, events: list[Event]) -> list[Event]:
        self.handle.report(events)
        self._collect()
        return events

    def _collect(self) -> list[Event]:
        """What has happened since the last call."""
        events = list(self.handle.new_events())
        self.events += events
        return events

    def hear(self, text: str, utterance: str = "u", *, final: bool = True) -> list[Event]:
        return self.told(self.session.hear(text, utterance=utterance, final=final))

    def tick(self, count: int = 1) -> list[Event]:
        """So many passes, or fewer when there is nothing left to do."""
        out: list[Event] = []
        for _ in range(count):
            fed_something = self.engine.tick()
            out += self._collect()
            if not fed_something:
                break
        return out

    def run(self) -> list[Event]:
        """Passes until there is nothing to do."""
        return self.tick(100_000)

    def advance(self, seconds: float) -> list[Event]:
        return self.told(self.session.advance(self.session.now + seconds))

    def kinds(self, events: Sequence[Event] | None = None) -> list[str]:
        """Names of what happened, without the text that came out."""
        skip = ("Said", "Heard", "Received")
        return [type(e).__name__ for e in (self.events if events is None else events) if type(e).__name__ not in skip]

    @property
    def said(self) -> str:
        """All text that came out, in order."""
        return "".join(event.text for event in self.events if isinstance(event, Said))

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(turn.role.value, turn.text) for turn in self.session.history]

    @property
    def num_seqs(self) -> int:
        """Sequences in use, not counting what a listener has read."""
        return int(self.backend.usage().num_seqs) - self.listens

    def check_cache(self) -> None:
        """The live branch's KV is what it claims to be."""
        session, transcript = self.session, self.session._transcript
        channels = [session._output.sequence, *(a.sequence for a in session._output.suspended)]
        if session._input.current and session._input.current.sequence:
            channels.append(session._input.current.sequence)
        if transcript is not None:
            transcript._follow()
            channels.append(transcript._branch.sequence)
            self.check_transcript()
        for channel in channels:
            seq = self.handle.sequences.seqs.get(channel.seq)
            if seq is not None and channel.fed is None:
                held = self.held(seq)
                assert held[: channel.cached] == channel.items[: channel.cached]
                assert len(held) == channel.kv_length

    def held(self, seq: int) -> list[Token]:
        """What a sequence of the backend holds."""
        if not self.listens:
            return list(self.backend.tokens(seq))
        place = self.backend.place(seq)
        return list((self.listener, self.speaker)[place.cache].tokens(place.seq))

    def check_transcript(self) -> None:
        """The listener reads exactly what was said and heard, from some turn on."""
        session, transcript = self.session, self.session._transcript
        answer = session.running
        asked = [Turn(Role.USER, answer.user_text)] if answer and answer.user_text and not answer.num_heard else []
        turns = [*session.history, *asked]
        branch = transcript._branch
        kept = turns[max(0, branch.first - session._output.num_trimmed) :]
        template = transcript._template
        assert branch.turns[len(branch.turns) - len(kept) :] == kept
        assert branch.sequence.items == [*template.begin, *template.lay_out(branch.turns)]
