"""From a name to a model that is ready to talk: backend, template, adapter and probe, made to fit each other.

Heavy libraries are imported by the branch that needs them, and only then.
"""

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duologue.adapters import Adapter, Fingerprint, default_for, prompted
from duologue.catalogue import DEFAULT, Source, find
from duologue.core.backend import Backend
from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.probe import Probe
from duologue.core.session import Session
from duologue.errors import MissingDependency, UsageError
from duologue.template import Template, Tokenizer

TORCH_WEIGHTS = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
GGUF_WEIGHTS = ("BF16", "F16", "Q8_0", "Q4_0")
MAX_SEQS = 16  # a session needs up to eight: the live branch, an input, suspended answers, a rebuild, forks in passing


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

    def session(self, *, policy: Policy | None = None, config: SessionConfig | None = None, **options: Any) -> Session:
        """A conversation with this model; `options` as of `Session`."""
        config = config or SessionConfig()
        if config.max_length > self.max_length:
            config = dataclasses.replace(config, max_length=self.max_length)
        return Session(self.template, self.probe, policy=policy or self.policy(), config=config, **options)

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
) -> Model:
    """Load a model by a short name, a `.gguf` file, a Hugging Face folder, or `owner/name` of the hub.

    Args:
        name: see `duologue models`.
        backend: "torch", "llamacpp", "reference" (slow; for models that cannot roll back), or "auto": llama.cpp for
            GGUF where it is installed, else torch.
        adapter: "auto" (the one that comes with the package for this model, else prompted), "prompted", "prompted-5",
            a folder, or an `Adapter`.
        weights: for torch "bf16", "f16" or "f32"; for llama.cpp "BF16", "F16", "Q8_0", "Q4_0", or "as-is" for those of
            the file. By default bf16 and Q8_0.
        context_length: tokens of one conversation; at most what the model was made for.
        threads: of the CPU; by default one a core.
        device: for torch.
        system: system prompt; None leaves it to the model's template.

    Raises:
        ModelNotFound, BrokenModel, UnsupportedModel, AdapterMismatch, MissingDependency, TemplateError, UsageError.
    """
    if context_length < 256:
        raise UsageError(f"a context of {context_length} tokens is too short for a conversation; give at least 256")
    source = find(name)
    if backend == "auto":
        backend = "llamacpp" if source.is_gguf and _is_installed("llama_cpp") else "torch"
    if backend == "llamacpp":
        return _load_llamacpp(source, adapter, weights, context_length, threads, system)
    if backend in ("torch", "reference"):
        return _load_torch(source, backend, adapter, weights, context_length, threads, device, system)
    raise UsageError(f"no backend {backend!r}; there are auto, torch, llamacpp, reference")


def _load_torch(
    source: Source,
    backend: str,
    adapter: str | Path | Adapter,
    weights: str | None,
    context_length: int,
    threads: int | None,
    device: str,
    system: str | None,
) -> Model:
    _need("torch", "torch", "transformers", *(["gguf"] if source.is_gguf else []))
    weights = weights or "bf16"
    if weights not in TORCH_WEIGHTS:
        raise UsageError(f"torch has no weights {weights!r}; there are {', '.join(TORCH_WEIGHTS)}")
    import torch

    from duologue.backends.hf_tokenizer import HfTokenizer
    from duologue.backends.huggingface import CausalModel
    from duologue.backends.reference import ReferenceBackend
    from duologue.backends.torch import TorchBackend, read_model

    if threads is not None:
        torch.set_num_threads(threads)
    where = source.path if source.path is not None else source.name
    model, hf_tokenizer = read_model(where, dtype=TORCH_WEIGHTS[weights], device=device)
    causal = CausalModel(model, None)
    tokenizer = HfTokenizer(hf_tokenizer, stop_tokens=_stop_ids(model))
    fingerprint = Fingerprint.of(
        tokenizer,
        vocab_size=causal.vocab_size,
        hidden_size=model.get_input_embeddings().weight.shape[1],
        num_layers=model.config.get_text_config().num_hidden_layers,
    )
    chosen = _choose(adapter, fingerprint)
    context_length = causal.context_length(min(context_length, causal.context_length(None)))
    limits: dict[str, Any] = {"capacity": 2 * context_length, "max_seqs": MAX_SEQS, "context_length": context_length}
    made: Backend
    if backend == "reference":
        made = ReferenceBackend(model, rows=chosen.rows, **limits)
    else:
        made = TorchBackend(model, rows=chosen.rows, label=source.name, **limits)
    return _assemble(source, made, tokenizer, chosen, system)


def _load_llamacpp(
    source: Source,
    adapter: str | Path | Adapter,
    weights: str | None,
    context_length: int,
    threads: int | None,
    system: str | None,
) -> Model:
    _need("llamacpp", "llama_cpp", "gguf")
    if not source.is_gguf or source.path is None:
        raise UsageError(f"llama.cpp reads GGUF files; {source.name} is none. Use --backend torch, or convert it")
    weights = weights or "Q8_0"
    if weights not in (*GGUF_WEIGHTS, "as-is"):
        raise UsageError(f"llama.cpp has no weights {weights!r}; there are {', '.join(GGUF_WEIGHTS)} and as-is")
    from duologue.backends.gguf_tokenizer import GgufTokenizer
    from duologue.backends.llamacpp import LlamaCppBackend
    from duologue.gguf_files import cached_gguf, read_facts

    facts = read_facts(source.path)
    tokenizer = GgufTokenizer.from_file(source.path)
    fingerprint = Fingerprint.of(
        tokenizer, vocab_size=facts.base_vocab_size, hidden_size=facts.hidden_size, num_layers=facts.num_layers
    )
    chosen = _choose(adapter, fingerprint)
    path = cached_gguf(source.path, weights=None if weights == "as-is" else weights, rows=chosen.rows)
    context_length = min(context_length, facts.context_length)
    made = LlamaCppBackend(
        path, context_length=context_length, capacity=2 * context_length, max_seqs=MAX_SEQS, threads=threads
    )
    return _assemble(source, made, tokenizer, chosen, system)


def _assemble(source: Source, backend: Backend, tokenizer: Tokenizer, adapter: Adapter, system: str | None) -> Model:
    template = Template.from_tokenizer(tokenizer, system=system)
    probe = adapter.probe_for(backend.info.vocab_size, template)
    return Model(source.name, backend, template, adapter, probe, backend.info.context_length)


def _choose(adapter: str | Path | Adapter, fingerprint: Fingerprint) -> Adapter:
    if adapter == "auto":
        return default_for(fingerprint) or prompted()
    if adapter in ("prompted", "prompted-5"):
        return prompted(shots=5 if adapter == "prompted-5" else 0)
    chosen = adapter if isinstance(adapter, Adapter) else Adapter.load(Path(adapter).expanduser())
    chosen.check(fingerprint)
    return chosen


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
