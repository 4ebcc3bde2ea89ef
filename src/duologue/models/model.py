"""From a name to a model that is ready to talk.

`load` finds the model and the adapter, opens the weights on a backend, and checks that template, adapter and weights
fit together. How each library opens weights is in `opening`.
"""

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.errors import refuse
from duologue.models.adapters import Adapter, requested_adapter
from duologue.models.catalogue import DEFAULT, ModelSource, find
from duologue.models.opening import LoadRequest, OpenedModel, Progress, open_llamacpp, open_torch
from duologue.text.template import Template
from duologue.types import Role, Turn, well_formed

BACKENDS = ("auto", "torch", "llamacpp", "reference")


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model with its adapter."""

    name: str
    backend: Backend
    template: Template
    adapter: Adapter
    probe: Probe
    max_length: int  # tokens of one conversation

    def policy(self, **changes: Any) -> Policy:
        """The adapter's thresholds for these weights, with `changes` to the other fields of `Policy`."""
        idle, speaking = self.adapter.thresholds_for(self.backend.info.weights)
        return Policy(**{"idle": idle, "speaking": speaking, **changes})

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
        template = self.template
        if system is not None:
            config.check_size([Turn(Role.SYSTEM, system)])
            template = template.with_system(well_formed(system))
        return make(template, self.probe, policy=policy or self.policy(), config=config, **options)

    def close(self) -> None:
        """Release the weights."""
        self.backend.close()


def load(
    name: str = DEFAULT,
    *,
    backend: str = "auto",
    adapter: str | Path | Adapter = "auto",
    allow_worse: bool = False,
    weights: str | None = None,
    context_length: int = 4096,
    threads: int | None = None,
    device: str = "cpu",
    system: str | None = None,
    sessions: int = 1,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model by a short name, a `.gguf` file, a Hugging Face folder, or `owner/name` on the hub.

    Any causal language model with a chat template can be loaded. How well it decides depends on the adapter. Trained
    adapters ship for the default model only. Without one, "auto" falls back to "prompted": the model is prompted
    for the state of the user's last words. This needs no training, but small models answer poorly, so that backchannels
    such as "mhm" often interrupt an answer, and each decision feeds the whole prompt instead of one probe token. For
    decisions like those of the default model, train an adapter with `duologue train`.

    Args:
        name: see `duologue models`.
        backend: "torch", "llamacpp", "reference" (slow; for models that cannot roll back), or "auto": llama.cpp for
            GGUF files if it is installed, otherwise torch.
        adapter: "auto" (the best one that ships for this model, otherwise prompted), "alora" or "rows" (the shipped
            ones), "prompted", "prompted-5" (with five examples), a folder, or an `Adapter`.
        allow_worse: accept an adapter that decides worse than the prompted model, as its training found.
        weights: for torch "bf16", "f16" or "f32"; for llama.cpp "BF16", "F16", "Q8_0", "Q4_0", or "as-is" to keep those
            of the file. The default is bf16 for torch. For llama.cpp it is BF16 if the CPU computes with it, otherwise
            Q8_0; files written by `duologue export` stay as they are.
        context_length: tokens of one conversation, at most the model's own limit.
        threads: CPU threads, by default one per core.
        device: the torch device.
        system: the system prompt; None leaves it to the model's template.
        sessions: simultaneous conversations. The KV cache holds that many whole contexts, half as many again and one
            more, for suspended answers and compactions.
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
        threads=threads,
        device=device,
        progress=progress or _no_progress,
    )
    opened = open_llamacpp(request) if request.backend == "llamacpp" else open_torch(request)
    return _assemble(source, opened, system)


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


def _assemble(source: ModelSource, opened: OpenedModel, system: str | None) -> Model:
    """Check that template, adapter and backend fit together; close the backend if they do not."""
    backend, tokenizer, adapter = opened
    try:
        template = Template.from_tokenizer(tokenizer, system=system and well_formed(system))
        probe = adapter.probe_for(backend.info.vocab_size, template)
    except BaseException:
        backend.close()
        raise
    return Model(source.name, backend, template, adapter, probe, backend.info.context_length)


def _no_progress(what: str, share: float | None = None) -> None:
    pass
