"""From a name to a model that is ready to talk: backend, template, adapter and probe, made to fit each other.

Heavy libraries are imported by the branch that needs them, and only then.
"""

import dataclasses
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.prompt import Probe
from duologue.core.session import Session
from duologue.errors import AdapterMismatch, MissingDependency, UsageError
from duologue.models.adapters import Adapter, Fingerprint, prompted, shipped_for
from duologue.models.catalogue import DEFAULT, Source, expanded, find
from duologue.text.template import Template, Tokenizer
from duologue.types import well_formed

TORCH_WEIGHTS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
GGUF_WEIGHTS = ("BF16", "F16", "Q8_0", "Q4_0")
AS_IS = "as-is"
BACKENDS = ("auto", "torch", "llamacpp", "reference")
PROMPTED = {"prompted": 0, "prompted-5": 5}
"""Adapters without training, and how many examples the question has."""
TRAINED = ("alora", "rows")
"""Kinds of adapters that come with the package; the first that there is for a model is used."""
_NAMES = ", ".join(("auto", *TRAINED, *PROMPTED))
MOST_SEQS = 128  # of a cache; llama.cpp has no more
_LENGTH_TOGETHER = 2048  # contexts that are no longer than that share one cache of llama.cpp, however many they are
_TOKENS_TOGETHER = 12288  # and so do longer ones, as long as all of them together are no longer than that


class Progress(Protocol):
    """Told what is being done, and which share of it is done (0 … 1) where that is known."""

    def __call__(self, what: str, share: float | None = None) -> None: ...


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
        """A conversation with this model, under `system` if a prompt is given; `options` as of `Session`.

        `make` is another kind of session, such as `duologue.baselines.gated.Turns`.

        Raises:
            ContextOverflow, TemplateError: see `Session`.
        """
        template = self.template if system is None else self.template.with_system(well_formed(system))
        config = config or SessionConfig()
        if config.max_length > self.max_length:
            config = dataclasses.replace(config, max_length=self.max_length)
        return make(template, self.probe, policy=policy or self.policy(), config=config, **options)

    def close(self) -> None:
        """Release the weights."""
        self.backend.close()


def load(
    name: str = DEFAULT,
    *,
    backend: str = "auto",
    adapter: str | Path | Adapter = "auto",
    weights: str | None = None,
    context_length: int = 4096,
    threads: int | None = None,
    device: str = "cpu",
    system: str | None = None,
    sessions: int = 1,
    progress: Progress | None = None,
) -> Model:
    """Load a model by a short name, a `.gguf` file, a Hugging Face folder, or `owner/name` of the hub.

    Args:
        name: see `duologue models`.
        backend: "torch", "llamacpp", "reference" (slow; for models that cannot roll back), or "auto": llama.cpp for
            GGUF where it is installed, else torch.
        adapter: "auto" (the best that comes with the package for this model, else prompted), "alora" or "rows" (those
            that come with it), "prompted", "prompted-5", a folder, or an `Adapter`.
        weights: for torch "bf16", "f16" or "f32"; for llama.cpp "BF16", "F16", "Q8_0", "Q4_0", or "as-is" for those of
            the file. By default bf16 for torch; BF16 for llama.cpp where the CPU computes with it, else Q8_0; a file
            that `duologue export` wrote stays as it is.
        context_length: tokens of one conversation; at most what the model was made for.
        threads: of the CPU; by default one a core.
        device: for torch.
        system: system prompt; None leaves it to the model's template.
        sessions: conversations at the same time (see `Engine`): there is KV for so many whole contexts, half
            as many again and one more, where answers that were cut and contexts in the making are kept.
        progress: called with what is being done and, where that is known, which share of it is done (0 … 1).

    Raises:
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch, MissingDependency, TemplateError, UsageError.
    """
    if context_length < 256:
        raise UsageError(f"a context of {context_length} tokens is too short for a conversation; give at least 256")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot compute anything; give at least 1, or None for one a core")
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
    if sessions < 1:
        raise UsageError(f"{sessions} sessions cannot talk; give at least 1")
    source = find(name)
    if backend == "auto":
        backend = "llamacpp" if source.is_gguf and _is_installed("llama_cpp") else "torch"
    options = _Options(
        source,
        _read_adapter(adapter),
        context_length,
        sessions,
        threads,
        system and well_formed(system),
        progress or _no_progress,
    )
    if backend == "llamacpp":
        return _load_llamacpp(options, weights)
    return _load_torch(options, weights or "bf16", device, is_reference=backend == "reference")


@dataclass(frozen=True, slots=True)
class _Options:
    """What both backends need to know."""

    source: Source
    adapter: Adapter | str  # a kind, or "auto": chosen by the model
    context_length: int
    sessions: int
    threads: int | None
    system: str | None
    progress: Progress


def _limits(sessions: int, length: int) -> dict[str, Any]:
    """Of a cache for so many sessions with contexts of `length` tokens."""
    # One session needs up to eight sequences: the live branch, an input, answers that were cut, a rebuild, forks.
    max_seqs = min(MOST_SEQS, 4 * sessions + 12)
    # Half as much again, and one context more: for words that wait, answers that were cut, contexts in the making.
    capacity = (sessions + 1 + sessions // 2) * length
    return {"context_length": length, "capacity": capacity, "max_seqs": max_seqs}


def sessions_of_a_cache(sessions: int, length: int) -> int:
    """How many of so many sessions with contexts of `length` tokens share a cache of llama.cpp: all, or one each.

    A pass reads the weights once for all that share a cache, and every token in it is shown what all of them hold: the
    second counts for more where there is much of each (`benchmarks/caches.py`). A long conversation fills half of its
    context to three quarters, and most are short, so only contexts that are long for what was measured count as such.
    """
    if length <= _LENGTH_TOGETHER or sessions * length <= _TOKENS_TOGETHER:
        return sessions
    return 1


def _load_torch(options: _Options, weights: str, device: str, *, is_reference: bool) -> Model:
    source = options.source
    _need("torch", "torch", "transformers", *(["gguf"] if source.is_gguf else []))
    weights = _weights("torch", weights, TORCH_WEIGHTS)
    options.progress("starting PyTorch")
    import torch

    from duologue.backends.reference import ReferenceBackend
    from duologue.backends.torch.backend import TorchBackend, read_model
    from duologue.backends.torch.huggingface import CausalModel
    from duologue.backends.torch.tokenizer import HfTokenizer

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    where = source.path if source.path is not None else source.name
    options.progress("reading the weights")
    model, hf_tokenizer = read_model(where, dtype=TORCH_WEIGHTS[weights], device=device)
    causal = CausalModel(model, None)
    tokenizer = HfTokenizer(hf_tokenizer, stop_tokens=_stop_ids(model))
    fingerprint = Fingerprint.of(
        tokenizer,
        vocab_size=causal.vocab_size,
        hidden_size=model.get_input_embeddings().weight.shape[1],
        num_layers=model.config.get_text_config().num_hidden_layers,
    )
    adapter = _choose(options.adapter, fingerprint)
    length = causal.context_length(min(options.context_length, causal.context_length(None)))
    sizes = _limits(options.sessions, length)
    made: Backend
    if is_reference:
        made = ReferenceBackend(model, rows=adapter.rows, lora=adapter.lora, **sizes)
    else:
        made = TorchBackend(model, rows=adapter.rows, lora=adapter.lora, label=source.name, **sizes)
    return _assemble(options, made, tokenizer, adapter)


def _load_llamacpp(options: _Options, wanted: str | None) -> Model:
    source = options.source
    _need("llamacpp", "llama_cpp", "gguf")
    if not source.is_gguf or source.path is None:
        raise UsageError(f"llama.cpp reads GGUF files; {source.name} is none. Use --backend torch, or convert it")
    weights = None if wanted is None else _weights("llama.cpp", wanted, (*GGUF_WEIGHTS, AS_IS))
    options.progress("starting llama.cpp")
    from duologue.backends.llamacpp.backend import open_caches
    from duologue.backends.llamacpp.gguf_files import cached_gguf, read_facts
    from duologue.backends.llamacpp.gguf_lora import cached_lora
    from duologue.backends.llamacpp.library import default_weights
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    facts = read_facts(source.path)
    tokenizer = GgufTokenizer.from_file(source.path)
    fingerprint = Fingerprint.of(
        tokenizer, vocab_size=facts.base_vocab_size, hidden_size=facts.hidden_size, num_layers=facts.num_layers
    )
    adapter = _choose(options.adapter, fingerprint)
    if facts.num_added and adapter.num_added not in (0, facts.num_added):
        raise AdapterMismatch(
            f"{source.path} has {facts.num_added} rows of an adapter already, and this one has {adapter.num_added}; "
            "start from the base model's file"
        )
    # An exported file is ready: the rows in it decide, and its weights were chosen when it was written.
    weights = weights or (AS_IS if facts.num_added else default_weights())
    path = cached_gguf(
        source.path,
        weights=None if weights == AS_IS else weights,
        rows=None if facts.num_added else adapter.rows,
        progress=lambda _, share: options.progress(f"writing {weights} weights to the cache, once", share),
    )
    options.progress("reading the weights")
    length = min(options.context_length, facts.context_length or options.context_length)
    together = sessions_of_a_cache(options.sessions, length)
    made = open_caches(
        path,
        -(-options.sessions // together),
        **_limits(together, length),
        threads=options.threads,
        # Without it, a pass of some tokens in one long sequence is quicker by a fifth and more; with it, what belongs
        # to other sessions is passed over.
        flash_attention=together > 1,
        lora_path=None if adapter.lora is None else cached_lora(source.path, adapter.lora),
        nursery=2 * length if together > 1 else 0,
    )
    return _assemble(options, made, tokenizer, adapter)


def _assemble(options: _Options, backend: Backend, tokenizer: Tokenizer, adapter: Adapter) -> Model:
    try:
        template = Template.from_tokenizer(tokenizer, system=options.system)
        probe = adapter.probe_for(backend.info.vocab_size, template)
    except BaseException:
        backend.close()
        raise
    return Model(options.source.name, backend, template, adapter, probe, backend.info.context_length)


def _read_adapter(adapter: str | Path | Adapter) -> Adapter | str:
    """The adapter that is asked for, before any weights are read; a kind, or "auto", where it is up to the model."""
    if isinstance(adapter, Adapter):
        return adapter
    if adapter in ("auto", *TRAINED):
        return str(adapter)
    if adapter in PROMPTED:
        return prompted(shots=PROMPTED[str(adapter)])
    if not str(adapter):
        raise UsageError(f"no adapter is named; give {_NAMES}, or an adapter folder")
    folder = expanded(str(adapter))
    if not folder.exists():
        raise UsageError(f"no adapter {str(adapter)!r}: give {_NAMES}, or an adapter folder")
    return Adapter.load(folder)


def _choose(adapter: Adapter | str, fingerprint: Fingerprint) -> Adapter:
    if adapter == "auto":
        return next((found for kind in TRAINED if (found := shipped_for(fingerprint, kind))), None) or prompted()
    if isinstance(adapter, str):
        found = shipped_for(fingerprint, adapter)
        if found is None:
            raise AdapterMismatch(
                f"no adapter of kind {adapter} comes along for this model; train one with `duologue train {adapter}`, "
                "or ask in words with --adapter prompted"
            )
        return found
    adapter.check(fingerprint)
    return adapter


def _weights(backend: str, wanted: str, known: Iterable[str]) -> str:
    """The name of a weight type as the backend spells it."""
    for name in known:
        if name.lower() == wanted.lower():
            return name
    raise UsageError(f"{backend} has no weights {wanted!r}; there are {', '.join(known)}")


def _no_progress(what: str, share: float | None = None) -> None:
    pass


def _stop_ids(model: Any) -> list[int]:
    """Ids that end a generation, by the model's own configuration."""
    ids = model.generation_config.eos_token_id
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _need(extra: str, *modules: str) -> None:
    missing = [module for module in modules if not _is_installed(module)]
    if missing:
        raise MissingDependency(
            f'the {extra} backend needs {", ".join(missing)}, not installed here: pip install "duologue[{extra}]"'
        )
