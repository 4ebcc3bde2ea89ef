"""The settings that a client may choose for its conversation, and their JSON form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from duologue.baselines.sessions import Turns, Vad
from duologue.core.backend import Sampling
from duologue.core.config import SessionConfig
from duologue.core.policy import ECHO_S, Policy
from duologue.core.session import Session
from duologue.core.transitions import Interruptible
from duologue.models.model import Model
from duologue.server.config import ServerConfig
from duologue.server.fields import Field, Rejection, Table, read
from duologue.types import Role, Turn
from duologue.voice.policy import by_voice

Hearing = Literal["reported", "shown"] | float
"""How much of an answer counts as heard: what the client reports, all that was sent, or a rate in words per second."""


KINDS: Mapping[str, type[Session]] = {"duplex": Session, "turns": Turns, "vad": Vad}
"""Kinds of conversations: duplex, and two baselines. One is deaf while it answers, the other stops at any sound."""


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """The settings of a conversation by voice."""

    rate: int = 24_000  # samples per second, both ways
    latency_ms: float = 100.0  # from a sample's arrival at the client to the ear


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """The settings of one conversation. `system` None: the server's prompt; `kind` is one of `KINDS`."""

    kind: str = "duplex"
    system: str | None = None
    hearing: Hearing = "reported"
    eagerness: float = 0.0
    echo_guard: bool | None = None  # None: by voice only
    interruptible: Interruptible = Interruptible.YES
    max_answer: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    voice: VoiceSettings | None = None

    @classmethod
    def from_json(
        cls, row: Mapping[str, Any], *, before: "ConversationSettings | None" = None
    ) -> "ConversationSettings":
        """The settings that `row` names; others are those of `before`, or defaults. Unknown names are ignored.

        Raises:
            Rejection: a value is invalid.
        """
        found = read(_TABLE, row, only_given=True)
        if found.get("voice") is not None:
            found["hearing"] = "reported"  # by the server itself, as it is played
        return replace(before or cls(), **found)

    def as_json(self) -> dict[str, Any]:
        """The JSON form that `from_json` reads."""
        return asdict(self)

    @property
    def words_per_second(self) -> float | None:
        """The rate of hearing, if the clock determines what has been heard."""
        return None if isinstance(self.hearing, str) else self.hearing

    def policy(self, model: Model) -> Policy:
        """The policy of the conversation."""
        policy = model.policy(eagerness=self.eagerness, interruptible=self.interruptible)
        if self.voice is not None:
            policy = by_voice(policy)
        return policy if self.echo_guard is None else replace(policy, echo_s=ECHO_S if self.echo_guard else 0.0)

    def session(self, model: Model, limits: ServerConfig, history: tuple[Turn, ...] = (), **more: Any) -> Session:
        """A session with these settings, within what the server allows. `more` are further fields of `SessionConfig`.

        Raises:
            ContextOverflow, TemplateError: the model cannot take the history or the system prompt.
        """
        config = SessionConfig(
            max_length=model.max_length,
            max_answer=min(self.max_answer or limits.max_answer, limits.max_answer),
            max_thought=limits.max_thought,
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p),
            seed=self.seed,
            heard="shown" if self.hearing == "shown" else "reported",
            **more,
        )
        system = self.system or limits.system or None
        return model.session(KINDS[self.kind], policy=self.policy(model), config=config, system=system, history=history)


def read_turns(rows: Any, *, most: int | None = None, where: str = "history") -> tuple[Turn, ...]:
    """Turns from JSON, at most `most`. Raises `Rejection`."""
    if not isinstance(rows, list):
        raise Rejection(f'{where} must be a list of turns such as [{{"role": "user", "text": "hello"}}]', param=where)
    if most is not None and len(rows) > most:
        raise Rejection(f"{where} has {len(rows)} turns; the context holds at most {most}", param=where)
    return tuple(_turn(row, f"{where}[{number}]") for number, row in enumerate(rows))


def _turn(row: Any, where: str) -> Turn:
    if not isinstance(row, dict):
        raise Rejection(f'{where} is {row!r:.60}; a turn is {{"role": "user" or "assistant", "text": "…"}}')
    found = read(_TURN, row, f"{where}, a turn: ")
    return Turn(Role(found["role"]), found["text"])


def _hearing(value: Any) -> Hearing:
    if value == "shown" or value == "reported":
        return "shown" if value == "shown" else "reported"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.1 <= value <= 1000:
        raise ValueError('"reported", "shown", or words per second from 0.1 to 1000')
    return float(value)


def _interruptible(value: Any) -> Interruptible:
    try:
        return Interruptible(str(value).lower() if isinstance(value, bool) else value)
    except ValueError:
        raise ValueError('true, false or "stop-only"') from None


def _voice(value: Any) -> VoiceSettings | None:
    if value is False:
        return None
    if not isinstance(value, dict):
        raise ValueError('false or an object such as {"rate": 24000}')
    return VoiceSettings(**read(_VOICE, value, "voice."))


_TURN: Table = {"role": Field(str, is_needed=True, choices=("user", "assistant")), "text": Field(str, is_needed=True)}
_VOICE: Table = {
    "rate": Field(int, 24_000, choices=(16_000, 24_000)),
    "latency_ms": Field(float, 100.0, least=0, most=2000),
}
_TABLE: Table = {
    "kind": Field(str, "duplex", choices=tuple(KINDS)),
    "system": Field(str),
    "hearing": Field(object, "reported", parse=_hearing),
    "eagerness": Field(float, 0.0, least=-1, most=1),
    "echo_guard": Field(bool),
    "interruptible": Field(object, Interruptible.YES, parse=_interruptible),
    "max_answer": Field(int, least=1, most=1 << 20),
    "temperature": Field(float, 0.0, least=0, most=10),
    "top_p": Field(float, 1.0, least=1e-6, most=1),
    "seed": Field(int, 0, least=-(1 << 62), most=1 << 62),
    "voice": Field(object, parse=_voice),
}
