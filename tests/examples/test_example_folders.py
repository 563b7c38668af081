"""What can be said of the examples without installing their frameworks: part of the fast tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lightningrun

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/recipe.yaml"))
SAME_FRAMEWORK_AS_ANOTHER = {"writer_checker"}


def required(example: Path) -> list[str]:
    listed = example / "requirements.txt"
    lines = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    return [line for line in lines if line and not line.startswith("#")]


def extras() -> dict[str, list[str]]:
    block = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    found = re.findall(r'^([\w-]+) = (\[(?:\s*"[^"]*",?)*\s*\])', block.partition("\n[project.")[0], re.MULTILINE)
    return {name: ast.literal_eval(listed) for name, listed in found}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_whole(example: Path) -> None:
    """It loads, has a README with one command and pinned packages as an extra, and never imports lightningrun."""
    name = example.name
    assert lightningrun.load(example / "recipe.yaml").recipe.name == f"example_{name}"
    assert f"make example-{name}" in (example / "README.md").read_text("utf-8")
    pinned = required(example)
    assert all("==" in line for line in pinned)
    if pinned and name not in SAME_FRAMEWORK_AS_ANOTHER:
        assert extras()[name.replace("_", "-")] == pinned
    for source in example.glob("agent.*"):
        assert "lightningrun" not in source.read_text("utf-8")
    assert (ROOT / f"tests/examples/test_example_{name}.py").is_file()
    assert any(f"examples/{name}/" in document.read_text("utf-8") for document in (ROOT / "docs").glob("*.md"))
