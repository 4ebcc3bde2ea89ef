"""The plug-in for vLLM, and what a folder that it can load consists of. Imports neither vLLM nor PyTorch.

vLLM finds `register` through the entry point group `vllm.general_plugins` in each of its processes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from duologue.errors import BrokenModel

FORMAT = 1
CONFIG_KEY = "duologue"
"""The key in `config.json` of a folder; its value is that of `ExportedAdapter.as_json`."""

TENSORS = "adapter.safetensors"
"""The file in a folder that has the adapter's output rows and its LoRA."""

PREFIX = "duologue."
"""What the names of these tensors begin with: `OUTPUTS`, and those of `Lora.tensors` behind the prefix."""

OUTPUTS = f"{PREFIX}outputs"
"""The output rows [S, D], or [S + 2, D] with a timing pair."""

ARCHITECTURES = {
    name: f"Duologue{name}"
    for name in (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
    )
}
"""The supported classes of vLLM, which have the names that they have in transformers, and those of this package."""

PACKED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""The linear layers of a decoder layer in vLLM, and the layers of the Hugging Face model that each consists of."""


@dataclass(frozen=True, slots=True)
class ExportedAdapter:
    """What the model class must know about the adapter of a folder. Added ids follow each other, probes first."""

    base_size: int  # rows of the base model's matrices; ids from here on belong to the adapter or to nothing
    first_added: int  # less than `base_size` if the base has rows without a token
    num_probes: int
    num_outputs: int
    lora_scale: float
    states: Mapping[str, int]  # the id of each state
    timing: tuple[int, ...] = ()  # the ids of the timing pair
    digest: str = ""  # `adapter_digest` of the adapter; empty in folders of earlier versions

    @property
    def first_output(self) -> int:
        """The id of the first output row."""
        return self.first_added + self.num_probes

    @property
    def end(self) -> int:
        """The first id behind the added ones."""
        return self.first_output + self.num_outputs

    def as_json(self) -> dict[str, Any]:
        """For `config.json`."""
        return {"format": FORMAT, **asdict(self), "timing": list(self.timing)}

    @classmethod
    def from_json(cls, content: Any) -> "ExportedAdapter":
        """The inverse of `as_json`.

        Raises:
            BrokenModel: something is missing, or another version wrote it.
        """
        version = content.get("format") if isinstance(content, dict) else None
        if version != FORMAT:
            raise BrokenModel(
                f"{CONFIG_KEY!r} in config.json has format {version!r}, and this version of duologue reads format "
                f"{FORMAT}; export the model again with `duologue export --format vllm`"
            )
        values = {key: value for key, value in content.items() if key != "format"}
        try:
            return cls(**{**values, "timing": tuple(values["timing"])})
        except (KeyError, TypeError) as error:
            raise BrokenModel(f"{CONFIG_KEY!r} in config.json is damaged: {error}") from None


def register() -> None:
    """Tell vLLM about the models. They are imported when one is loaded."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"duologue.backends.vllm.models:{name}")
