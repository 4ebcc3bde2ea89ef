"""What is tested of conversations holds with one model, and with another one that listens."""

import pytest

from scripted import Talk

IN_BOTH_WAYS = ("test_session", "test_replies", "test_echo", "test_session_fuzz")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in IN_BOTH_WAYS:
        metafunc.parametrize("_listens", [False, True], ids=["one model", "listener"], indirect=True)


@pytest.fixture(autouse=True)
def _listens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Talk, "listens_by_default", getattr(request, "param", False))
