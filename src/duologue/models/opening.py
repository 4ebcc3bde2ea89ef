"""Opens the weights of a model with PyTorch, llama.cpp or vLLM, together with its tokenizer and the adapter for it.

Each function imports its heavy library itself, and only then.
"""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from duologue.backends.lora import Lora, adapter_digest
from duologue.core.backend import Backend
from duologue.errors import AdapterMismatch, MissingDependency, UnsupportedModel, UsageError, require
from duologue.models.adapters import Adapter, Fingerprint, adapter_for, shipped
from duologue.models.catalogue import ModelSource
from duologue.text.tokenizer import Tokenizer

TORCH_WEIGHTS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
GGUF_WEIGHTS = ("BF16", "F16", "Q8_0", "Q4_0")
AS_IS = "as-is"

MAX_SEQS = 128
"""Sequences of one cache; llama.cpp allows no more."""

_SHARED_LENGTH = (
    2048  # sessions whose contexts are no longer than this share one llama.cpp cache, whatever their number
)
_SHARED_TOKENS = 12288  # longer contexts also share one, if all of them together are no longer than this


class Progress(Protocol):
    """Called with the current step and, where known, the share of it that is done (0 … 1)."""

    def __call__(self, what: str, share: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to open, and how. See `model.load`."""

    source: ModelSource
    backend: str  # "torch", "reference", "llamacpp" or "vllm"
    adapter: Adapter | str | None  # or a name, if the choice depends on the model; None: another model decides
    weights: str | None
    context_length: int
    sessions: int
    speaks: bool
    threads: int | None
    device: str
    progress: Progress


OpenedModel: TypeAlias = tuple[Backend, Tokenizer, Adapter | None]
"""Weights on a backend, with the tokenizer and, if there is one, the adapter."""


def open_torch(request: LoadRequest) -> OpenedModel:
    """Open a Hugging Face model or a GGUF file with PyTorch, on the torch or the reference backend."""
    source = request.source
    _require("torch", "torch", "transformers", *(["gguf"] if source.is_gguf else []))
    dtype = TORCH_WEIGHTS[_weight_type("torch", request.weights or "bf16", TORCH_WEIGHTS)]
    request.progress("starting PyTorch")
    import torch

    from duologue.backends.reference import ReferenceBackend
    from duologue.backends.torch.backend import TorchBackend
    from duologue.backends.torch.huggingface import CausalModel
    from duologue.backends.torch.loading import read_model
    from duologue.backends.torch.tokenizer import HfTokenizer

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    request.progress("reading the weights")
    model, hf_tokenizer = read_model(source.location, revision=source.revision, dtype=dtype, device=request.device)
    causal = CausalModel(model, None)
    tokenizer = HfTokenizer(hf_tokenizer, stop_tokens=_stop_ids(model))
    fingerprint = Fingerprint.of(
        tokenizer,
        vocab_size=causal.vocab_size,
        hidden_size=model.get_input_embeddings().weight.shape[1],
        num_layers=model.config.get_text_config().num_hidden_layers,
    )
    adapter = adapter_for(request.adapter, fingerprint)
    limits = cache_limits(request.sessions, min(request.context_length, causal.context_length(None)))
    options = {"rows": adapter and adapter.rows, "lora": adapter and adapter.lora, **limits}
    if request.backend == "reference":
        return ReferenceBackend(model, **options), tokenizer, adapter
    return TorchBackend(model, label=source.name, **options), tokenizer, adapter


def open_llamacpp(request: LoadRequest) -> OpenedModel:
    """Open a GGUF file with llama.cpp, after converting it to the wanted weight type with the adapter's rows."""
    path = request.source.path
    _require("llamacpp", "llama_cpp", "gguf")
    if not request.source.is_gguf or path is None:
        raise UsageError(
            f"llama.cpp reads GGUF files, and {request.source.name} is not one. Use --backend torch, or convert it"
        )
    wanted = request.weights and _weight_type("llama.cpp", request.weights, (*GGUF_WEIGHTS, AS_IS))
    request.progress("starting llama.cpp")
    from duologue.backends.llamacpp.attention import prefers_flash
    from duologue.backends.llamacpp.backend import open_caches
    from duologue.backends.llamacpp.gguf_convert import cached_gguf
    from duologue.backends.llamacpp.gguf_facts import read_facts
    from duologue.backends.llamacpp.gguf_lora import cached_lora
    from duologue.backends.llamacpp.library import default_weights
    from duologue.backends.llamacpp.tokenizer import GgufTokenizer

    facts = read_facts(path)
    tokenizer = GgufTokenizer.from_file(path)
    fingerprint = Fingerprint.of(
        tokenizer, vocab_size=facts.base_vocab_size, hidden_size=facts.hidden_size, num_layers=facts.num_layers
    )
    adapter = adapter_for(request.adapter, fingerprint)
    lora = separate_lora(path, facts.one_pass, adapter)
    if facts.num_added and adapter is not None and adapter.num_added not in (0, facts.num_added):
        raise AdapterMismatch(
            f"{path} already has {facts.num_added} rows of an adapter, but this adapter has {adapter.num_added}; "
            "start from the base model's file"
        )
    # An exported file is ready: its rows are used, and its weight type was chosen when it was written.
    weights = wanted or (AS_IS if facts.num_added else default_weights())
    cascade = None if adapter is None or facts.num_added else adapter.cascade  # exported files have none
    converted = cached_gguf(
        path,
        weights=None if weights == AS_IS else weights,
        rows=None if facts.num_added or adapter is None else adapter.rows,
        cascade=None if cascade is None else cascade.rows,
        progress=lambda _, share: request.progress(f"writing {weights} weights to the cache, once", share),
    )
    request.progress("reading the weights")
    length = min(request.context_length, facts.context_length or request.context_length)
    shared = sessions_per_cache(request.sessions, length, speaks=request.speaks)
    # In a cache with one session, standard attention is faster wherever it was measured.
    is_flash = shared > 1 and prefers_flash(converted, shared)
    backend = open_caches(
        converted,
        -(-request.sessions // shared),
        **cache_limits(shared, length),
        threads=request.threads,
        flash_attention=is_flash,
        lora_path=None if lora is None else cached_lora(path, lora),
        cascade_limit=None if cascade is None or adapter is None else adapter.cascade_limit,
        prefill_capacity=2 * length if shared > 1 else 0,
    )
    return backend, tokenizer, adapter


def open_vllm(request: LoadRequest) -> OpenedModel:
    """Open a folder that `duologue export --format vllm` wrote, or any model after exporting it to the cache."""
    _require("vllm", "vllm", "torch", "transformers")
    require(request.device == "cpu", "vLLM computes on the device that it was built for; leave out --device")
    require(request.threads is None, "vLLM chooses its threads (VLLM_CPU_OMP_THREADS_BIND); leave out --threads")
    from duologue.backends.torch.loading import read_stop_tokens, read_tokenizer
    from duologue.backends.torch.tokenizer import HfTokenizer
    from duologue.backends.vllm.opening import ExportedModel, is_export, open_exported

    path = request.source.path
    folder = path if path is not None and is_export(path) else _cached_export(request)
    model = ExportedModel.read(folder)
    tokenizer = HfTokenizer(read_tokenizer(folder), stop_tokens=read_stop_tokens(folder))
    fingerprint = Fingerprint.of(
        tokenizer, vocab_size=model.adapter.base_size, hidden_size=model.hidden_size, num_layers=model.num_layers
    )
    adapter = _exported_adapter(request, model.adapter.digest, adapter_for(request.adapter, fingerprint))
    stored = next(name for name, dtype in TORCH_WEIGHTS.items() if dtype == model.dtype)
    weights = _weight_type("vllm", request.weights or stored, TORCH_WEIGHTS)
    request.progress("starting vLLM")
    backend = open_exported(
        model,
        request.source.name,
        dtype=TORCH_WEIGHTS[weights],
        weights=weights,
        context_length=request.context_length,
        sessions=request.sessions,
    )
    return backend, tokenizer, adapter


def _digest(adapter: Adapter | None) -> str | None:
    """The `adapter_digest` of an adapter with a LoRA."""
    if adapter is None or adapter.rows is None or adapter.lora is None:
        return None
    return adapter_digest(adapter.rows, adapter.lora)


def _exported_adapter(request: LoadRequest, digest: str | None, adapter: Adapter | None) -> Adapter:
    """`adapter`, if it is the one that a folder was exported with."""
    name = request.source.name
    if adapter is None or adapter.lora is None:
        found = "no adapter" if adapter is None else f"an adapter of kind {adapter.kind}"
        raise UnsupportedModel(
            f"vLLM needs an adapter of kind alora that decides for {name} itself, and there is {found}: train one with "
            "`duologue train alora`, or let another model listen, with vLLM as an endpoint that answers (--speaker)"
        )
    if _digest(adapter) != digest:
        raise AdapterMismatch(
            f"{name} was exported with another adapter than {adapter.name or '(unnamed)'}: give that one with "
            "--adapter, or export the model again with `duologue export --format vllm`"
        )
    return adapter


def _cached_export(request: LoadRequest) -> Path:
    """The folder in the cache to which the model of `request` is exported with its adapter."""
    from duologue.backends.file_cache import cached_folder, path_digest
    from duologue.export.vllm import export_vllm

    source, wanted = request.source, request.adapter
    if source.path is None:
        raise UsageError(
            f"{source.name} is on the hub: write it to a folder first, with `duologue export --format vllm --model "
            f"{source.name} --out FOLDER`, and give that folder"
        )
    weights = _weight_type("vllm", request.weights or "bf16", TORCH_WEIGHTS)

    def write(out: Path) -> None:
        request.progress("exporting the model for vLLM, once")
        backend, _, adapter = open_torch(replace(request, backend="torch", weights=weights, context_length=256))
        backend.close()
        own = _exported_adapter(request, _digest(adapter), adapter)
        export_vllm(source.location, own, out, dtype=TORCH_WEIGHTS[weights])

    candidates = [wanted] if isinstance(wanted, Adapter) else shipped()
    digests = list(filter(None, map(_digest, candidates)))
    what = path_digest(source.path, after=f" {wanted if isinstance(wanted, str) else ''} {digests}")
    return cached_folder("vllm", f"{source.path.stem}-{weights}-{what.hexdigest()[:16]}", write)


def separate_lora(path: Path, one_pass: str | None, adapter: Adapter | None) -> Lora | None:
    """The LoRA of `adapter`; None if the file at `path` applies it itself, as `one_pass` (`GgufFacts.one_pass`) says.

    Raises:
        AdapterMismatch: the file applies that of another adapter.
    """
    if adapter is None or adapter.rows is None:
        return None  # it does not ask the LoRA in the file either
    if one_pass is None:
        return adapter.lora
    if adapter.lora is None or adapter_digest(adapter.rows, adapter.lora) != one_pass:
        raise AdapterMismatch(
            f"{path} is a one-pass file of another adapter than {adapter.name or '(unnamed)'} ({adapter.kind}): it "
            "applies that one's LoRA itself. Load it with the adapter that it was exported with, or export it again"
        )
    return None


def cache_limits(sessions: int, length: int) -> dict[str, Any]:
    """`capacity`, `max_seqs` and `context_length` of a cache for so many sessions with contexts of `length` tokens.

    A session uses up to eight sequences: output channel, input channel, suspended answers, a compaction, forks. The
    capacity is that of all contexts, half as much again and one context more, for waiting words, suspended answers and
    compactions.
    """
    capacity = (sessions + 1 + sessions // 2) * length
    return {"context_length": length, "capacity": capacity, "max_seqs": min(MAX_SEQS, 4 * sessions + 12)}


def sessions_per_cache(sessions: int, length: int, *, speaks: bool = True) -> int:
    """How many of the sessions, with contexts of `length` tokens, share a llama.cpp cache: all, or one each.

    One pass reads the weights once for all sessions that share a cache, but the attention of each token covers the
    entries of all of them. The latter outweighs the former for long contexts (`benchmarks/caches.py`). A long
    conversation fills half to three quarters of its context, and most are short, so only contexts that were long in
    the measurement count as long.

    A model that only listens (`speaks` is false) reads several tokens of one conversation at a time: there is nothing
    to share, but the entries of all conversations would be attended to.
    """
    if not speaks:
        return 1
    return sessions if length <= _SHARED_LENGTH or sessions * length <= _SHARED_TOKENS else 1


def _weight_type(backend: str, wanted: str, known: Iterable[str]) -> str:
    """The weight type as the backend spells it."""
    for name in known:
        if name.lower() == wanted.lower():
            return name
    raise UsageError(f"{backend} has no weights {wanted!r}; there are {', '.join(known)}")


def _stop_ids(model: Any) -> list[int]:
    """The ids that end a generation according to the model's own configuration."""
    ids = model.generation_config.eos_token_id
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [int(ids)]


def _require(extra: str, *modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependency(
            f'the {extra} backend needs {", ".join(missing)}, which is not installed: pip install "duologue[{extra}]"'
        )
