"""Opens GGUF files with llama.cpp: silences its log, translates its failures, exposes its metadata as plain values."""

import ctypes
import os
import re
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

# Between the many short steps of a pass, OpenMP threads spin for a while before they sleep. By default they spin long
# enough to starve other threads, including our own event loop; without spinning, a pass takes twice as long. OpenMP
# reads this once, when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import llama_cpp as ll

from duologue.backends.llamacpp.gguf_embeddings import EmbeddingMatrix
from duologue.backends.llamacpp.gguf_facts import (
    BASE_VOCAB_KEY,
    NUM_ADDED_KEY,
    NUM_CASCADE_KEY,
    NUM_PROBES_KEY,
    weights_label,
)
from duologue.backends.llamacpp.gguf_header import GgufHeader, read_header
from duologue.errors import AdapterMismatch, BrokenModel, EngineError, ModelNotFound, UnsupportedModel, refuse

_MAX_LAYERS = 512

_messages: deque[str] = deque(maxlen=20)


@ll.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_message(level: int, text: bytes | None, _: object) -> None:
    # ggml's levels: 3 is a warning, 4 an error.
    if level in (3, 4) and text:
        _messages.append(text.decode("utf-8", "replace").strip())


def last_messages() -> str:
    """llama.cpp's latest warnings and errors, for error messages."""
    return "; ".join(list(_messages)[-3:]) or "no reason was given"


ll.llama_log_set(_keep_message, ctypes.c_void_p(0))
ll.llama_backend_init()


def default_weights() -> str:
    """The weight type that is fast on this CPU and loses little or nothing of a file's quality.

    With bfloat16 instructions, BF16 is the fastest when several tokens share a pass, as they do while listening.
    """
    return "BF16" if b"AVX512_BF16 = 1" in ll.llama_print_system_info() else "Q8_0"


def instructions() -> list[str]:
    """The instruction sets that llama.cpp was built with and uses here, as it names them."""
    text = ll.llama_print_system_info().decode("utf-8", "replace")
    return [part.split("=")[0].strip() for part in re.split(r"[|:]", text) if part.strip().endswith("= 1")]


@final
class LoadedModel:
    """The weights and metadata of one GGUF file.

    It counts its users: whoever loaded it and whoever called `shared` must call `close`, and the last call releases it.

    Raises:
        ModelNotFound: there is no such file.
        BrokenModel: the file is not GGUF, or is damaged.
        UnsupportedModel: llama.cpp does not know the architecture, or the model cannot roll back.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        header = read_header(path)
        _check_header(path, header)
        _messages.clear()
        params = ll.llama_model_default_params()
        params.vocab_only = vocab_only
        self.path = path
        self.metadata = header.values  # numbers, booleans and strings of the file, by key
        self.architecture = str(self.metadata.get("general.architecture", "unknown"))
        self._num_users = 1
        self._loras: dict[Path, Any] = {}
        self.handle: Any = ll.llama_model_load_from_file(os.fsencode(path), params)  # llama.cpp's pointer
        if not self.handle:
            raise _load_error(path)
        try:
            if not vocab_only:
                self._check_kind()
            self._describe()
            self._open_embeddings(header)
        except (TypeError, ValueError) as error:
            self.close()
            raise BrokenModel(f"{path.name} has metadata of the wrong type: {error}") from error
        except (BrokenModel, UnsupportedModel):
            self.close()
            raise

    def _open_embeddings(self, header: GgufHeader) -> None:
        """Set `embeddings`; None where rows cannot be fed, for the reason in `no_embeddings`."""
        self.embeddings: EmbeddingMatrix | None = None
        self.no_embeddings = ""
        try:
            self.embeddings = EmbeddingMatrix(self.path, header)
        except UnsupportedModel as error:
            self.no_embeddings = str(error)

    def _describe(self) -> None:
        """Set the public attributes."""
        self.name = str(self.metadata.get("general.name") or self.path.stem)  # for display
        label = weights_label(int(ll.llama_model_ftype(self.handle)) & ~1024)  # 1024: guessed from the tensors
        self.weights = label.lower() if label in ("F32", "F16", "BF16") else label  # such as "bf16" or "Q4_0"
        # Rows of the output matrix: base, added, cascade and padding ids. The file declares all but the last.
        self.vocab_size = int(ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.handle)))
        self.base_vocab_size = int(self.metadata.get(BASE_VOCAB_KEY, self.vocab_size))
        self.num_added = int(self.metadata.get(NUM_ADDED_KEY, 0))
        self.num_cascade = int(self.metadata.get(NUM_CASCADE_KEY, 0))
        self.num_probes = int(self.metadata[NUM_PROBES_KEY]) if NUM_PROBES_KEY in self.metadata else None
        self.context_length = int(ll.llama_model_n_ctx_train(self.handle))
        self.sliding_window = int(ll.llama_model_n_swa(self.handle))  # of the layers that have one; 0 for none
        # The model squashes its logits into ± this; 0 if it does not.
        self.softcap = float(self.metadata.get(f"{self.architecture}.final_logit_softcapping", 0.0))

    @property
    def kv_numbers_per_token(self) -> int:
        """The numbers in one KV entry, over all layers."""
        width = int(ll.llama_model_n_embd(self.handle)) // max(1, int(ll.llama_model_n_head(self.handle)))
        key = int(self.metadata.get(f"{self.architecture}.attention.key_length") or width)
        value = int(self.metadata.get(f"{self.architecture}.attention.value_length") or width)
        heads = int(ll.llama_model_n_head_kv(self.handle))
        return int(ll.llama_model_n_layer(self.handle)) * heads * (key + value)

    def lora(self, path: Path) -> Any:
        """llama.cpp's pointer to a LoRA for this model, which owns it. Load it before a context is opened.

        Raises:
            ModelNotFound: there is no such file.
            AdapterMismatch: the file is not a LoRA, or not one for this model.
        """
        if path in self._loras:
            return self._loras[path]
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path}; give the path of a GGUF file with a LoRA")
        _messages.clear()
        lora = ll.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not lora:
            raise AdapterMismatch(
                f"llama.cpp cannot apply the LoRA {path.name} to {self.path.name}: {last_messages()}; "
                "write it for this model with duologue.backends.llamacpp.gguf_lora.write_lora"
            )
        self._loras[path] = lora
        return lora

    def shared(self) -> "LoadedModel":
        """This model with one more user, who must close it."""
        self._num_users += 1
        return self

    def close(self) -> None:
        """Release the weights if there are no other users. Closing again is harmless."""
        self._num_users -= 1
        if self.handle and self._num_users <= 0:
            ll.llama_model_free(self.handle)
            self.handle = None

    def _check_kind(self) -> None:
        handle, label = self.handle, f"{self.path.name} ({self.architecture})"
        advice = (
            "duplex decoding rolls back after every probe, so use a model with plain attention such as SmolLM2, Llama, "
            "Qwen or Gemma"
        )
        reasons = (
            (
                ll.llama_model_is_recurrent(handle),
                "is recurrent: it keeps a running state instead of an entry per token, and cannot roll back",
            ),
            (
                ll.llama_model_is_hybrid(handle),
                "mixes attention with recurrent layers, whose running state cannot roll back",
            ),
            (
                ll.llama_model_is_diffusion(handle),
                "is a diffusion model: it does not generate from left to right",
            ),
            (
                ll.llama_model_has_encoder(handle) or not ll.llama_model_has_decoder(handle),
                "has an encoder: it is not a decoder-only model",
            ),
        )
        refuse(((is_so, f"{label} {reason}; {advice}") for is_so, reason in reasons), UnsupportedModel)


def open_context(
    model: LoadedModel,
    closing: ExitStack,
    *,
    capacity: int,
    max_seqs: int,
    micro_batch: int,
    threads: int,
    flash_attention: bool = True,
    kv_type: str = "f16",
) -> Any:
    """A llama.cpp context whose sequences share one cache of `capacity` entries. `closing` releases it.

    Raises:
        EngineError: llama.cpp cannot allocate it.
        UnsupportedModel: the model has no KV cache, as is the case for embedding models.
    """
    params = ll.llama_context_default_params()
    params.n_ctx = capacity
    # A pass larger than n_batch fails an assertion in llama.cpp, as does room for fewer tokens than sequences.
    params.n_batch = max(capacity, max_seqs)
    params.n_ubatch = min(micro_batch, params.n_batch)
    params.n_seq_max = max_seqs
    # Every token of a pass may be scored; a pass that wants more rows of logits than this fails an assertion.
    params.n_outputs_max = params.n_outputs_max_per_seq = params.n_batch
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True  # one pool of cells: a fork adds its id to cells and copies nothing
    params.swa_full = True  # layers with a window keep all entries, so that rollback is exact
    params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = ll.GGML_TYPE_F32 if kv_type == "f32" else ll.GGML_TYPE_F16
    context = ll.llama_init_from_model(model.handle, params)
    if not context:
        raise EngineError(
            f"llama.cpp could not open {capacity} KV entries for {model.path.name}: {last_messages()}; "
            "use a smaller capacity"
        )
    closing.callback(ll.llama_free, context)
    if not ll.llama_get_memory(context):
        raise UnsupportedModel(f"{model.path.name} ({model.architecture}) has no KV cache; it does not generate text")
    return context


def remove_from_cache(context: Any, seq_id: int, start: int) -> None:
    """Remove a sequence from the cache of `context`, from position `start` on.

    Raises:
        EngineError: llama.cpp refused.
    """
    if not ll.llama_memory_seq_rm(ll.llama_get_memory(context), seq_id, start, -1):
        raise EngineError(f"llama.cpp could not roll a sequence back to {start}; this is a defect, please report it")


def set_lora(context: Any, lora: Any | None) -> None:
    """Apply `lora` to all further passes of `context`; None removes it.

    Raises:
        EngineError: llama.cpp refused.
    """
    adapters = None if lora is None else (ctypes.c_void_p * 1)(ctypes.cast(lora, ctypes.c_void_p))
    scales = None if lora is None else (ctypes.c_float * 1)(1.0)
    pointer = None if adapters is None else ctypes.cast(adapters, ctypes.POINTER(ll.llama_adapter_lora_p_ctypes))
    if ll.llama_set_adapters_lora(context, pointer, 0 if lora is None else 1, scales) != 0:
        raise EngineError(f"llama.cpp did not set the LoRA: {last_messages()}")


def _check_header(path: Path, header: GgufHeader) -> None:
    """Raise `BrokenModel` for what llama.cpp does not check, but asserts."""
    arch = header.values.get("general.architecture")
    epsilons = [value for key, value in header.values.items() if key.endswith("epsilon")]
    num_layers = header.values.get(f"{arch}.block_count", 1)
    problems = (
        (header.num_repeated_tokens > 0, f"{header.num_repeated_tokens} tokens have the text of another"),
        (
            not (isinstance(num_layers, int) and 1 <= num_layers <= _MAX_LAYERS),
            f"it declares {num_layers} layers; llama.cpp supports 1 to {_MAX_LAYERS}",
        ),
        (
            not all(isinstance(value, float) and value >= 0.0 for value in epsilons),
            "a norm's epsilon is not a positive number",
        ),
    )
    refuse(
        (
            (is_so, f"llama.cpp cannot load {path.name}: {problem}; the download may be incomplete")
            for is_so, problem in problems
        ),
        BrokenModel,
    )


def _load_error(path: Path) -> Exception:
    reason = last_messages()
    if "unknown model architecture" in reason:
        return UnsupportedModel(
            f"this llama.cpp does not know the architecture of {path.name}: {reason}; "
            "install a newer llama-cpp-python, or load the model with the torch backend"
        )
    return BrokenModel(f"llama.cpp cannot load {path.name}: {reason}; the download may be incomplete")
