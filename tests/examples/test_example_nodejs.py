from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.example_run import ran

FEW = (  # a process for each rollout: as few rows as show it, with a seed with which so few do
    "seed=10",
    "task.data.train.limit=16",
    "task.data.val.limit=16",
    "task.data.test.limit=16",
    "stages.apo.budget.max_rollouts=80",
)
OLDEST = 20

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]


def missing() -> str:
    """What this machine lacks; "" if nothing."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "no Node.js with npm on this machine: scripts/install-system.sh installs them"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return "" if int(version[1:].split(".")[0]) >= OLDEST else f"Node.js here is {version}: {OLDEST} is wanted"


def test_an_agent_in_nodejs(tmp_path: Path) -> None:
    if lack := missing():
        pytest.skip(lack)
    ran("nodejs", tmp_path, *FEW).must_have_improved()
