"""The wheel and the sdist, installed into a fresh environment, and the container recipes, which are only read."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "containers").glob("*.Dockerfile"))


def run(*command: object, **more: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr[-3000:]
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it."""
    for name in ("build", "hatchling"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def fresh(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", built[1])
    return python


def in_fresh(python: Path, folder: Path, *command: object) -> str:
    """Run a command there. What the package depends on is lent from this environment, since tests use no network."""
    paths = os.pathsep.join(dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib")))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return run(python, *command, cwd=folder, env={**clean, "PYTHONPATH": paths})


def test_the_sdist_has_what_a_clone_has(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("scripts/test", "tests/conftest.py", "docs/index.md", "containers/cpu.Dockerfile", "constraints.txt"):
        assert name in names


def test_the_wheel_has_the_files_that_the_package_reads(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "src" / "duologue").rglob("*"):
        if path.is_file() and path.suffix not in (".pyc",):
            assert str(path.relative_to(ROOT / "src")) in names
    assert {f"duologue/examples/{path.name}" for path in (ROOT / "examples").glob("*.jsonl")} <= names


def test_it_runs_in_a_fresh_environment(fresh: Path, tmp_path: Path) -> None:
    where = in_fresh(fresh, tmp_path, "-c", "import duologue; print(duologue.__file__)").strip()
    assert Path(where).is_relative_to(fresh.parent.parent), where
    assert in_fresh(fresh, tmp_path, "-m", "duologue", "--version").startswith("duologue ")
    assert "Shipped adapters" in in_fresh(fresh, tmp_path, "-m", "duologue", "models")
    script = "from duologue.cli.replay import _script; print(_script('interruption').read_text())"
    assert '"say"' in in_fresh(fresh, tmp_path, "-c", script) or '"text"' in in_fresh(fresh, tmp_path, "-c", script)
    command = ["data", "build", "starter", "--out", "samples", "--samples", 60, "--dev", 40, "--test", 0]
    in_fresh(fresh, tmp_path, "-m", "duologue", *command, "--cuts-by", "rules")
    states = {json.loads(line)["state"] for line in (tmp_path / "samples" / "train.jsonl").read_text().splitlines()}
    assert states == {"process", "incomplete", "ignore", "stop"}
    page = "from duologue.server.assets import FOLDER; print((FOLDER / 'index.html').stat().st_size)"
    assert int(in_fresh(fresh, tmp_path, "-c", page)) > 1000


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_container_recipe_names_what_there_is(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for wanted in re.findall(r'"\.\[([\w,]+)\]"', text):
        assert set(wanted.split(",")) <= set(extras)
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
    assert "ot tested" in text.splitlines()[0]
    assert "\nUSER duologue\n" in text
    from duologue.server.config import PREFIX, ServerConfig

    names = [name.removeprefix(PREFIX).lower() for name in re.findall(rf"{PREFIX}\w+", text)]
    assert {"host", "tokens"} <= set(names) <= set(ServerConfig.__dataclass_fields__)
