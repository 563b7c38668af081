"""The whole stage, through agent and gateway: what it refuses to learn from, and what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from lightningrun.execution import RunResult
from lightningrun.models.local import checkpoint
from lightningrun.runner import resume
from tests.run.project import environment, fill_the_disk
from tests.stages.grpo_project import make_project
from tests.stages.test_grpo_stage import at_home, curve, started

GOLD = {"type": "sft", "source": "gold", "split": "train", "gold": "question", "min_reward": 0.5}
SFT = {**GOLD, "batch": 4, "steps": 6, "warmup": 0, "lr": 1e-3}


def project(root: Path, **sft: Any) -> Path:
    """The small letters, imitated: what a row asks for is its gold, and holds three letters of the six."""
    recipe = make_project(root, {})
    written = yaml.safe_load(recipe.read_text())
    written["stages"] = {"sft": {**SFT, **sft}}
    recipe.write_text(yaml.safe_dump(written, sort_keys=False))
    return recipe


def run(root: Path, monkeypatch: pytest.MonkeyPatch, **sft: Any) -> tuple[RunResult, list[Any]]:
    return started(project(root, **sft), monkeypatch)


def test_gold_is_asked_for_by_the_agent_and_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, events = run(tmp_path, monkeypatch, steps=20, lr=1e-2)
    metrics = result.results["sft"].metrics
    assert result.error is None and metrics["examples"] == 8 and metrics["gold_reward"] == 0.5
    losses = [values["loss"] for values in curve(events).values()]
    assert losses[-1] < losses[0] / 2


def test_a_control_spends_what_the_other_stage_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal updates cost the same, so that it makes about as many."""
    recipe = project(tmp_path, steps=80)
    written = yaml.safe_load(recipe.read_text())
    more = {**GOLD, "batch": 4, "control_for": "sft", "inputs": {"model": "sft.model"}}
    written["stages"]["more"] = more
    recipe.write_text(yaml.safe_dump(written, sort_keys=False))
    result, events = started(recipe, monkeypatch)
    assert result.error is None
    first, control = (result.results[stage].metrics for stage in ("sft", "more"))
    assert 40 <= control["steps"] <= 160 and 0.5 <= control["cpu_s"] / first["cpu_s"] <= 2
    assert any("of processor time that sft took" in event.get("message", "") for event in events)


def test_rows_that_do_not_pass_are_nothing_to_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, events = run(tmp_path, monkeypatch, min_reward=1.0)
    assert result.exit_code == 3 and "no demonstration to learn from" in str(result.error)
    assert "min_reward" in str(result.error)
    assert any("the gold of 8 of 8 rows earns less" in event.get("message", "") for event in events)


def test_a_demonstration_over_the_context_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path)
    rows = tmp_path / "small_letters" / "train.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("say 0", "say " + "0 " * 2000))
    result, events = started(recipe, monkeypatch)
    assert result.error is None and result.results["sft"].metrics["too_long"] == 1
    assert any("1 of 8 demonstrations are over the model's" in event.get("message", "") for event in events)
    rows.write_text(text.replace('"say ', '"say ' + "0 " * 2000))
    result, _ = started(recipe, monkeypatch)
    assert result.exit_code == 3 and "no demonstration fits the model" in str(result.error)


def test_a_loss_that_is_no_number_fails_and_the_saved_step_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run(tmp_path, monkeypatch, lr=1e30, max_grad_norm=1e30, save_every_s=1e-9)
    assert result.exit_code == 3 and "the loss became" in str(result.error) and "`lr`" in str(result.error)
    (stage,) = (tmp_path / "runs").glob("*-letters-*/stages/sft")
    assert not (stage / "outputs").exists() and list((stage / "work").glob("*/state.safetensors"))


def test_weights_with_a_flipped_bit_are_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path)
    first, _ = started(recipe, monkeypatch)
    for made in (tmp_path / "runs").rglob("model.safetensors"):  # of the run, and of what is kept for later ones
        if made.stat().st_nlink == 1 or "cache" in made.parts:
            flip(made)
    again, events = started(recipe, monkeypatch)
    assert again.error is None and again.results["sft"].outputs["model"] == first.results["sft"].outputs["model"]
    assert any(event["kind"] == "stage_started" for event in events), "it is trained again, not reused"

    flip(tmp_path / "base" / "model.safetensors")
    recipe.write_text(recipe.read_text().replace("steps: 6", "steps: 7"))
    refused, _ = started(recipe, monkeypatch)
    assert refused.exit_code != 0 and "the checkpoint is damaged" in str(refused.error)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_or_out_of_disk_it_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 60, "save_every_s": 0.001}
    calm, _ = run(tmp_path / "calm", monkeypatch, **options)
    assert calm.error is None

    killed = project(tmp_path / "killed", **options)
    process = subprocess.Popen(
        [sys.executable, "-m", "lightningrun", str(killed)], cwd=killed.parent, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    journal = killed.parent / "runs" / "latest" / "journal.jsonl"
    end = time.monotonic() + 200
    while not (journal.exists() and '"step":20,' in journal.read_text().replace(" ", "")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert ends_like(calm, killed, monkeypatch)
    steps = [event["step"] for event in map(json.loads, journal.read_text().splitlines()) if event["kind"] == "metric"]
    assert steps == sorted(set(steps)), "no step is told twice"

    full = project(tmp_path / "full", **options)
    fill_the_disk(full, 1 << 20)  # the journal fits, weights and optimizer do not
    assert ends_like(calm, full, monkeypatch)


def ends_like(calm: RunResult, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    at_home(recipe.parent, monkeypatch)
    resumed = resume((recipe.parent / "runs" / "latest").resolve())
    assert resumed.error is None
    (made,) = (recipe.parent / "runs").glob("*-letters-*/stages/sft/outputs/model")
    digest = resumed.results["sft"].outputs["model"].value["digest"]
    return checkpoint.content_digest(made) == digest == calm.results["sft"].outputs["model"].value["digest"]
