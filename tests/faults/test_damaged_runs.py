"""Files of a run that something else has damaged: said, never trusted, and made up for where that is possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run.project import lightningrun, make_project, show

LATEST = Path("runs/latest")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    root = make_project(tmp_path)
    done = lightningrun(root, "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return root


def facts(root: Path) -> dict[str, object]:
    return {stage: (told["status"], told["metrics"]) for stage, told in show(root)["stages"].items()}


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_resumed_run_tells_every_stage_again_that_its_journal_lost(finished: Path, kept: float) -> None:
    before, journal = facts(finished), finished / LATEST / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: int(len(whole) * kept)])
    done = lightningrun(finished, "resume")
    assert done.returncode == 0, done.stderr
    assert facts(finished) == before


@pytest.mark.parametrize("damage", [None, b"", b"[1, 2]\n", b"\xff\xfe", "half", "edited"])
def test_a_damaged_frozen_recipe_is_refused(finished: Path, damage: bytes | str | None) -> None:
    resolved = finished / LATEST / "resolved.yaml"
    text = resolved.read_bytes()
    resolved.unlink()
    if damage is not None:
        whole = {"half": text[: text.index(b"stages:")], "edited": text.replace(b"seed: 3", b"seed: 4")}
        resolved.write_bytes(whole[damage] if isinstance(damage, str) else damage)
    done = lightningrun(finished, "resume")
    assert done.returncode == 2
    assert "resolved.yaml" in done.stderr and "bug" not in done.stderr


def test_a_damaged_lock_is_refused(finished: Path) -> None:
    (finished / LATEST / "lock.json").write_text("[1, 2]\n")
    for command in ("resume", "export"):
        done = lightningrun(finished, command)
        assert "bug" not in done.stderr
    assert done.returncode in (0, 2)


def test_overrides_at_resume_freeze_anew(finished: Path) -> None:
    for seed in ("5", "6"):
        assert lightningrun(finished, "resume", "latest", f"seed={seed}").returncode == 0
    assert lightningrun(finished, "resume").returncode == 0
    lock = json.loads((finished / LATEST / "lock.json").read_text())
    assert len(lock["resolved_digests"]) == 3
