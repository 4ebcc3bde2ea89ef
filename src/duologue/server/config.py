"""The operator's settings of a server: one table that defines flags, environment variables and file settings."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duologue.errors import UsageError
from duologue.models.catalogue import DEFAULT
from duologue.speakers.endpoint import KEY_VARIABLE
from duologue.speakers.opening import remote_speaker

if TYPE_CHECKING:
    from duologue.speakers.remote import RemoteSpeaker

PREFIX = "DUOLOGUE_SERVE_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _setting(default: Any, text: str, **more: Any) -> Any:
    """A field with its text for `--help` and the documentation."""
    metadata = {"help": text, **more}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The operator's settings. Durations are in seconds."""

    model: str = _setting(DEFAULT, "a short name (see `duologue models`), a .gguf file, a folder or hub name")
    adapter: str = _setting("auto", "adapter of the model that decides: auto, alora, rows, prompted, or a folder")
    listener: str = _setting(
        "auto",
        f"the model that decides, if it is not the one that answers; auto: {DEFAULT}, if no adapter is shipped for the "
        "model; none: the model itself",
    )
    allow_worse: bool = _setting(False, "accept an adapter that decides worse than the prompted model")
    speaker: str = _setting(
        "",
        "URL of an endpoint with OpenAI's chat completions that answers in place of `model`, while the listener "
        f"decides; its key is read from {KEY_VARIABLE}",
    )
    speaker_model: str = _setting("", "name of the model at the speaker's endpoint")
    speaker_continues: bool = _setting(False, "the endpoint can continue an answer whose beginning it is given")
    speaker_early: int = _setting(
        256,
        "tokens of prepared answers that may be discarded in a turn; after that, answers are requested later",
        least=0,
    )
    backend: str = _setting("auto", "auto, llamacpp, torch, vllm or reference")
    weights: str = _setting("", "weight type; empty: the backend's default")
    chat_template: str = _setting("", "file with a Jinja chat template; empty: the model's own")
    revision: str = _setting("", "commit, tag or branch to download from the hub; empty: the newest")
    threads: int = _setting(0, "CPU threads; 0: one per core", least=0)
    device: str = _setting("cpu", "torch device")
    host: str = _setting("127.0.0.1", "address to listen on; any other than loopback needs a token")
    port: int = _setting(8080, "port; 0 takes a free one", least=0, most=65535)
    tokens: tuple[str, ...] = _setting(
        (), "bearer tokens, any of which is accepted; none: anyone who can reach the server may use it"
    )
    origins: tuple[str, ...] = _setting(
        (), "web origins that may connect besides the server's own, such as https://example.org"
    )
    hosts: tuple[str, ...] = _setting(
        (), "host names accepted without tokens, in addition to loopback names and `host`"
    )
    max_sessions: int = _setting(12, "maximum number of simultaneous conversations", least=1)
    max_per_client: int = _setting(
        0, "maximum conversations of one client, by its token, or without tokens by its address; 0: no limit", least=0
    )
    context: int = _setting(2048, "context length of a conversation, in tokens", least=256)
    max_answer: int = _setting(512, "maximum tokens of an answer", least=1)
    max_thought: int = _setting(512, "maximum tokens of a reasoning model's thought before an answer; 0: none", least=0)
    system: str = _setting("", "system prompt for clients that give none; empty: the model's own")
    words_per_second: float = _setting(
        4.0, "reading speed assumed for clients that do not report what was heard", least=0.1, most=1000
    )
    max_message: int = _setting(1 << 20, "maximum bytes of a message", least=1024)
    messages_per_second: float = _setting(
        50.0, "messages a client may send per second; further ones wait in the network", least=0.1
    )
    max_connections: int = _setting(128, "maximum number of simultaneous WebSockets", least=1)
    idle: float = _setting(600.0, "seconds without a message or an answer after which a connection is closed", least=1)
    keep: float = _setting(120.0, "seconds a conversation waits for a client that has lost its connection", least=0)
    drain: float = _setting(20.0, "seconds that running answers may continue after SIGTERM", least=0)
    voice: str = _setting("", "speak and listen: auto, piper, espeak, or a Piper voice; empty: text only")
    recogniser: str = _setting("", "faster-whisper model for the voice; empty: whisper-base, from pip packages")
    recogniser_revision: str = _setting(
        "", "commit, tag or branch of the recogniser to download from the hub; empty: the newest"
    )
    max_voices: int = _setting(2, "maximum number of simultaneous conversations by voice", least=1)
    record: str = _setting("", "folder for records of all conversations, or redis://HOST:PORT/DB; empty: no records")
    record_expiry: float = _setting(
        86400.0, "seconds after its last event until which a recorded conversation can be resumed", least=0
    )
    log_text: bool = _setting(False, "write the text of conversations to the log")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, rules = getattr(self, item.name), item.metadata
            if "least" in rules and not rules["least"] <= value <= rules.get("most", float("inf")):
                most = f" and at most {rules['most']:g}" if "most" in rules else ""
                raise UsageError(f"{item.name} is {value}; it must be at least {rules['least']:g}{most}")
        if any(len(token) < 8 or not token.isascii() or any(c.isspace() for c in token) for token in self.tokens):
            raise UsageError(
                "a token needs eight or more ASCII characters without spaces; others could be guessed or cannot be sent"
            )
        if self.host not in LOOPBACK and not self.tokens:
            raise UsageError(
                f"other machines can reach {self.host}, and there is no token: set {PREFIX}TOKENS (or --tokens), "
                "or listen on 127.0.0.1"
            )

    def remote_speaker(self) -> "RemoteSpeaker | None":
        """What answers in place of a model of this machine, if anything does.

        Raises:
            UsageError: the settings of the speaker are not possible.
            MissingDependency: a package is missing.
        """
        return remote_speaker(
            self.speaker, self.speaker_model, continues=self.speaker_continues, early_tokens=self.speaker_early
        )

    @classmethod
    def read(
        cls,
        *,
        flags: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        path: Path | None = None,
    ) -> "ServerConfig":
        """Settings by precedence: flags, then the environment (`DUOLOGUE_SERVE_PORT` …), then a TOML file.

        Raises:
            UsageError: an unknown setting, or a value that cannot be used; the message says where it was found.
        """
        environ = os.environ if environ is None else environ
        known = {item.name: item.default for item in fields(cls)}
        values: dict[str, Any] = {}
        places: list[tuple[str, Mapping[str, Any]]] = [
            (str(path), _read_file(path) if path is not None else {}),
            (
                "the environment",
                {key.removeprefix(PREFIX).lower(): environ[key] for key in environ if key.startswith(PREFIX)},
            ),
            ("the flags", flags or {}),
        ]
        for where, given in places:
            for name, value in given.items():
                if name not in known:
                    raise UsageError(f"{where}: there is no setting {name!r}; there are {', '.join(known)}")
                values[name] = _value(name, known[name], value, where)
        return cls(**values)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the settings in {path}: {error}") from error


def _value(name: str, default: Any, value: Any, where: str) -> Any:
    """`value` as the type of the setting; text is parsed."""
    kind = type(default)
    try:
        if kind is tuple:
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(_text(part).strip() for part in parts if _text(part).strip())
        if kind is bool:
            return (
                value
                if isinstance(value, bool)
                else {"1": True, "true": True, "0": False, "false": False}[value.lower()]
            )
        if kind is str:
            return _text(value)
        if isinstance(value, bool):
            raise ValueError("not a number")
        if kind is int and isinstance(value, float):
            raise ValueError("not a whole number")
        return kind(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{where}: {name} is {value!r:.60}; it must be {_NAMES[kind]}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


_NAMES = {
    tuple: "a list of texts, or one text with commas",
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
}
