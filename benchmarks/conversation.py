"""Conversations that are disturbed in every way the method knows, and the tokens that were sampled in them."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import spoken

from duologue import Engine, Session, SessionConfig, Template, Turn
from duologue.core.answer import Answer
from duologue.core.backend import Backend
from duologue.core.events import Decided, Event, Resumed, Suspended
from duologue.core.prompt import Probe
from duologue.evaluation.forced_policy import ForcedPolicy, NextDecision
from duologue.types import InputState, Token

ARRIVALS = ("at once", "held", "aside first", "taken back", "joined")
DISTURBANCES = ("none", "ignored", "held over", "false start", "stopped", "interrupted")
_MANY = 10_000  # more passes than any conversation here has


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that was sampled for an answer."""

    token: Token
    margin: float | None


@dataclass(slots=True)
class TurnRecord:
    """One question, how it arrived, what happened to its answer, and the tokens that were sampled for it."""

    question: str
    arrival: str
    disturbance: str = "none"
    drawn: list[Drawn] = field(default_factory=list)
    was_cut: bool = False  # by the next question; otherwise it was heard completely
    heard: str = ""
    is_canonical: bool = True  # whether the text that was heard has the ids that were sampled
    passes: int = 0  # while the answer was generated


class Talk:
    """A session, driven pass by pass; each decision is set before the words are heard."""

    def __init__(
        self, backend: Backend, template: Template, probe: Probe, config: SessionConfig, history: Sequence[Turn] = ()
    ) -> None:
        self.forced = NextDecision(p=0.9)  # below `Policy.p_sure`: an answer to growing words is prepared, not released
        policy = ForcedPolicy(forced=self.forced)
        self.session = Session(template, probe, policy=policy, config=config, history=history)
        self.engine = Engine(backend, max_tokens_per_pass=None, clock=lambda: self.session.now)
        self.handle = self.engine.open(self.session)
        self.drawn: dict[int, list[Drawn]] = {}
        self.passes: Counter[int] = Counter()
        self.probe_passes = 0  # passes that the backend declares for probes alone
        self.cut: dict[int, str] = {}  # suspended answers, and what was heard of them
        self.num_decisions = 0

    def tick(self) -> bool:
        """Run one pass. Returns whether there was anything to run."""
        answer = self.session.running
        is_generating = answer is not None and answer.finished is None
        forward_pass = self.engine.plan()
        if forward_pass is None:
            return False
        forward_pass.run()
        self.engine.take(forward_pass)
        self.told(list(self.handle.new_events()))
        self.probe_passes += forward_pass.num_passes - 1
        if answer is not None and is_generating:
            self.passes[answer.id] += 1
            for step in forward_pass.portions[0].steps:
                self.drawn.setdefault(answer.id, []).extend(Drawn(token, step.margin) for token in step.tokens)
        return True

    def told(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Suspended):
                self.cut[event.answer] = event.heard
            elif isinstance(event, Resumed) and event.exact:
                self.cut.pop(event.suspended, None)
            self.num_decisions += isinstance(event, Decided)

    def hear(self, text: str, decision: InputState, *, utterance: str, final: bool = False) -> None:
        """Hear words, and run passes until `decision` has been made on them."""
        self.forced.state = decision
        before = self.num_decisions
        self.told(self.session.hear(text, utterance=utterance, final=final))
        while self.num_decisions == before and self.session.input_text and self.tick():
            pass

    def run(self, passes: int = _MANY) -> None:
        """Run at most so many passes, until nothing is left to do."""
        for _ in range(passes):
            if not self.tick():
                break

    def close(self) -> None:
        self.engine.close()


class Disturbed:
    """Carries out one random conversation; `turns` records it."""

    def __init__(self, talk: Talk, chance: random.Random, num_turns: int) -> None:
        self.talk = talk
        self.turns: list[TurnRecord] = []
        self._chance = chance
        self._num_turns = num_turns
        self._num_utterances = 0

    def run(self) -> list[TurnRecord]:
        """The whole conversation."""
        for i in range(self._num_turns):
            self._turn(is_last=i == self._num_turns - 1)
        return self.turns

    # -- a turn ------------------------------------------------------------------------------------------------------

    def _turn(self, *, is_last: bool) -> None:
        chance, talk = self._chance, self.talk
        running = talk.session.running
        turn = TurnRecord(spoken.question(chance), chance.choice(ARRIVALS))
        self._arrive(turn)
        if running is not None:
            self._close(running, self.turns[-1])
        self.turns.append(turn)
        answer = talk.session.running
        assert answer is not None, "a question that is processed has an answer"
        self._speak(chance.randint(1, 12))
        turn.disturbance = chance.choice(DISTURBANCES)
        if talk.session.running is not answer or answer.finished or not answer.num_heard:
            turn.disturbance = "none"  # the answer was too short to be disturbed
        elif turn.disturbance == "interrupted" and not is_last:
            return  # it is still running when the next question arrives
        else:
            self._disturb(turn.disturbance)
        talk.run()
        assert talk.session.running is answer, "the answer goes on after a disturbance"
        talk.told(talk.session.heard(answer.num_said))
        self._close(answer, turn)

    def _close(self, answer: Answer, turn: TurnRecord) -> None:
        """Record what was sampled for an answer that is over, and what was heard of it."""
        talk = self.talk
        turn.drawn, turn.passes = talk.drawn[answer.id], talk.passes[answer.id]
        turn.was_cut = answer.id in talk.cut
        turn.heard = talk.cut.get(answer.id, answer.text)
        ids = talk.session.template.answer(turn.heard)
        turn.is_canonical = list(ids) == [drawn.token for drawn in turn.drawn[: len(ids)]]

    def _speak(self, passes: int) -> None:
        """Run some passes while the user hears a part of what was said, but never all, so that the answer stays."""
        talk = self.talk
        for _ in range(passes):
            talk.tick()
            answer = talk.session.running
            if answer is not None and answer.is_released:
                most = max(0, len(answer.text[: answer.num_said].rstrip()) - 1)
                position = min(most, max(answer.num_reported, answer.num_heard) + self._chance.randint(0, 9))
                talk.told(talk.session.heard(max(position, answer.num_reported), answer=answer.id))

    # -- how a question arrives ----------------------------------------------------------------------------------------

    def _arrive(self, turn: TurnRecord) -> None:
        name, text, chance = self._name(), turn.question, self._chance
        parts = spoken.grown(text, chance, parts=chance.randint(2, 4))
        match turn.arrival:
            case "held":
                for part in parts[:-1]:
                    self.talk.hear(part, InputState.INCOMPLETE, utterance=name)
                    self._speak(chance.randint(0, 3))
            case "aside first":
                self._ignored(InputState.INCOMPLETE)
            case "taken back":
                for part in parts[:-1]:
                    self.talk.hear(part, InputState.PROCESS, utterance=name)
                    self._speak(chance.randint(0, 5))  # the answer is prepared
            case "joined":  # two utterances, the second while the answer to the first is prepared
                first = parts[0]
                self.talk.hear(first, InputState.PROCESS, utterance=name)
                self._speak(chance.randint(0, 5))
                self.talk.hear(text[len(first) :].strip(), chance.choice(list(InputState)[:2]), utterance=self._name())
                self._end(f"u{self._num_utterances}", text[len(first) :].strip())
                return
            case _:
                pass
        self.talk.hear(text, InputState.PROCESS, utterance=name, final=True)

    def _end(self, name: str, text: str) -> None:
        """The user is silent now: answer what was said last."""
        if self.talk.session.running is None or self.talk.session.input_text:
            self.talk.told(self.talk.session.respond())
        self.talk.told(self.talk.session.hear(text, utterance=name, final=True))
        self.talk.told(self.talk.session.respond())

    # -- what happens to an answer -----------------------------------------------------------------------------------

    def _disturb(self, how: str) -> None:
        chance = self._chance
        match how:
            case "ignored":
                for _ in range(chance.randint(1, 3)):
                    self._ignored(InputState.IGNORE)
                    self._speak(chance.randint(0, 3))
            case "held over":
                self._held_over()
            case "false start":
                name, parts = self._name(), spoken.grown(spoken.question(chance), chance, parts=2)
                self.talk.hear(parts[0], InputState.PROCESS, utterance=name)
                self.talk.run(chance.randint(0, 5))  # the answer is suspended, and another is prepared
                self.talk.hear(parts[1], InputState.IGNORE, utterance=name, final=True)
            case "stopped":
                self._stop_and_resume()

    def _ignored(self, until_whole: InputState) -> None:
        """Words that are dropped, at each partial or only when they are complete."""
        name, chance = self._name(), self._chance
        parts = spoken.grown(spoken.aside(chance), chance, parts=chance.randint(1, 3))
        for part in parts[:-1]:
            self.talk.hear(part, until_whole, utterance=name)
            self._speak(chance.randint(0, 2))
        self.talk.hear(parts[-1], InputState.IGNORE, utterance=name, final=chance.random() < 0.7)

    def _held_over(self) -> None:
        name, chance, session = self._name(), self._chance, self.talk.session
        parts = spoken.grown(spoken.aside(chance), chance, parts=3)
        for part in parts:
            self.talk.hear(part, InputState.INCOMPLETE, utterance=name)
            self._speak(chance.randint(0, 2))
        how = chance.choice(["ignored", "retracted", "patience"])
        if how == "ignored":
            self.talk.hear(f"{parts[-1]} and so on", InputState.IGNORE, utterance=name, final=True)
        elif how == "retracted":
            self.talk.hear("", InputState.IGNORE, utterance=name, final=True)
        else:
            self.talk.told(session.advance(session.now + session.policy.patience_s))

    def _stop_and_resume(self) -> None:
        chance, talk = self._chance, self.talk
        if chance.random() < 0.5:
            talk.told(talk.session.stop())
        else:
            talk.hear(chance.choice(spoken.STOPS), InputState.STOP, utterance=self._name(), final=True)
        talk.run(3)
        if chance.random() < 0.3:
            self._ignored(InputState.INCOMPLETE)
        if chance.random() < 0.5:
            talk.told(talk.session.resume())
        else:
            talk.hear(chance.choice(spoken.RESUMES), InputState.PROCESS, utterance=self._name(), final=True)

    def _name(self) -> str:
        self._num_utterances += 1
        return f"u{self._num_utterances}"
