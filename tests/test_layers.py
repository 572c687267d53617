"""The rule of imports: a command, its own wing, the common ground, scoft_losses; nothing looks back up or sideways."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import train_scoft_lora


ROOT = Path(train_scoft_lora.__file__).parent
WINGS = {path.parent.name for path in ROOT.glob("scoft/*/__init__.py")}
LAYERED = [ROOT / "scoft_losses.py", *sorted((ROOT / "scoft").rglob("*.py"))]
OURS = {path.stem for path in ROOT.glob("*.py")} | {"scoft", "pocket", "benchmarks"}


def imported(source: str) -> Iterator[str]:
    """The dotted name of all that a module of ours imports, also inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def violations(file: Path, source: str) -> list[str]:
    """What a module imports and may not: scoft takes the ground, its own wing and scoft_losses; that takes nothing."""
    parts = file.relative_to(ROOT).parts
    own = parts[1] if len(parts) > 2 else None
    found = []
    for name in imported(source):
        first, second = (name.split(".") + [""])[:2]
        allowed = first not in OURS | {""}
        if parts[0] == "scoft":
            allowed |= first == "scoft_losses" or (first == "scoft" and second not in WINGS - {own})
        if not allowed:
            found.append(name)
    return found


@pytest.mark.parametrize("file", LAYERED, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(file):
    assert violations(file, file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("scoft/files.py", "import train_scoft_lora", True),
        ("scoft/files.py", "def f():\n    from prepare_ccub import push", True),
        ("scoft/files.py", "from scoft.train import checkpoints", True),
        ("scoft/files.py", "from . import train", True),
        ("scoft/train/checkpoints.py", "from scoft import evaluate", True),
        ("scoft/train/checkpoints.py", "import pocket.world", True),
        ("scoft_losses.py", "from scoft.errors import DataError", True),
        ("scoft/train/checkpoints.py", "from scoft.train import records\nfrom scoft import sheets", False),
        ("scoft/base_model.py", "import torch\nfrom scoft_losses import ldm_loss", False),
    ],
)
def test_a_violation_is_seen(file, line, wrong):
    assert bool(violations(ROOT / file, line)) == wrong
