"""The folder in which converted models are cached."""

from pathlib import Path

import pytest

from duologue.backends.file_cache import cached_file, cached_folder
from duologue.errors import UsageError


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DUOLOGUE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"file.gguf cannot be made: .*; name another with DUOLOGUE_CACHE"):
        cached_file("model.gguf", lambda part: part.touch())
    with pytest.raises(UsageError, match=r"file.vllm cannot be made"):
        cached_folder("vllm", "model", lambda part: part.mkdir())
