"""Tests with vLLM, which needs an environment of its own, made by `scripts/test-vllm`; elsewhere they are left out."""

import importlib.util
import os

collect_ignore = [] if importlib.util.find_spec("vllm") is not None else ["test_vllm.py", "test_vllm_serve.py"]

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",  # several models, one after the other, in this process
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
)
