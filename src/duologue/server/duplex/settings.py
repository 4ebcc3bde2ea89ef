"""What a client may choose for its conversation, and how it is said in JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from duologue.baselines.gated import Turns, Vad
from duologue.core.backend import Sampling
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.session import Session
from duologue.core.transitions import Interruptible
from duologue.errors import BadData
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.types import Role, Turn
from duologue.voice.policy import by_voice

Hearing = Literal["reported", "shown"] | float
"""What the user has heard of an answer: what the client reports, all that was sent, or so many words a second of it."""


KINDS: Mapping[str, type[Session]] = {"duplex": Session, "turns": Turns, "vad": Vad}
"""Kinds of conversations: duplex, and two that it is to be compared with: one is deaf while it answers, the other stops
at any sound."""


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """Of a conversation by voice."""

    rate: int = 24_000  # samples a second, both ways
    latency_ms: float = 100.0  # from a sample's arrival at the client to the ear


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one conversation. `system` None leaves the prompt to the server; `kind` is one of `KINDS`."""

    kind: str = "duplex"
    system: str | None = None
    hearing: Hearing = "reported"
    eagerness: float = 0.0
    interruptible: Interruptible = Interruptible.YES
    max_answer: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    voice: VoiceSettings | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any], *, before: "Settings | None" = None) -> "Settings":
        """The settings that `row` names; others as `before`, or by default. Names that are none are passed over.

        Raises:
            BadData: a value cannot be used.
        """
        found: dict[str, Any] = {}
        for item in fields(cls):
            if item.name in row:
                try:
                    found[item.name] = _READ[item.name](row[item.name])
                except (ValueError, TypeError, OverflowError) as error:
                    raise BadData(f"{item.name} is {row[item.name]!r:.60}: {error}") from error
        if found.get("voice") is not None:
            found["hearing"] = "reported"  # by the server itself, as it is played
        return replace(before or cls(), **found)

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {
            "voice": None if self.voice is None else asdict(self.voice)
        }

    @property
    def words_per_second(self) -> float | None:
        """The rate of hearing, if it goes by the clock."""
        return None if isinstance(self.hearing, str) else float(self.hearing)

    def policy(self, model: Model) -> Policy:
        """When a probability becomes an action."""
        policy = model.policy(eagerness=self.eagerness, interruptible=self.interruptible)
        return policy if self.voice is None else by_voice(policy)

    def session(self, model: Model, limits: ServerConfig, history: tuple[Turn, ...] = ()) -> Session:
        """A session with these settings, within what the server allows.

        Raises:
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        config = SessionConfig(
            max_length=model.max_length,
            max_answer=min(self.max_answer or limits.max_answer, limits.max_answer),
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p),
            seed=self.seed,
            heard="shown" if self.hearing == "shown" else "reported",
        )
        system = self.system or limits.system or None
        return model.session(KINDS[self.kind], policy=self.policy(model), config=config, system=system, history=history)


def read_turns(rows: Any) -> tuple[Turn, ...]:
    """Turns from JSON. Raises `BadData`."""
    if not isinstance(rows, list):
        raise BadData('a history is a list such as [{"role": "user", "text": "hello"}]')
    turns = []
    for row in rows:
        if (
            not isinstance(row, dict)
            or row.get("role") not in ("user", "assistant")
            or not isinstance(row.get("text"), str)
        ):
            raise BadData(f'{row!r:.60} is no turn; one is {{"role": "user" or "assistant", "text": "…"}}')
        turns.append(Turn(Role(row["role"]), row["text"]))
    return tuple(turns)


def _read_text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("it must be text")
    return value


def _read_kind(value: Any) -> str:
    if not isinstance(value, str) or value not in KINDS:
        raise ValueError(f"it must be one of {', '.join(KINDS)}")
    return value


def _number(least: float, most: float) -> Any:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ValueError(f"it must be a number from {least:g} to {most:g}")
        return float(value)

    return read


def _whole(least: int, most: int) -> Any:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"it must be a whole number from {least} to {most}")
        return value

    return read


def _read_hearing(value: Any) -> Hearing:
    if value == "shown":
        return "shown"
    if value == "reported":
        return "reported"
    try:
        return float(_number(0.1, 1000)(value))
    except ValueError as error:
        raise ValueError(f'"reported", "shown" or words a second are possible, and for those {error}') from None


def _read_interruptible(value: Any) -> Interruptible:
    return Interruptible(str(value).lower() if isinstance(value, bool) else value)


def _read_voice(value: Any) -> VoiceSettings | None:
    if value is None or value is False:
        return None
    if not isinstance(value, dict) or value.get("rate", 24_000) not in (16_000, 24_000):
        raise ValueError('it must be false or an object such as {"rate": 24000}; the rate is 16000 or 24000')
    return VoiceSettings(int(value.get("rate", 24_000)), _number(0, 2000)(value.get("latency_ms", 100.0)))


_READ: dict[str, Any] = {
    "kind": _read_kind,
    "system": _read_text,
    "hearing": _read_hearing,
    "eagerness": _number(-1, 1),
    "interruptible": _read_interruptible,
    "max_answer": lambda value: None if value is None else _whole(1, 1 << 20)(value),
    "temperature": _number(0, 10),
    "top_p": _number(1e-6, 1),
    "seed": _whole(-(1 << 62), 1 << 62),
    "voice": _read_voice,
}
