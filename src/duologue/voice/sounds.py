"""Connects what a recogniser hears beyond the words with a session."""

from collections.abc import Callable

from duologue.engine.handle import Handle
from duologue.hearing.evidence import Features
from duologue.models.model import Model


def sounds_for(handle: Handle, model: Model) -> Callable[[str, Features], None] | None:
    """What `Voice` calls with the sound of an utterance; None where `model` decides by words alone."""
    if not model.hears:
        return None
    return lambda utterance, features: handle.hear_sound(model.evidence(features), utterance=utterance)
