"""The versions for a GPU machine: those that verl asks for, and pip agrees to them all."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints-gpu.txt"


def pins() -> dict[str, str]:
    lines = CONSTRAINTS.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def named(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def extra(name: str) -> list[Requirement]:
    """As pyproject.toml says it; Python 3.10 cannot read TOML itself."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(rf"^{name} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return [Requirement(quoted) for quoted in re.findall(r'"([^"]+)"', found[1])]


def test_the_pins_fit_what_the_extra_and_verl_ask_for() -> None:
    pinned = pins()
    asked = extra("gpu")
    try:
        of_verl = [Requirement(text) for text in importlib.metadata.requires("verl") or ()]
        asked += [one for one in of_verl if one.marker is not None and one.marker.evaluate({"extra": "vllm"})]
    except importlib.metadata.PackageNotFoundError:
        pass
    for requirement in asked:
        if named(requirement) in pinned:
            assert pinned[named(requirement)] in requirement.specifier, f"{requirement} is pinned to another version"
    assert {"torch", "vllm", "verl", "ray", "transferqueue", "mlflow", "litellm"} <= pinned.keys()
    assert len({named(requirement) for requirement in asked} & pinned.keys()) >= 5


@pytest.mark.slow
@pytest.mark.timeout(660)
@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info < (3, 11), reason="wheels for Linux, Python 3.11 and 3.12"
)
def test_pip_resolves_the_extra_with_the_constraints(tmp_path: Path) -> None:
    """A dry run: nothing is installed, and of wheels no more is loaded than what says their dependencies."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
    report = ["--report", str(tmp_path / "report.json")]
    done = subprocess.run([*pip, *report, "-c", str(CONSTRAINTS), f"{ROOT}[gpu]"], capture_output=True, text=True)
    if any(words in done.stderr for words in ("NewConnectionError", "Temporary failure in name resolution")):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr[-3000:]
    chosen = (tmp_path / "report.json").read_text()
    assert '"name": "vllm"' in chosen and '"name": "torch"' in chosen
