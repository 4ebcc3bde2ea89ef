"""The protocols again, with backend and engine for vLLM around the scripted model; clients see no difference."""

import pytest
from test_realtime import *  # noqa: F403  # the same tests
from test_server_duplex import *  # noqa: F403

import serving


@pytest.fixture(autouse=True)
def _requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "serves_requests", True)
