"""Writes a Hugging Face folder with an adapter's rows and LoRA, for vLLM with this package's plug-in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from duologue.backends.lora import Lora, adapter_digest
from duologue.backends.rows import AdapterRows
from duologue.backends.sampling import weigh
from duologue.backends.torch.huggingface import CausalModel
from duologue.backends.torch.loading import read_model
from duologue.backends.torch.lora_modules import LoraModules
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.backends.vllm.plugin import (
    ARCHITECTURES,
    CONFIG_KEY,
    OUTPUTS,
    PACKED,
    PREFIX,
    TENSORS,
    ExportedAdapter,
)
from duologue.errors import EngineError, UnsupportedModel, UsageError, require
from duologue.export.huggingface import add_tokens, enlarge, matrix_scales
from duologue.export.inspection import DECISION_TOLERANCE, check_out, prompts_of, token_names
from duologue.models.adapters import Adapter, Fingerprint
from duologue.text.template import Template
from duologue.types import Token

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class VllmFolder:
    """What was written for vLLM, and the result of its check."""

    path: Path
    architecture: str  # the class that the plug-in registers
    vocab_size: int  # rows of the matrices: base, added and padding
    added: dict[str, Token]  # the id of each added token by its text
    adapter: ExportedAdapter
    decision_error: float  # the largest difference of a probability from that of the adapter


def export_vllm(
    source: Path | str,
    adapter: Adapter,
    out: Path,
    *,
    revision: str | None = None,
    dtype: str = "bfloat16",
    force: bool = False,
) -> VllmFolder:
    """Write the model of `source` (a folder, a GGUF file or a hub name) with `adapter` to the folder `out`; check it.

    The weights are those of the base, with matrices enlarged for the added tokens and the probe's row in the
    embeddings. Output rows and LoRA are tensors of their own, in float32, which the plug-in reads.

    Raises:
        UsageError: `out` exists (without `force`), the adapter has no LoRA, or the tokenizer has such tokens already.
        AdapterMismatch: the adapter was trained for another model.
        UnsupportedModel: the plug-in has no class for this model, or does not apply LoRA to one of its layers.
        ModelNotFound, BrokenModel: see `backends.torch.loading.read_model`.
        EngineError: what was written failed its check; it is left in place for inspection.
    """
    rows, lora = adapter.rows, adapter.lora
    if rows is None or lora is None:
        raise UsageError(
            f"the adapter is of kind {adapter.kind} and has no LoRA, so vLLM needs no plug-in for it; "
            + ("use --format hf" if rows is not None else "train one of kind alora with `duologue train alora`")
        )
    names = token_names(rows, adapter.states)
    _check_layers(lora)
    require(force or not out.exists(), f"{out} exists already; give another path, or --force to replace it")
    model, tokenizer = read_model(source, revision=revision, dtype=dtype)
    architecture = _architecture(model)
    wrapped = HfTokenizer(tokenizer)
    adapter.check(_fingerprint(model, wrapped))
    check_out(out, force=force)
    prompts = prompts_of(Template.from_tokenizer(wrapped))
    expected = _decisions(CausalModel(model, rows, lora), rows, prompts)
    added = add_tokens(tokenizer, names)
    ids = tuple(added.values())
    base_size = CausalModel(model, None).vocab_size
    _place(model, rows, ids)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    exported = _describe(adapter, rows, lora, ids, base_size)
    _write_adapter(out, rows, lora, exported, architecture)
    size, error = _check(out, dtype, exported, prompts, expected)
    return VllmFolder(out, architecture, size, added, exported, error)


def _check_layers(lora: Lora) -> None:
    known = {part for parts in PACKED.values() for part in parts}
    other = sorted({path for path in lora.layers if ".".join(path.split(".")[2:]) not in known})
    if other:
        raise UnsupportedModel(
            f"the LoRA changes {', '.join(other[:4])}, and in vLLM only {', '.join(sorted(known))} can be changed; "
            "train an adapter without these layers"
        )


def _architecture(model: Any) -> str:
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"the plug-in for vLLM has no class for {name}; there are {', '.join(ARCHITECTURES)}. An adapter of kind "
            "rows needs no plug-in: use --format hf"
        )
    return ARCHITECTURES[name]


def _fingerprint(model: Any, tokenizer: HfTokenizer) -> Fingerprint:
    return Fingerprint.of(
        tokenizer,
        vocab_size=CausalModel(model, None).vocab_size,
        hidden_size=int(model.get_input_embeddings().weight.shape[1]),
        num_layers=int(model.config.get_text_config().num_hidden_layers),
    )


@torch.no_grad()
def _place(model: Any, rows: AdapterRows, ids: Sequence[Token]) -> None:
    """Put the rows of the probes into the embeddings. Their output rows are never drawn, whatever is in them."""
    enlarge(model, ids)
    inputs = model.get_input_embeddings()
    input_scale, _ = matrix_scales(model)
    inputs.weight[list(ids[: rows.num_probes])] = torch.from_numpy(rows.probes / input_scale).to(inputs.weight)


def _describe(adapter: Adapter, rows: AdapterRows, lora: Lora, ids: Sequence[Token], base_size: int) -> ExportedAdapter:
    outputs = ids[rows.num_probes :]
    return ExportedAdapter(
        base_size=base_size,
        first_added=ids[0],
        num_probes=rows.num_probes,
        num_outputs=len(outputs),
        lora_scale=lora.scale,
        states={state.value: token for state, token in zip(adapter.states, outputs, strict=False)},
        timing=tuple(outputs[len(adapter.states) :]),
        digest=adapter_digest(rows, lora),
    )


def _write_adapter(out: Path, rows: AdapterRows, lora: Lora, exported: ExportedAdapter, architecture: str) -> None:
    """Add the adapter to a folder: its tensors, to the index if there is one, and what describes them."""
    tensors = {f"{PREFIX}{name}": np.asarray(matrix, np.float32) for name, matrix in lora.tensors().items()}
    save_file({OUTPUTS: rows.outputs, **tensors}, out / TENSORS)
    index = out / _INDEX
    if index.is_file():  # vLLM reads the files that it names and no others
        content = _read_json(index)
        content["weight_map"].update(dict.fromkeys((OUTPUTS, *tensors), TENSORS))
        _write_json(index, content)
    config = _read_json(out / "config.json")
    _write_json(out / "config.json", {**config, "architectures": [architecture], CONFIG_KEY: exported.as_json()})


def _check(
    out: Path, dtype: str, exported: ExportedAdapter, prompts: Sequence[Sequence[Token]], expected: list[float]
) -> tuple[int, float]:
    """Read the folder again. Returns the rows of its matrices, and the largest difference of a probability."""
    model, _ = read_model(out, dtype=dtype)
    tensors = load_file(out / TENSORS)
    lora = Lora.from_tensors({name.removeprefix(PREFIX): t for name, t in tensors.items()}, exported.lora_scale)
    causal, modules = CausalModel(model, None), LoraModules(model.get_decoder(), lora, str(out))
    probe = tuple(range(exported.first_added, exported.first_output))
    num, found = len(exported.states), list[float]()
    for prompt in prompts:
        tokens = (*prompt, *probe)
        with modules.at(range(len(prompt), len(tokens)), len(tokens)):
            _, hidden = causal.run(tokens, [len(prompt)])
        read = tensors[OUTPUTS] @ hidden[-1].float().numpy()
        found += (*weigh(read[:num]), *(weigh(read[num:]) if exported.timing else ()))
    error = float(np.abs(np.subtract(found, expected)).max())
    if not error <= DECISION_TOLERANCE:
        raise EngineError(f"{out} was written but failed its check: probabilities are off by up to {error:.3f}")
    return causal.vocab_size, error


def _decisions(causal: CausalModel, rows: AdapterRows, prompts: Sequence[Sequence[Token]]) -> list[float]:
    """The probabilities of the states, and of the timing pair, after each prompt."""
    found = list[float]()
    for prompt in prompts:
        tokens = (*prompt, *range(causal.vocab_size, causal.vocab_size + rows.num_probes))
        _, hidden = causal.run(tokens, [len(prompt)])
        for group in rows.output_groups:
            found += weigh(group @ hidden[-1].float().numpy())
    return found


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
