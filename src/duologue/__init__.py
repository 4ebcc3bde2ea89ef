"""Duologue gives open language models duplex ability: the model listens while it speaks.

    import duologue

    model = duologue.load()                 # the default model with its adapter
    engine = duologue.Engine(model.backend)
    talk = engine.open(model.session())     # a session is a pure state machine; the engine drives it

Names are imported when they are first used: `import duologue` loads no heavy library.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Engine": "duologue.engine.engine",
    "InputState": "duologue.types",
    "Interruptible": "duologue.core.transitions",
    "Listener": "duologue.speakers.listener",
    "Model": "duologue.models.model",
    "Policy": "duologue.core.policy",
    "Sampling": "duologue.core.backend",
    "Session": "duologue.core.session",
    "SessionConfig": "duologue.core.config",
    "Template": "duologue.text.template",
    "Trace": "duologue.engine.trace",
    "Turn": "duologue.types",
    "load": "duologue.models.model",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from duologue.core.backend import Sampling as Sampling
    from duologue.core.config import SessionConfig as SessionConfig
    from duologue.core.policy import Policy as Policy
    from duologue.core.session import Session as Session
    from duologue.core.transitions import Interruptible as Interruptible
    from duologue.engine.engine import Engine as Engine
    from duologue.engine.trace import Trace as Trace
    from duologue.models.model import Model as Model
    from duologue.models.model import load as load
    from duologue.speakers.listener import Listener as Listener
    from duologue.text.template import Template as Template
    from duologue.types import InputState as InputState
    from duologue.types import Turn as Turn


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'duologue' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
