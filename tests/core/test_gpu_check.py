"""`make gpu-check`: says what is missing, and its script learns where it can run (here on the CPU)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_without_a_gpu_it_says_what_is_missing() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run()
    assert done.returncode == 5
    assert done.stderr.startswith("missing: ") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_same_script_learns_on_the_cpu() -> None:
    pytest.importorskip("verl", exc_type=ImportError)
    done = run("--device", "cpu", "--steps", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grpo step   6" in done.stdout and "engine: " in done.stdout and "-> " in done.stdout
