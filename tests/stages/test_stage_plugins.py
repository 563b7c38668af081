"""Stage types of other packages: found when they are asked for, and named when they are broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = """
from lightningrun.stages.evaluate.config import SPEC
import dataclasses
SPEC = dataclasses.replace(SPEC, type="echo")
"""
PROGRAM = """
import sys
from lightningrun.stages import specs
table = specs()
assert table["apo"].type == "apo"
assert "plugin" not in sys.modules
assert "nothing" not in table
assert list(table) == ["evaluate", "apo", "sft", "verl_grpo", "echo"]
assert table["echo"].type == "echo"
"""


def with_plugin(folder: Path, entry_points: str) -> subprocess.CompletedProcess[str]:
    (folder / "plugin.py").write_text(PLUGIN)
    metadata = folder / "plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[lightningrun.stages]\n{entry_points}\n")
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True)


def test_a_type_of_another_package_is_found_when_asked_for(tmp_path: Path) -> None:
    done = with_plugin(tmp_path, "echo = plugin:SPEC")
    assert done.returncode == 0, done.stderr


def test_a_broken_plugin_is_named(tmp_path: Path) -> None:
    done = with_plugin(tmp_path, "echo = plugin:NOTHING")
    assert "the stage type 'echo' of package plugin cannot be imported: AttributeError" in done.stderr


def test_a_plugin_does_not_replace_a_type_of_ours(tmp_path: Path) -> None:
    done = with_plugin(tmp_path, "apo = plugin:SPEC")
    assert "the stage type 'apo' of package plugin exists already; uninstall one" in done.stderr
