"""The command line as a person uses it: a process of its own, in a folder made by `lightningrun init`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = "recipes/my_task.yaml"
FAST = "tracking.enabled=false"
"""An override: tests that do not look at MLflow do not pay for it."""


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LIGHTNINGRUN_", "MLFLOW_"))}
    return {**kept, "COLUMNS": "100", **extra}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lightningrun", *arguments]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run one command line; the answer has ``returncode``, ``stdout`` and ``stderr``."""

    def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=100
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def task(cli: Cli, tmp_path: Path) -> Path:
    """A folder with the `blank` template in it."""
    assert cli("init", cwd=tmp_path).returncode == 0
    return tmp_path


@pytest.fixture(scope="module")
def finished(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the `blank` template has run once. Tests that share it only read."""
    folder = tmp_path_factory.mktemp("finished")
    cli("init", cwd=folder)
    done = cli(RECIPE, FAST, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder
