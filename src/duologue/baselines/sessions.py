"""All kinds of sessions by name."""

from collections.abc import Callable
from functools import partial

from duologue.baselines.gated import Turns, Vad
from duologue.baselines.sequential import Sequential
from duologue.baselines.tdm import Tdm
from duologue.core.session import Session, SessionFactory
from duologue.types import SLICE_PERIOD_S, InputState, Token

NAMES = ("cdm", "sequential", "tdm", "tdm_skip_idle", "turns", "vad")
"""`cdm` is ours, channel-division multiplexing; the others are what it is compared with."""


def factory(
    name: str,
    *,
    judge: Callable[[str], InputState] | None = None,
    idle: tuple[Token, ...] = (),
    period_s: float = SLICE_PERIOD_S,
) -> SessionFactory:
    """What makes sessions of kind `name` (one of `NAMES`); the rest is for time division alone, see `Tdm`."""
    plain: dict[str, SessionFactory] = {"cdm": Session, "sequential": Sequential, "turns": Turns, "vad": Vad}
    if name in plain:
        return plain[name]
    return partial(Tdm, judge=judge, idle=idle, skip_idle=name == "tdm_skip_idle", period_s=period_s)
