"""vLLM's own model classes, with an adapter: the LoRA at probe tokens, and states in place of the next token.

Imported by vLLM, in the processes that hold the weights. Shapes: N tokens of a pass, P probe tokens, S output rows, V
ids, D the hidden width, R the rank of the LoRA.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models.gemma import GemmaForCausalLM
from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from duologue.backends.vllm.gating import (
    Ids,
    Pair,
    Part,
    column_factors,
    gated_delta,
    probes_by_embedding,
    probes_by_id,
    read_outputs,
    row_factors,
)
from duologue.backends.vllm.plugin import CONFIG_KEY, OUTPUTS, PACKED, PREFIX, ExportedAdapter
from duologue.errors import AdapterMismatch, BrokenModel, UnsupportedModel, refuse

Tensor: TypeAlias = torch.Tensor
Weights: TypeAlias = Iterable[tuple[str, Tensor]]

_LORA = f"{PREFIX}lora."


class Duplex(nn.Module):
    """Stands before a model class of vLLM, and adds the adapter to it.

    A pass first marks its probe tokens in a buffer that the layers read, so that compiled layers and CUDA graphs see
    each pass's own marks. The final hidden states get one more column with the marks, [N, D + 1], since vLLM selects
    some of their rows before it asks for logits.

    Raises:
        UnsupportedModel: vLLM was started with an option that this cannot work with.
        BrokenModel: the folder is not one that `duologue export --format vllm` wrote.
    """

    duologue_is_probe: Tensor  # bool [most tokens of a pass, 1]
    duologue_outputs: Tensor  # [S, D]
    duologue_probes: Tensor  # [P, D], what enters the first layer; used for prompts of embeddings

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        _check_options(vllm_config)
        parent: Any = super()
        parent.__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.adapter = ExportedAdapter.from_json(getattr(config, CONFIG_KEY, None))
        self._reads_embeddings = bool(vllm_config.model_config.enable_prompt_embeds)
        num, width = _largest_pass(vllm_config), config.hidden_size
        self._add("is_probe", torch.zeros(num, 1, dtype=torch.bool))
        self._add("outputs", torch.zeros(self.adapter.num_outputs, width, dtype=torch.float32))
        self._add("probes", torch.zeros(self.adapter.num_probes, width))

    def _add(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(f"duologue_{name}", tensor, persistent=False)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        """Final hidden states and marks [N, D + 1]; on all but the last pipeline stage what vLLM passes on."""
        adapter: Any = self.adapter
        if inputs_embeds is not None:
            marks = probes_by_embedding(inputs_embeds, self.duologue_probes)
        else:
            assert input_ids is not None
            marks = probes_by_id(input_ids, adapter.first_added, adapter.num_probes)
        self.duologue_is_probe[: marks.shape[0]].copy_(marks)
        result = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not isinstance(result, torch.Tensor):
            return result
        return torch.cat([result, self.duologue_is_probe[: result.shape[0]].to(result.dtype)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits [N, V] of `hidden_states` [N, D + 1], see `read_outputs`; None on ranks that draw nothing."""
        hidden, marks = hidden_states[:, :-1].contiguous(), hidden_states[:, -1:] > 0.5
        parent: Any = super()
        logits: Tensor | None = parent.compute_logits(hidden)
        if logits is None:
            return None
        ids = Ids(self.adapter.base_size, self.adapter.first_added, self.adapter.first_output)
        return read_outputs(logits, hidden, marks, self.duologue_outputs, ids)

    def load_weights(self, weights: Weights) -> set[str]:
        """Load the model's weights as vLLM does, then the adapter's.

        Raises:
            AdapterMismatch: the LoRA is for other layers.
            BrokenModel: the adapter's tensors are missing.
        """
        ours: dict[str, Tensor] = {}
        parent: Any = super()
        loaded: set[str] = parent.load_weights(_without_ours(weights, ours))
        if OUTPUTS not in ours:
            raise BrokenModel("the folder lacks the adapter's tensors; copy or export the whole folder again")
        self.duologue_outputs.copy_(ours.pop(OUTPUTS))
        self._place(_pairs(ours, self.adapter.lora_scale))
        if self._reads_embeddings:
            first = self.adapter.first_added
            ids = torch.arange(first, self.adapter.first_output, device=self.duologue_outputs.device)
            self.duologue_probes = parent.embed_input_ids(ids)
        return loaded

    def _place(self, pairs: dict[str, Pair]) -> None:
        """Give the factors to the layers on this pipeline stage."""
        inner: Any = self.model
        for i in range(inner.start_layer, inner.end_layer):
            for name, parts in PACKED.items():
                given = [pairs.pop(f"layers.{i}.{part}", None) for part in parts]
                if any(pair is not None for pair in given):
                    label = f"layers.{i}.{name}"
                    _gate(inner.get_submodule(label), given, self.duologue_is_probe, label)
        here = range(inner.start_layer, inner.end_layer)
        left = sorted(path for path in pairs if path.split(".")[1] in map(str, here))
        if left:
            raise AdapterMismatch(f"the LoRA changes layers that the model does not have: {', '.join(left)}")


def _check_options(vllm_config: Any) -> None:
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    refuse(
        [
            (vllm_config.speculative_config is not None, "an exported duplex model does no speculative decoding"),
            (
                bool(model.enable_prompt_embeds) and parallel.pipeline_parallel_size > 1,
                "prompt embeddings and pipeline parallelism do not go together in an exported duplex model: later "
                "stages do not know which tokens are probes",
            ),
            (bool(parallel.use_ubatching), "an exported duplex model does not run in microbatches (DBO)"),
            (
                bool(getattr(parallel, "enable_batch_sharded_sampling", False)),
                "an exported duplex model does not draw in shards of the batch",
            ),
        ],
        UnsupportedModel,
    )


def _largest_pass(vllm_config: Any) -> int:
    """The most tokens of a pass, with the padding of CUDA graphs."""
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return max(int(vllm_config.scheduler_config.max_num_batched_tokens), int(captured))


def _without_ours(weights: Weights, ours: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """`weights` without the adapter's, which go to `ours`."""
    for name, tensor in weights:
        if name.startswith(PREFIX):
            ours[name] = tensor
        else:
            yield name, tensor


def _pairs(tensors: dict[str, Tensor], scale: float) -> dict[str, Pair]:
    """The factors of each layer by its path, from tensors "duologue.lora.<path>.a" and ".b"."""
    paths = dict.fromkeys(name.removeprefix(_LORA).rpartition(".")[0] for name in tensors)
    try:
        return {
            path: Pair(tensors[f"{_LORA}{path}.a"].float(), tensors[f"{_LORA}{path}.b"].float() * scale)
            for path in paths
        }
    except KeyError as error:
        raise BrokenModel(f"the folder lacks the tensor {error}; copy or export the whole folder again") from None


def _gate(layer: Any, pairs: list[Pair | None], is_probe: Tensor, label: str) -> None:
    """Make a linear layer of vLLM add the LoRA at probe tokens, before it sums over ranks."""
    if isinstance(layer, RowParallelLinear):
        (pair,) = pairs
        assert pair is not None
        size = layer.input_size_per_partition
        a, b = row_factors(pair, Part(layer.tp_rank * size, size, layer.input_size), label)
    else:
        a, b = column_factors(pairs, _outputs_of(layer), label)
    device = is_probe.device
    layer.register_buffer("duologue_a", a.to(device, layer.params_dtype), persistent=False)
    layer.register_buffer("duologue_b", b.to(device, layer.params_dtype), persistent=False)
    layer.register_buffer("duologue_is_probe", is_probe, persistent=False)
    layer.quant_method.apply = partial(_apply, layer.quant_method.apply)


def _outputs_of(layer: Any) -> list[Part]:
    """The outputs of each merged layer that this rank computes. Several ranks may compute the same key/value head."""
    rank, size = layer.tp_rank, layer.tp_size
    if not isinstance(layer, QKVParallelLinear):
        return [Part(rank * (total // size), total // size, total) for total in layer.output_sizes]
    head, kv_rank = layer.head_size, rank // layer.num_kv_head_replicas
    queries = Part(rank * layer.num_heads * head, layer.num_heads * head, layer.total_num_heads * head)
    keys, values = (
        Part(kv_rank * layer.num_kv_heads * width, layer.num_kv_heads * width, layer.total_num_kv_heads * width)
        for width in (head, layer.v_head_size)
    )
    return [queries, keys, values]


def _apply(apply: Callable[..., Tensor], layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """In place of `LinearMethodBase.apply`. x: [N, in], returns [N, out] of this rank."""
    marks = layer.duologue_is_probe[: x.shape[0]]
    return apply(layer, x, bias) + gated_delta(x, layer.duologue_a, layer.duologue_b, marks)


class DuologueLlamaForCausalLM(Duplex, LlamaForCausalLM):  # type: ignore[misc]
    """Llama, SmolLM2 and others of this form."""


class DuologueMistralForCausalLM(Duplex, MistralForCausalLM):  # type: ignore[misc]
    """Mistral."""


class DuologueQwen2ForCausalLM(Duplex, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 and Qwen2.5."""


class DuologueQwen3ForCausalLM(Duplex, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3."""


class DuologueGemmaForCausalLM(Duplex, GemmaForCausalLM):  # type: ignore[misc]
    """Gemma."""


class DuologueGemma2ForCausalLM(Duplex, Gemma2ForCausalLM):  # type: ignore[misc]
    """Gemma 2."""


class DuologueGemma3ForCausalLM(Duplex, Gemma3ForCausalLM):  # type: ignore[misc]
    """Gemma 3, text only."""
