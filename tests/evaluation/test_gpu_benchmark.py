"""`benchmarks/gpu.py`: its stages, without a GPU."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu


def test_a_stage_says_what_it_found_and_why_it_failed() -> None:
    found = gpu.run(gpu.Stage(("-c", "import json; print('text'); print(json.dumps({'n': 3}))"), 30), "cpu", 30)
    assert (found["status"], found["figures"]) == ("passed", {"n": 3})
    failed = gpu.run(gpu.Stage(("-c", "raise SystemExit('no such {device}')"), 30), "cuda:7", 30)
    assert (failed["status"], failed["error"]) == ("failed", "no such cuda:7")
    assert gpu.run(gpu.Stage(("-c", "import time; time.sleep(60)"), 30), "cpu", 0.2)["status"].startswith(
        "not finished"
    )


def test_all_stages_fit_into_the_time_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(stage.seconds for stage in gpu.STAGES.values()) <= gpu.MAX_SECONDS
    monkeypatch.setitem(gpu.STAGES, "vllm scale", gpu.Stage(("-c", ""), 1, needs="no_such_package"))
    assert gpu.run_all("cpu", ["vllm scale"])["vllm scale"]["status"] == "skipped: no_such_package is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="--device cpu"):
        gpu.main()
