from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.examples.example_run import ran

NEEDED = ("curl", "jq", "sqlite3")
FEW = (  # a process for each rollout: as few rows as show it, with a seed with which so few do
    "seed=10",
    "task.data.train.limit=16",
    "task.data.val.limit=16",
    "task.data.test.limit=16",
    "stages.apo.budget.max_rollouts=80",
)
MISSING = [program for program in NEEDED if shutil.which(program) is None]

pytestmark = [
    pytest.mark.examples,
    pytest.mark.timeout(700),
    pytest.mark.skipif(
        bool(MISSING), reason=f"not on this machine: {MISSING} (scripts/install-system.sh installs them)"
    ),
]


def test_an_agent_in_shell_curl(tmp_path: Path) -> None:
    ran("shell_curl", tmp_path, *FEW).must_have_improved()
