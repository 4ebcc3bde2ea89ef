"""Writes a Hugging Face folder with an adapter's rows, for vLLM, transformers and other engines that read it.

An adapter's LoRA is written to a PEFT folder of its own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from duologue.backends.lora import Lora
from duologue.backends.rows import AdapterRows
from duologue.backends.torch.huggingface import CausalModel
from duologue.backends.torch.loading import read_model
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.errors import BrokenModel, require
from duologue.export.inspection import ExportReport, Inspection, check_out, check_report, prompts_of, token_names
from duologue.export.suppression import FloatArray, SuppressedRows, suppress
from duologue.text.template import Template
from duologue.types import InputState, Token

PAD_MULTIPLE = 64
_TEXT_LENGTH = 160  # tokens of one text to compute and check on


def export_peft(lora: Lora, base: Path, out: Path, probe: Sequence[Token]) -> None:
    """Write `lora` as a PEFT folder for the exported model in `base`, activated by the `probe` tokens (aLoRA).

    Raises:
        BrokenModel: `base` is not a model folder.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{base} is not a model folder that transformers can read: {error}") from error
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    paths = {path: f"{prefix}.{path}" if prefix else path for path in lora.layers}
    out.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(paths.values()),
        "alora_invocation_tokens": list(probe),
    }
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    named = [(f"base_model.model.{paths[path]}", pair) for path, pair in lora.layers.items()]
    tensors = {
        f"{name}.lora_{side}.weight": np.ascontiguousarray(matrix)
        for name, pair in named
        for side, matrix in (("A", pair.a), ("B", pair.b))
    }
    save_file(tensors, out / "adapter_model.safetensors")


def export_hf(
    source: Path | str,
    rows: AdapterRows,
    out: Path,
    *,
    states: Sequence[InputState] = tuple(InputState),
    revision: str | None = None,
    dtype: str = "bfloat16",
    num_tokens: int = 2000,
    force: bool = False,
) -> ExportReport:
    """Write the model of `source` (a folder, a GGUF file or a hub name) with `rows` to the folder `out`, and check it.

    The added tokens are special tokens, which engines that tokenise a whole prompt also parse from what users write, as
    they do with those of the chat template. If the base has rows without a token, these are used. Matrices stay tied
    unless a probe row would win as an output row.

    Raises:
        UsageError: `out` exists (without `force`), or the tokenizer has such tokens already.
        ModelNotFound, BrokenModel, UnsupportedModel: see `backends.torch.loading.read_model`.
        EngineError: what was written failed its checks; it is left in place for inspection.
    """
    names = token_names(rows, states)
    check_out(out, force=force)
    model, tokenizer = read_model(source, revision=revision, dtype=dtype)
    added = add_tokens(tokenizer, names)
    prompts = prompts_of(Template.from_tokenizer(HfTokenizer(tokenizer)))
    base = _inspection(model, prompts, [])
    suppressed = suppress(rows, *base.hidden_states(base.sample(num_tokens, seed=0)))
    expected = base.greedy()
    is_untied = _place(model, rows, suppressed, list(added.values()))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written = _inspection(read_model(out, dtype=dtype)[0], prompts, list(added.values()))
    report = ExportReport(
        path=out,
        vocab_size=len(written.is_added),
        added=added,
        is_untied=is_untied,
        leads=written.leads(written.sample(num_tokens, seed=1)),
        num_same=int((written.greedy() == expected).sum()),
        decision_error=written.decision_error(rows, list(added.values())),
    )
    return check_report(report, expected.size)


def _inspection(model: Any, prompts: Sequence[Sequence[Token]], added: Sequence[Token]) -> Inspection:
    size = int(model.get_output_embeddings().weight.shape[0])
    return Inspection(_TorchReader(model), prompts, np.isin(np.arange(size), added))


class _TorchReader:
    """A `TextReader` for a PyTorch model."""

    def __init__(self, model: Any) -> None:
        self.length = _TEXT_LENGTH
        self._causal = CausalModel(model, None)
        self._cache: Any = None

    def read(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """See `TextReader.read`."""
        self._cache = transformers.DynamicCache(config=self._causal.model.config)
        return self.extend(tokens)

    def extend(self, tokens: Sequence[Token]) -> tuple[FloatArray, FloatArray]:
        """See `TextReader.extend`."""
        run = self._causal.run(tokens, range(len(tokens)), past_key_values=self._cache, use_cache=True)
        logits, hidden = (result.float().numpy() for result in run)
        return logits, hidden


def enlarge(model: Any, ids: Sequence[Token]) -> None:
    """Make room for `ids` in the model's matrices, if there is none."""
    end = max(ids) + 1
    if end > int(model.get_output_embeddings().weight.shape[0]):
        model.resize_token_embeddings(-(-end // PAD_MULTIPLE) * PAD_MULTIPLE, mean_resizing=False)


def add_tokens(tokenizer: Any, names: Sequence[str]) -> dict[str, Token]:
    """Add `names` as special tokens. Returns their ids.

    Raises:
        UsageError: the tokenizer has such tokens already.
    """
    taken = [name for name in names if name in tokenizer.get_vocab()]
    require(not taken, f"the tokenizer already has {', '.join(taken)}; start from the base model")
    tokenizer.add_tokens(list(names), special_tokens=True)
    return {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}


@torch.no_grad()
def _place(model: Any, rows: AdapterRows, suppressed: SuppressedRows, ids: Sequence[Token]) -> bool:
    """Write the rows into the model's matrices, enlarged if necessary. Returns whether they had to be untied."""
    size = int(model.get_output_embeddings().weight.shape[0])
    enlarge(model, ids)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if is_tied and suppressed.untie:
        head = torch.nn.Linear(1, 1, bias=False)
        head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
        head.out_features, head.in_features = head.weight.shape
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    num = rows.num_probes
    input_scale, output_scale = matrix_scales(model)
    outputs.weight[size:] = torch.from_numpy(suppressed.padding / output_scale).to(outputs.weight)
    outputs.weight[ids[:num]] = torch.from_numpy(suppressed.padding / output_scale).to(outputs.weight)
    outputs.weight[ids[num:]] = torch.from_numpy(suppressed.rows.outputs / output_scale).to(outputs.weight)
    inputs.weight[ids[:num]] = torch.from_numpy(rows.probes / input_scale).to(inputs.weight)
    return bool(is_tied and suppressed.untie)


def matrix_scales(model: Any) -> tuple[float, float]:
    """The factors by which the model multiplies its embeddings and its logits, measured on a pass."""
    ids = torch.arange(8, 40)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embeddings.weight[ids].float()
    input_scale = (embeddings(ids).float() * weight).sum() / (weight * weight).sum()
    logits, hidden = (result.float() for result in CausalModel(model, None).run(ids.tolist(), range(len(ids))))
    plain = hidden @ head.weight.float().T
    output_scale = (logits * plain).sum() / (plain * plain).sum()
    # Exactly 1 for most models; a value near 1 differs by rounding only.
    return tuple(1.0 if abs(float(s) - 1) < 0.01 else float(s) for s in (input_scale, output_scale))  # type: ignore[return-value]
