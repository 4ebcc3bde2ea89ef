"""Exported models in vLLM: states as on the reference backend, and answers as from the stock model."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from duologue.backends.lora import Lora
from duologue.backends.reference import ReferenceBackend
from duologue.backends.rows import AdapterRows
from duologue.core.backend import Extend
from duologue.export.vllm import VllmFolder, export_vllm
from duologue.models.adapters import Adapter
from duologue.testing.tiny_models import VOCAB_SIZE, tiny_lora, tiny_model, tiny_rows
from duologue.testing.vllm_engine import answers, decisions, decisions_among_answers, engine
from duologue.types import InputState
from tiny_tokenizers import small_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of vLLM and what it uses

WIDTH = 128
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 96, "max_position_embeddings": 256}
HEADS = {"head_dim": 32, "query_pre_attn_scalar": 32}  # vLLM's attention on CPUs has none smaller
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": HEADS,
    "gemma3": HEADS,
}
CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
PROMPTS = [tuple(np.random.default_rng(seed).integers(8, VOCAB_SIZE, 5 + 17 * seed).tolist()) for seed in range(4)]


@dataclass(frozen=True)
class Written:
    """A tiny model, and the folders of it and of its export."""

    model: Any
    base: Path
    folder: VllmFolder
    rows: AdapterRows
    lora: Lora

    @property
    def asked(self) -> list[tuple[int, ...]]:
        """The prompts with the probe."""
        adapter = self.folder.adapter
        return [(*prompt, *range(adapter.first_added, adapter.first_output)) for prompt in PROMPTS]

    def expected(self) -> list[list[float]]:
        """Probabilities after each prompt on the reference backend."""
        backend, found = ReferenceBackend(self.model, rows=self.rows, lora=self.lora), []
        probe, first = (*range(VOCAB_SIZE, VOCAB_SIZE + self.rows.num_probes),), VOCAB_SIZE + self.rows.num_probes
        groups = tuple(range(first, first + 4)), (first + 4, first + 5)
        for prompt in PROMPTS:
            (step,) = backend.forward([Extend(backend.fork(None), (*prompt, *probe), watch=groups)])
            found.append([*step.p[0], *step.p[1]])
        return found


def write(folder: Path, name: str, num_probes: int = 1, **changes: Any) -> Written:
    model = tiny_model(name, **{**SIZES, **FAMILIES[name], **changes})
    model.save_pretrained(folder / "base")
    small_tokenizer(VOCAB_SIZE).save_pretrained(folder / "base")
    rows, lora = tiny_rows(timing=True, width=WIDTH, num_probes=num_probes), tiny_lora(model)
    adapter = Adapter("alora", tuple(InputState), rows, lora)
    return Written(
        model, folder / "base", export_vllm(folder / "base", adapter, folder / "out", dtype="float32"), rows, lora
    )


@pytest.fixture(scope="module", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp(request.param), request.param)


def test_states_are_those_of_the_reference_and_answers_those_of_the_stock_model(written: Written) -> None:
    with engine(written.base) as llm:
        stock = answers(llm, PROMPTS, 12)
    with engine(written.folder.path) as llm:
        alone = answers(llm, PROMPTS, 12)
        found = decisions(llm, written.asked, written.folder.adapter)
        mixed, beside = decisions_among_answers(llm, written.asked, written.folder.adapter, PROMPTS, 12)
        again = answers(llm, PROMPTS, 12)
        wild = answers(llm, PROMPTS, 60, temperature=2.0, logprobs=None)
    np.testing.assert_allclose(found, written.expected(), atol=1e-3)
    np.testing.assert_allclose(mixed, written.expected(), atol=1e-3)
    assert [tokens for tokens, _ in beside] == [tokens for tokens, _ in stock]
    assert alone == stock, "bit for bit"
    assert again == stock
    first = written.folder.adapter.first_added
    drawn = {token for tokens, _ in wild for token in tokens}
    assert len(drawn) > 20
    assert not drawn & set(range(first, written.folder.adapter.end))


def test_the_lora_holds_at_the_probe_in_prompts_of_embeddings(tmp_path: Path) -> None:
    written = write(tmp_path, "gemma3", num_probes=2)
    with engine(written.folder.path, enable_prompt_embeds=True) as llm:
        by_id = decisions(llm, written.asked, written.folder.adapter)
        inner = llm.llm_engine.model_executor.driver_worker.worker.get_model()
        embedded = [inner.embed_input_ids(torch.tensor(prompt)) for prompt in written.asked]
        by_embedding = decisions(llm, embedded, written.folder.adapter)
    np.testing.assert_allclose(by_id, written.expected(), atol=1e-3)
    np.testing.assert_allclose(by_embedding, written.expected(), atol=1e-3)


def test_compiled_layers_apply_the_lora_of_each_pass(tmp_path: Path) -> None:
    written = write(tmp_path, "llama")
    with engine(written.folder.path, enforce_eager=False) as llm:
        before = answers(llm, PROMPTS, 12)
        found = decisions(llm, written.asked, written.folder.adapter)
        after = answers(llm, PROMPTS, 12)
    np.testing.assert_allclose(found, written.expected(), atol=1e-3)
    assert before == after


@pytest.mark.skipif(len(CORES) < 2, reason="a core for each rank")
@pytest.mark.parametrize(("name", "num_kv_heads"), [("llama", 2), ("gemma3", 1)])  # 1: both ranks have it
def test_two_ranks_decide_like_one(tmp_path: Path, name: str, num_kv_heads: int) -> None:
    written = write(tmp_path, name, num_key_value_heads=num_kv_heads)
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = f"{CORES[0]}|{CORES[1]}"
    command = [sys.executable, str(Path(__file__).with_name("two_ranks.py")), str(written.folder.path)]
    done = subprocess.run(
        [*command, json.dumps(written.asked)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = next(line for line in done.stdout.splitlines() if line.startswith("[["))
    np.testing.assert_allclose(json.loads(printed), written.expected(), atol=1e-3)


def test_an_export_of_another_model_is_refused(tmp_path: Path) -> None:
    written, other = write(tmp_path / "a", "llama"), tmp_path / "b"
    model = tiny_model("llama", **{**SIZES, "intermediate_size": 64})
    model.save_pretrained(other / "base")
    small_tokenizer(VOCAB_SIZE).save_pretrained(other / "base")
    adapter = Adapter("alora", tuple(InputState), written.rows, tiny_lora(model))
    folder = export_vllm(other / "base", adapter, other / "out", dtype="float32")
    (folder.path / "adapter.safetensors").write_bytes((written.folder.path / "adapter.safetensors").read_bytes())
    with (
        pytest.raises(Exception, match=r"the LoRA is for 96 outputs of layers\.0\.mlp\.gate_up_proj"),
        engine(folder.path),
    ):
        pass
