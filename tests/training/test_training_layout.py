"""The two ways of training are independent of each other, and what they share does not depend on either."""

import ast
from pathlib import Path

import duologue

TRAINING = Path(duologue.__file__).parent / "training"


def imported(path: Path) -> set[str]:
    """The modules of training that a file imports anywhere, as paths relative to it ("probe.run")."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.removeprefix("duologue.training.") for name in names if name.startswith("duologue.training.")}


def modules() -> dict[str, set[str]]:
    """Module → what it imports."""
    found = {path: imported(path) for path in TRAINING.rglob("*.py")}
    return {".".join(path.relative_to(TRAINING).with_suffix("").parts): names for path, names in found.items()}


def test_the_shared_modules_and_the_two_folders_are_independent() -> None:
    assert {"recipes", "runs"} <= modules()["probe.run"]
    for module, names in modules().items():
        folder = module.partition(".")[0] if "." in module else ""
        others = {"probe", "finetune"} - {folder}
        assert not {name for name in names if name.partition(".")[0] in others}, module


def test_imports_have_no_cycle() -> None:
    left = modules()
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not left, "these import each other"
