"""CONTRIBUTING.md: every step of its walks through the code is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = re.findall(r"`([a-z_/]+\.py)`\s+`([A-Za-z_.]+)`", (ROOT / "CONTRIBUTING.md").read_text())


def definitions(file: Path) -> set[str]:
    """Return the qualified names of a file's functions, classes and their methods."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_it_walks_through_the_code() -> None:
    assert len(STEPS) > 30


@pytest.mark.parametrize(("file", "name"), sorted(set(STEPS)))
def test_a_step_exists(file: str, name: str) -> None:
    assert name in definitions(ROOT / file)


def test_every_room_of_the_server_is_in_the_plan() -> None:
    [plan] = re.findall(r"^server/ +(.*)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    rooms = {folder.parent.name for folder in (ROOT / "server").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"[a-z]+", plan))
