"""One answer of a loaded model, without a conversation."""

import dataclasses
import threading

from duologue.baselines.sessions import Turns
from duologue.core.config import SessionConfig
from duologue.core.events import Refused
from duologue.errors import UsageError
from duologue.models.model import Model
from duologue.types import Role

MAX_ANSWER = 256
"""Tokens of an answer, by default."""

_lock = threading.Lock()  # a backend carries out one pass at a time


def complete(model: Model, system: str, text: str, *, max_answer: int = MAX_ANSWER) -> str:
    """What `model` answers to `text`, greedily, with the system prompt `system`.

    Raises:
        UsageError: the text is too long for the model's context.
        EngineError: the backend failed.
    """
    config = dataclasses.replace(SessionConfig(), max_answer=max_answer)
    with _lock:
        engine = model.engine()
        try:
            talk = engine.open(model.session(Turns, config=config, system=system))
            talk.hear(text, final=True)
            while engine.tick():
                pass
            refused = next((event for event in talk.new_events() if isinstance(event, Refused)), None)
            if refused is not None:
                raise UsageError(f"{model.name} cannot answer a text of {len(text)} characters: {refused.reason}")
            last = talk.session.history[-1:]
            return last[0].text if last and last[0].role is Role.ASSISTANT else ""
        finally:
            engine.close()
