"""All kinds of sessions by name."""

from collections.abc import Callable
from functools import partial

from duologue.baselines.gated import Turns, Vad
from duologue.baselines.sequential import Sequential
from duologue.baselines.tdm import Tdm
from duologue.core.session import Session, SessionFactory
from duologue.types import SLICE_PERIOD_S, InputState, Token

NAMES = ("cdm", "sequential", "tdm", "tdm_skip_idle", "turns", "vad")
"""`cdm` is the method, channel-division multiplexing; it is compared with the others."""


def factory(
    name: str,
    *,
    judge: Callable[[str], InputState] | None = None,
    idle: tuple[Token, ...] = (),
    period_s: float = SLICE_PERIOD_S,
) -> SessionFactory:
    """The factory of sessions of kind `name` (one of `NAMES`). The other arguments are for time division: see `Tdm`."""
    plain: dict[str, SessionFactory] = {"cdm": Session, "sequential": Sequential, "turns": Turns, "vad": Vad}
    if name in plain:
        return plain[name]
    return partial(Tdm, judge=judge, idle=idle, skip_idle=name == "tdm_skip_idle", period_s=period_s)
