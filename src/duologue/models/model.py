"""From a name to a model that is ready to talk.

`load` finds the model and the adapter, opens the weights on a backend, and checks that template, adapter and weights
fit together. How each library opens weights is in `opening`.
"""

import dataclasses
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from duologue.core import prompt as core
from duologue.core.backend import Backend
from duologue.core.base_session import SessionFactory
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.core.transcript import ListenerModel
from duologue.engine.engine import Engine
from duologue.engine.vllm_engine import engine_on
from duologue.errors import ModelNotFound, UsageError, refuse, require
from duologue.hearing.evidence import Features
from duologue.models.adapters import Adapter, prompted, requested_adapter
from duologue.models.catalogue import DEFAULT, ModelSource, find
from duologue.models.opening import LoadRequest, OpenedModel, Progress, open_llamacpp, open_torch, open_vllm
from duologue.text.template import Template
from duologue.text.text_template import TextTemplate
from duologue.types import Role, Turn, VirtualId, well_formed

if TYPE_CHECKING:
    from duologue.speakers.remote import RemoteSpeaker

BACKENDS = ("auto", "torch", "llamacpp", "vllm", "reference")
NO_LISTENER = "none"
log = logging.getLogger("duologue")


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model, and what decides in conversations with it: its own adapter, or a listener with another one."""

    name: str
    backend: Backend  # with a listener: both
    template: Template
    adapter: Adapter  # of the model that decides
    probe: Probe  # of the model that decides
    max_length: int  # tokens of one conversation
    listener: "Model | None" = None  # the model that decides, if this one only speaks
    speaker: "RemoteSpeaker | None" = None  # what answers, if this is a model elsewhere
    path: Path | None = None  # of its file or folder; None: on the hub

    @property
    def format(self) -> core.Template:
        """The chat format of what answers."""
        return self.template if self.speaker is None else TextTemplate(self.speaker.system)

    @property
    def decider(self) -> "Model":
        """The model that decides: this one or its listener."""
        return self.listener or self

    @property
    def decided_by(self) -> str:
        """What decides, for display."""
        return self.adapter.kind if self.listener is None else f"{self.listener.name} listens, {self.adapter.kind}"

    @property
    def title(self) -> str:
        """What answers and what decides, for display."""
        info = self.backend.info
        where = f"{info.weights} on {info.name}" if self.speaker is None else f"at {self.speaker.endpoint.url}"
        return f"{self.name} {where}, {self.decided_by}"

    def spoken_by(self, speaker: "RemoteSpeaker", *, max_length: int) -> "Model":
        """A model elsewhere, in whose conversations this one listens and decides. They have `max_length` tokens."""
        return dataclasses.replace(
            self, name=speaker.endpoint.model, listener=self, speaker=speaker, max_length=max_length
        )

    @property
    def hears(self) -> bool:
        """Whether `evidence` can be given: the adapter has a projection of sound, and the backend takes its rows."""
        return self.adapter.sound is not None and self.backend.info.embedding_width > 0

    def evidence(self, features: Features) -> tuple[VirtualId, ...]:
        """Soft tokens for `Session.hear`, of a sound with these features [K, F] (`duologue.hearing.evidence`).

        Raises:
            UsageError: the adapter decides by words alone, or was trained with another recogniser.
            UnsupportedModel: the backend takes no rows for this model.
        """
        if self.adapter.sound is None:
            raise UsageError(
                f"the adapter {self.adapter.name or '(unnamed)'} hears no sound: it decides by words alone"
            )
        return self.backend.embed(self.adapter.sound.rows(features))

    def policy(self, **changes: Any) -> Policy:
        """The adapter's thresholds for these weights, with `changes` to the other fields of `Policy`."""
        idle, speaking = self.adapter.thresholds_for(self.decider.backend.info.weights)
        return Policy(**{"idle": idle, "speaking": speaking, **changes})

    def factory(self, make: SessionFactory = Session) -> SessionFactory:
        """`make` for sessions with this model: it passes on the listener."""
        if self.listener is None:
            return make
        return partial(make, listener=ListenerModel(self.listener.template, self.listener.max_length))

    def engine(self) -> Engine:
        """An engine for conversations with this model."""
        return engine_on(self.backend, speaker=self.speaker)

    def session(
        self,
        make: type[Session] = Session,
        *,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        system: str | None = None,
        **options: Any,
    ) -> Session:
        """A conversation with this model. `system` replaces its system prompt; `options` are those of `Session`.

        `make` is another kind of session, such as `duologue.baselines.sessions.Turns`.

        Raises:
            ContextOverflow, TemplateError: see `Session`.
        """
        config = config or SessionConfig()
        if config.max_length > self.max_length:
            config = dataclasses.replace(config, max_length=self.max_length)
        template = self.format
        if system is not None:
            config.check_size([Turn(Role.SYSTEM, system)])
            template = template.with_system(well_formed(system))
        session = self.factory(make)(template, self.probe, policy=policy or self.policy(), config=config, **options)
        return cast(Session, session)  # what `make` makes

    def close(self) -> None:
        """Release the weights."""
        self.backend.close()


def load(
    name: str = DEFAULT,
    *,
    backend: str = "auto",
    adapter: str | Path | Adapter = "auto",
    listener: str = "auto",
    allow_worse: bool = False,
    weights: str | None = None,
    context_length: int = 4096,
    threads: int | None = None,
    device: str = "cpu",
    system: str | None = None,
    chat_template: str | None = None,
    sessions: int = 1,
    speaks: bool = True,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model by a short name, a `.gguf` file, a Hugging Face folder, or `owner/name` on the hub.

    Any causal language model with a chat template can be loaded. Trained adapters ship for the default model only. With
    another model, the default model listens: it reads the conversation as the user hears it, and decides, while the
    other one speaks. No training is needed, and listening costs the speaker nothing.

    Args:
        name: see `duologue models`.
        backend: "torch", "llamacpp", "vllm" (with an adapter of kind alora), "reference" (slow; for models that cannot
            roll back), or "auto": llama.cpp for GGUF files if it is installed, otherwise torch.
        adapter: of the model that decides: "auto" (the best one that ships for it), "alora" or "rows" (the shipped
            ones), "prompted", "prompted-5" (with five examples), a folder, or an `Adapter`. A prompted model decides
            poorly, and each decision feeds the whole prompt instead of one probe token.
        listener: the model that decides, by the same kinds of names; "none": this model itself, prompted if it has no
            adapter. "auto": the default model if no adapter ships for this model, and `adapter` names none.
        allow_worse: accept an adapter that decides worse than the prompted model, as its training found.
        weights: for torch and vllm "bf16", "f16" or "f32"; for llama.cpp "BF16", "F16", "Q8_0", "Q4_0", or "as-is" to
            keep those of the file. The default is bf16, but Q8_0 for llama.cpp if the CPU does not compute with BF16;
            files written by `duologue export` stay as they are.
        context_length: tokens of one conversation, at most the model's own limit.
        threads: CPU threads, by default one per core.
        device: the torch device.
        system: the system prompt; None leaves it to the model's template.
        chat_template: Jinja source to use instead of the model's own chat template.
        sessions: simultaneous conversations. The KV cache holds that many whole contexts, half as many again and one
            more, for suspended answers and compactions.
        speaks: False for a model that only listens, because answers come from elsewhere (`Model.spoken_by`). It can
            still speak, but with llama.cpp less efficiently: each conversation has a cache of its own.
        revision: the commit, tag or branch to download from the hub; by default the newest. Pin a commit to load the
            same files every time.
        progress: called with the current step and, where known, the share of it that is done (0 … 1).

    Raises:
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch, WorseAdapter, MissingDependency, TemplateError,
        UsageError.
    """
    _check(backend, context_length, threads, sessions)
    source = find(name, revision)
    request = LoadRequest(
        source=source,
        backend=_choose_backend(backend, source),
        adapter=requested_adapter(adapter, allow_worse=allow_worse),
        weights=weights,
        context_length=context_length,
        sessions=sessions,
        speaks=speaks,
        threads=threads,
        device=device,
        progress=progress or _no_progress,
    )
    listens = partial(
        load,
        backend=backend,
        listener=NO_LISTENER,
        allow_worse=allow_worse,
        context_length=context_length,
        threads=threads,
        device=device,
        sessions=sessions,
        speaks=False,
        progress=progress,
    )
    is_other = listener not in ("auto", NO_LISTENER) and find(listener).location != source.location
    if is_other:
        speaker = _assemble(source, _open(dataclasses.replace(request, adapter=None)), system, chat_template)
        return _with_listener(speaker, partial(listens, listener, adapter=adapter))
    opened = _open(request)
    model = _assemble(source, opened, system, chat_template)
    if opened[2] is not None or listener != "auto":
        return model
    try:
        model = _with_listener(model, partial(listens, DEFAULT))
    except ModelNotFound as error:
        raise ModelNotFound(
            f"no adapter ships for {model.name}, so another model has to listen: {error}; with --listener none "
            '(listener="none"), the model is asked in words, and decides poorly'
        ) from None
    _tell_once(f"no adapter ships for {model.name}: {model.decider.name} listens and decides in its place")
    return model


def named_listener(name: str) -> str:
    """The model that decides where a speaker elsewhere answers, by the option `listener`.

    Raises:
        UsageError: there is to be none.
    """
    require(name != NO_LISTENER, "a speaker elsewhere decides nothing; choose a listener")
    return DEFAULT if name == "auto" else name


def _open(request: LoadRequest) -> OpenedModel:
    openers = {"llamacpp": open_llamacpp, "vllm": open_vllm}
    return openers.get(request.backend, open_torch)(request)


def _with_listener(speaker: Model, load_listener: Callable[[], Model]) -> Model:
    """`speaker`, in whose conversations the model that `load_listener` loads decides."""
    from duologue.backends.pair import PairBackend

    try:
        listener = load_listener()
    except BaseException:
        speaker.close()
        raise
    return dataclasses.replace(
        speaker,
        backend=PairBackend(speaker.backend, listener.backend),
        adapter=listener.adapter,
        probe=listener.probe,
        listener=listener,
    )


@cache
def _tell_once(message: str) -> None:
    log.warning(message)


def read_template(path: str | None) -> str | None:
    """The Jinja source in the file at `path`; None if no path is given.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the chat template {path} cannot be read: {error}") from error


def _check(backend: str, context_length: int, threads: int | None, sessions: int) -> None:
    refuse(
        [
            (
                context_length < 256,
                f"a context of {context_length} tokens is too short for a conversation; give at least 256",
            ),
            (threads is not None and threads < 1, f"threads {threads} must be at least 1, or None for one per core"),
            (sessions < 1, f"sessions {sessions} must be at least 1"),
            (backend not in BACKENDS, f"no backend {backend!r}; there are {', '.join(BACKENDS)}"),
        ]
    )


def _choose_backend(wanted: str, source: ModelSource) -> str:
    if wanted != "auto":
        return wanted
    return "llamacpp" if source.is_gguf and importlib.util.find_spec("llama_cpp") is not None else "torch"


def _assemble(source: ModelSource, opened: OpenedModel, system: str | None, chat_template: str | None) -> Model:
    """Check that template, adapter and backend fit together; close the backend if they do not.

    Without an adapter, the model is prompted.
    """
    backend, tokenizer, adapter = opened
    adapter = adapter or prompted()
    try:
        template = Template.from_tokenizer(
            tokenizer, system=system and well_formed(system), chat_template=chat_template
        )
        probe = adapter.probe_for(backend.info.vocab_size, template)
    except BaseException:
        backend.close()
        raise
    return Model(source.name, backend, template, adapter, probe, backend.info.context_length, path=source.path)


def _no_progress(what: str, share: float | None = None) -> None:
    pass
