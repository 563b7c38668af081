"""A choice of stages that leaves nothing to run is refused before there is a run."""

from __future__ import annotations

from pathlib import Path

from tests.run.project import lightningrun, make_project


def test_from_after_until_is_refused_without_a_run_folder(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    done = lightningrun(root, "recipe.yaml", "--from", "final", "--until", "baseline")
    assert done.returncode == 2
    assert "--from final comes after --until baseline" in done.stderr
    assert not (root / "runs").exists()
