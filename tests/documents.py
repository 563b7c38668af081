"""Documents whose examples are whole: files to write, and recipes to run in a folder made by `lightningrun init`.

In them a block opens with three backticks and ``python path/to/file.py`` (a file) or ``yaml run`` (a recipe).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.conftest import command, environment

_BLOCK = re.compile(r"^```(python|yaml) ([\w./]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Document:
    """One document of docs/, its files written into a new project. Recipes are known by their ``name``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.shell(*command("init"))
        text = (Path(__file__).parent.parent / "docs" / name).read_text("utf-8")
        self.files = [place for language, place, _ in _BLOCK.findall(text) if language == "python"]
        self.recipes: dict[str, str] = {}
        for language, place, body in _BLOCK.findall(text):
            if language == "python":
                (folder / place).write_text(body, "utf-8")
            else:
                recipe = re.search(r"^name: (\w+)$", body, re.MULTILINE)
                assert recipe is not None and place == "run"
                self.recipes[recipe[1]] = body

    def shell(self, *arguments: str) -> str:
        done = subprocess.run(
            arguments, cwd=self.folder, env=environment(), capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def script(self, place: str) -> None:
        self.shell(sys.executable, place)

    def run(self, name: str, *options: str) -> dict[str, Any]:
        """Run a recipe; the states of its stages, by id."""
        (self.folder / f"recipes/{name}.yaml").write_text(self.recipes[name], "utf-8")
        self.shell(*command(f"recipes/{name}.yaml", "tracking.enabled=false", *options))
        states = (self.folder / "runs/latest/stages").glob("*/state.json")
        return {path.parent.name: json.loads(path.read_text("utf-8")) for path in states}
