"""A Hugging Face folder with an adapter's rows in place, for vLLM, transformers and what reads their files.

The LoRA of an adapter goes into a PEFT folder of its own.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from duologue.backends.lora import Lora
from duologue.backends.rows import Rows
from duologue.backends.torch.backend import read_model
from duologue.backends.torch.tokenizer import HfTokenizer
from duologue.errors import BrokenModel, UsageError
from duologue.export.checks import (
    ExportReport,
    FloatArray,
    check_out,
    check_report,
    quiet_rows,
    softmax,
    starts,
    state_names,
)
from duologue.export.suppression import Leads, Quiet, quieted
from duologue.text.template import Template
from duologue.types import InputState, Token

PAD_MULTIPLE = 64
_NUM_GREEDY = 16


def export_peft(lora: Lora, base: Path, out: Path, probe: Sequence[Token]) -> None:
    """Write `lora` as a PEFT folder for the exported model in `base`, active from the `probe` tokens on (aLoRA).

    Raises:
        BrokenModel: `base` is no model folder.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(base)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{base} is no model folder that transformers can read: {error}") from error
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
    tensors = {f"{name}.lora_A.weight": np.ascontiguousarray(pair.a) for name, pair in named}
    tensors |= {f"{name}.lora_B.weight": np.ascontiguousarray(pair.b) for name, pair in named}
    save_file(tensors, out / "adapter_model.safetensors")


def export_hf(
    source: Path | str,
    rows: Rows,
    out: Path,
    *,
    states: Sequence[InputState] = tuple(InputState),
    dtype: str = "bfloat16",
    num_tokens: int = 2000,
    force: bool = False,
) -> ExportReport:
    """Write the model of `source` (a folder, a GGUF file, a hub name) with `rows` to the folder `out`, and check it.

    The added tokens are special tokens of the tokenizer, so that user text is not parsed for them; where the base has
    rows without a token, these are used. Matrices stay tied unless a probe row would win as an output row.

    Raises:
        UsageError: `out` exists (unless `force`), the tokenizer has such tokens already.
        ModelNotFound, BrokenModel, UnsupportedModel: as `backends.torch.read_model`.
        EngineError: what was written did not pass its checks; it is left there to be looked at.
    """
    names = state_names(rows, states)
    check_out(out, force=force)
    model, tokenizer = read_model(source, dtype=dtype)
    taken = [name for name in names if name in tokenizer.get_vocab()]
    if taken:
        raise UsageError(f"the tokenizer has {', '.join(taken)} already; start from the base model")
    base = _Base(model, starts(Template.from_tokenizer(HfTokenizer(tokenizer))))
    text = base.own_text(num_tokens, seed=0)
    quiet = quieted(rows, *base.look(text))
    expected = base.greedy()
    tokenizer.add_tokens(names, special_tokens=True)
    added = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in names}
    is_untied = _place(model, rows, quiet, list(added.values()))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    written, _ = read_model(out, dtype=dtype)
    again = _Base(written, base.begins, own=set(added.values()))
    said = again.greedy()
    report = ExportReport(
        path=out,
        vocab_size=int(written.get_output_embeddings().weight.shape[0]),
        added=added,
        is_untied=is_untied,
        leads=again.leads(again.own_text(num_tokens, seed=1)),
        num_same=int((said == expected).sum()),
        decision_error=again.decision_error(rows, list(added.values())),
    )
    return check_report(report, said.size)


class _Base:
    """A model, looked at in plain forward passes. `own` are ids that count as added; the rest is its base."""

    def __init__(self, model: Any, begins: Sequence[Sequence[Token]], own: set[Token] | None = None) -> None:
        self.model = model
        self.begins = begins
        size = int(model.get_output_embeddings().weight.shape[0])
        self.is_added = torch.tensor([i in (own or ()) for i in range(size)])

    @torch.inference_mode()
    def run(self, ids: Sequence[Token]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] and hidden states [N, D] of one text."""
        seen: list[torch.Tensor] = []
        hook = self.model.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            logits = self.model(torch.tensor([list(ids)])).logits[0]
        finally:
            hook.remove()
        return logits.float(), seen[-1][0].float()

    def look(self, texts: Sequence[Sequence[Token]]) -> tuple[FloatArray, FloatArray]:
        """Hidden states [N, D] of `texts` and the largest base logits [N]."""
        looked = [self.run(text) for text in texts]
        best = [logits.masked_fill(self.is_added, -math.inf).max(dim=-1).values for logits, _ in looked]
        return torch.cat([hidden for _, hidden in looked]).numpy(), torch.cat(best).numpy()

    @torch.inference_mode()
    def own_text(self, num_tokens: int, *, seed: int) -> list[list[Token]]:
        """What the model writes by itself at temperature 1."""
        state, texts, num = torch.random.get_rng_state(), list[list[Token]](), 0
        torch.manual_seed(seed)
        try:
            while num < num_tokens:
                ids = torch.tensor([list(self.begins[len(texts) % len(self.begins)])])
                out = self._generate(ids, 128, do_sample=True, temperature=1.0, top_k=0)
                texts.append(out[0].tolist())
                num += len(texts[-1])
        finally:
            torch.random.set_rng_state(state)
        return texts

    @torch.inference_mode()
    def greedy(self) -> Any:
        """The most probable tokens after each beginning, [B, N]."""
        rows = [self._generate(torch.tensor([list(b)]), _NUM_GREEDY, do_sample=False)[0, len(b) :] for b in self.begins]
        return torch.stack(rows).numpy()

    def leads(self, texts: Sequence[Sequence[Token]]) -> Leads:
        """How far added rows stay below the base in `texts`."""
        leads = []
        for text in texts:
            logits, _ = self.run(text)
            base = logits.masked_fill(self.is_added, -math.inf).max(dim=-1).values
            leads.append(base - logits[:, self.is_added].max(dim=-1).values)
        all_leads = torch.cat(leads)
        return Leads(len(all_leads), int((all_leads <= 0).sum()), float(all_leads.min()))

    def decision_error(self, rows: Rows, ids: Sequence[Token]) -> float:
        """The largest difference of a written state probability from that of the rows."""
        num, worst = rows.probes.shape[0], 0.0
        for begin in self.begins:
            for cut in (len(begin), len(begin) // 2):
                logits, hidden = self.run((*begin[:cut], *ids[:num]))
                written = softmax(logits[-1, list(ids[num:])].numpy())
                worst = max(worst, float(np.abs(written - softmax(rows.states @ hidden[-1].numpy())).max()))
        return worst

    def _generate(self, ids: torch.Tensor, num: int, **options: Any) -> Any:
        # Exactly `num` tokens, whatever they are: what a model says when it should have ended is text, too.
        options |= {"max_new_tokens": num, "min_new_tokens": None, "eos_token_id": None, "pad_token_id": 0}
        return self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)


@torch.no_grad()
def _place(model: Any, rows: Rows, quiet: Quiet, ids: Sequence[Token]) -> bool:
    """Write the rows into the model's matrices, made larger where needed. Returns whether they had to be untied."""
    size = int(model.get_output_embeddings().weight.shape[0])
    end = max(ids) + 1
    if end > size:
        model.resize_token_embeddings(-(-end // PAD_MULTIPLE) * PAD_MULTIPLE, mean_resizing=False)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if is_tied and quiet.untie:
        head = torch.nn.Linear(1, 1, bias=False)
        head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
        head.out_features, head.in_features = head.weight.shape
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    num, written = rows.probes.shape[0], quiet_rows(rows, quiet)
    input_scale, output_scale = _scales(model)
    outputs.weight[size:] = torch.from_numpy(quiet.padding / output_scale).to(outputs.weight)
    outputs.weight[ids[:num]] = torch.from_numpy(quiet.padding / output_scale).to(outputs.weight)
    outputs.weight[ids[num:]] = torch.from_numpy(written.states / output_scale).to(outputs.weight)
    inputs.weight[ids[:num]] = torch.from_numpy(written.probes / input_scale).to(inputs.weight)
    return bool(is_tied and quiet.untie)


def _scales(model: Any) -> tuple[float, float]:
    """By what the model multiplies its embeddings, and its logits, as it does it."""
    ids = torch.arange(8, 40)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embeddings.weight[ids].float()
    input_scale = (embeddings(ids).float() * weight).sum() / (weight * weight).sum()
    seen: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        logits = model(ids[None]).logits[0].float()
    finally:
        hook.remove()
    plain = seen[-1][0].float() @ head.weight.float().T
    output_scale = (logits * plain).sum() / (plain * plain).sum()
    # Exactly 1 for most models; what differs from it by rounding is 1.
    return tuple(1.0 if abs(float(s) - 1) < 0.01 else float(s) for s in (input_scale, output_scale))  # type: ignore[return-value]
