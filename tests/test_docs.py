"""The documents' examples: recipes check, commands run, links lead somewhere, and what they list is all there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import environment

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [body for name, body in _BLOCK.findall(path.read_text("utf-8")) if name == language]


def in_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    shell = f'lightningrun() {{ "{sys.executable}" -m lightningrun "$@"; }}\n{line}'
    done = subprocess.run(
        ["bash", "-c", shell], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("docs")
    in_shell("lightningrun init", made)
    return made


RECIPES = [
    pytest.param(body, id=f"{path.name}-{index}")
    for path in DOCUMENTS
    for index, body in enumerate(blocks(path, "yaml"), start=1)
]


@pytest.mark.parametrize("body", RECIPES)
def test_each_recipe_checks(body: str, folder: Path) -> None:
    (folder / "recipes/example.yaml").write_text(body, "utf-8")
    in_shell("lightningrun check recipes/example.yaml", folder)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "console")], ids=lambda path: path.name)
def test_each_command_runs(path: Path, tmp_path: Path) -> None:
    lines = [line[2:] for body in blocks(path, "console") for line in body.splitlines() if line.startswith("$ ")]
    assert lines
    for line in lines:
        in_shell(line, tmp_path)


def test_the_python_of_the_readme_runs(folder: Path) -> None:
    for body in blocks(ROOT / "README.md", "python"):
        (folder / "example.py").write_text(body, "utf-8")
        assert float(in_shell(f"'{sys.executable}' example.py", folder).stdout) > 0.5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", path.read_text("utf-8"))
    broken = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not broken


def test_every_command_and_exit_code_is_documented() -> None:
    from lightningrun.cli import cli
    from lightningrun.errors import ExitCode

    text = (ROOT / "docs/cli.md").read_text("utf-8")
    assert not [
        name for name in cli.commands if f"lightningrun {name}" not in text.replace("`plan`", "lightningrun plan")
    ]
    table = text.partition("## Exit codes")[2]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(ExitCode)


def test_the_picture_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text("utf-8").partition("```mermaid")[2].partition("```")[0]
    rooms = {path.stem for path in (ROOT / "lightningrun").iterdir() if path.suffix == ".py" or path.is_dir()}
    unseen = rooms - {"__init__", "__main__", "__pycache__", "templates", "py", "provenance"}
    assert not [room for room in sorted(unseen) if not re.search(rf"\b{room}\b", text)]
