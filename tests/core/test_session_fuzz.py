"""Random conversations: whatever is said when, the cache holds what the session believes it holds."""

import random

import pytest

from duologue.core.backend import Extend
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.transitions import Interruptible
from duologue.types import Role, Turn
from scripted import CHATML, STATES, STRICT, Talk

SPOKEN = "what is the weather stop mhm go on about a please radio talk continue , x"
WORDS = [*SPOKEN.split(), "🎉", "é", "<|im_end|>", "[NOISE]", "hang on", "This is what there is"]
KINDS = ["hear"] * 6 + ["tick"] * 8 + ["heard", "advance", "stop", "resume", "respond", "edit", "late", "protect"]


def step(talk: Talk, chance: random.Random, names: list[str]) -> None:
    """One thing that can happen to a session."""
    session = talk.session
    what = chance.choice(KINDS)
    if what == "hear":
        if chance.random() < 0.4:
            names.append(f"u{len(names)}")
        text = " ".join(chance.choices(WORDS, k=chance.randint(0, 6)))
        if chance.random() < 0.5 and session.input_text:
            text = f"{session.input_text} {text}"
        talk.hear(chance.choice([text, text, text, "[NOISE]"]), chance.choice(names[-3:]), final=chance.random() < 0.4)
    elif what == "tick":
        talk.tick(chance.randint(1, 8))
    elif what == "heard" and session.running is not None:
        talk.told(session.heard(chance.randint(0, session.running.num_said), answer=session.running.id))
    elif what == "advance":
        talk.advance(chance.random() * 3)
    elif what == "edit" and chance.random() < 0.1:
        turns = [Turn(Role.USER, "hello"), Turn(Role.ASSISTANT, "hi, who is it?")]
        talk.told(session.edit(turns[: chance.randint(0, 2)]))
    elif what == "protect":
        session.protect(chance.choice(list(Interruptible)))
    elif what == "late":  # a pass is under way while something is said
        plan = session.plan()
        talk.handle.sequences.apply(plan.ops)
        step(talk, chance, names) if not plan.batch else None
        if plan.batch:
            batch = [Extend(talk.handle.sequences.seqs[e.seq], e.tokens, e.draw, e.watch, e.ticket) for e in plan.batch]
            steps = talk.backend.forward(batch)
            if chance.random() < 0.1:
                for extend in batch:  # the pass failed after all
                    talk.backend.truncate(extend.seq, talk.backend.length(extend.seq) - len(extend.tokens))
                session.lose(plan.batch)
            else:
                getattr(session, chance.choice(["stop", "resume", "respond"]))()
                talk.hear(" ".join(chance.choices(WORDS, k=3)), names[-1], final=chance.random() < 0.5)
                talk.told(session.take(steps))
    elif what in ("stop", "resume", "respond"):
        talk.told(getattr(session, what)())


@pytest.mark.parametrize("seed", range(150))
def test_random_conversations(seed: int):
    chance = random.Random(seed)

    def judge(words: str) -> tuple[float, ...]:
        p = [random.Random(f"{seed}{words}{state}").random() ** 3 + 1e-6 for state in STATES]
        return tuple(x / sum(p) for x in p)

    config = SessionConfig(
        max_length=chance.choice([256, 512, 4096]),
        max_answer=80,
        chunk=chance.choice([4, 32, 256]),
        heard=chance.choice(["shown", "reported"]),
    )
    policy = Policy(
        p_sure=chance.choice([0.5, 1.1]),
        cut_note=chance.choice(["", " --"]),
        eagerness=chance.choice([-1.0, 0.0, 1.0]),
        echo_s=chance.choice([0.0, 2.0]),
        reply_s=chance.choice([0.0, 1.0]),
    )
    strict = chance.random() < 0.3
    talk = Talk(
        dict.fromkeys(WORDS, "Well, who is it?"),
        judge=judge,
        config=config,
        policy=policy,
        chat_template=STRICT if strict else CHATML,
        capacity=chance.choice([600, 1 << 20]),
        listener_length=256 if seed % 2 else 4096,
    )
    names = ["u0"]
    for _ in range(chance.randint(20, 150)):
        step(talk, chance, names)
        talk.check_cache()
        check_history(talk)
    talk.engine.close()
    assert talk.backend.usage().num_seqs == 0


def check_history(talk: Talk) -> None:
    """The live branch is the history as the template lays it out, and behind that the running answer."""
    session = talk.session
    answer = session.running
    base = session._output.sequence.items[: answer.turn_at] if answer else session._output.sequence.items
    laid = [turn for turn in talk.template_turns(base) if turn[1]]  # empty: between two of one side, if strict
    known = [(turn.role.value, turn.text) for turn in session._output.history if turn.text]
    assert laid == known
