"""``sft`` with verl's own trainer, from the recipe to the checkpoint: the same tokens, and ends that are said.

Each start of verl takes about ten seconds of a quiet core.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)

import lightningrun
from lightningrun.errors import RecipeError
from lightningrun.models.local import checkpoint
from lightningrun.runner import resume
from tests.stages.grpo_project import make_project
from tests.stages.test_grpo_stage import at_home, curve
from tests.stages.verl_runs import Watched, loads_in_transformers, private

__all__ = ["private"]  # a fixture

VERL = {
    "type": "sft", "backend": "verl", "source": "gold", "split": "train", "gold": "question", "min_reward": 0.5,
    "batch": 4, "steps": 12, "warmup": 0, "lr": 1e-2,
}  # fmt: skip


def project(root: Path, **sft: Any) -> Path:
    recipe = make_project(root, {})
    written = yaml.safe_load(recipe.read_text())
    written["stages"] = {"sft": {**VERL, **sft}}
    if "control_for" in sft:
        written["stages"] = {sft["control_for"]: {**VERL, "backend": "embedded"}, **written["stages"]}
    recipe.write_text(yaml.safe_dump(written, sort_keys=False))
    return recipe


def said_by_plan(root: Path, monkeypatch: pytest.MonkeyPatch, **sft: Any) -> str:
    recipe = project(root, **sft)
    at_home(root, monkeypatch)
    with pytest.raises(RecipeError) as refused:
        lightningrun.load(recipe).plan()
    return str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"control_for": "other"}, "control_for: goes by the processor time"),
        ({"ema": 0.99}, "ema: verl's trainer keeps no average"),
        ({"save_every_s": 5.0}, "verl.trainer.save_freq"),
        ({"lora": {"rank": 4, "alpha": 0.5}}, "lora.alpha: verl takes whole numbers"),
        ({"verl": {"trainer": {"save_freq": "after_each_epoch"}}}, "save_freq: a number of updates"),
        ({"verl": {"optim": {"lr": 1e-5}}}, "is said by the stage's option `lr`"),
        ({"verl": {"data": {"truncation": "left"}}}, "is decided by how the stage runs verl"),
        ({"verl": {"engine": {"ulyses_sequence_parallel_size": 2}}}, "ulysses_sequence_parallel_size"),
        ({"backend": "embedded", "holdout": 0.25}, "holdout: is for backend: verl"),
        ({"backend": "embedded", "verl": {"optim": {}}}, "verl: is for backend: verl"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    told = said_by_plan(tmp_path, monkeypatch, **options)
    assert said in told and "recipe.yaml:" in told, told


def test_keys_that_verl_has_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = {"optimizer_offload": True, "+mixed_precision": {"param_dtype": "bf16"}}
    given = {"engine": engine, "model": {"use_liger": True}}
    recipe = project(tmp_path, verl=given, holdout=0.25)
    at_home(tmp_path, monkeypatch)
    assert lightningrun.load(recipe).plan().stages[0].forecast.rollouts == 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verls_trainer_learns_what_the_embedded_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All eight demonstrations an update: whatever the order, the first loss is that of the same tokens."""
    options = {"batch": 8, "steps": 10, "lr": 1e-2}
    curves = {}
    for backend in ("embedded", "verl"):
        recipe = project(tmp_path / backend, backend=backend, **options)
        at_home(recipe.parent, monkeypatch)
        watched = Watched()
        result = lightningrun.load(recipe).run(observers=[watched])
        assert result.error is None
        curves[backend] = [values["loss"] for values in curve(watched.events).values()]
        metrics = result.results["sft"].metrics
        assert metrics["examples"] == 8 and metrics["steps"] == 10 and metrics["tokens"] > 0 and metrics["cpu_s"] > 0
    assert watched.is_gone()
    ours, theirs = curves["embedded"], curves["verl"]
    assert theirs[0] == pytest.approx(ours[0], rel=1e-4) and theirs[-1] < theirs[0] / 2
    made = tmp_path / "verl" / "runs" / "latest" / "stages" / "sft" / "outputs" / "model"
    loads_in_transformers(made)
    assert checkpoint.content_digest(made) != checkpoint.content_digest(tmp_path / "verl" / "base")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_trainer_is_said_and_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters, and with demonstrations held out: the weights that do best on those are the stage's."""
    trainer = {"save_freq": 10}
    options = {"steps": 80, "batch": 1, "holdout": 0.25, "lora": {"rank": 4, "alpha": 8}, "verl": {"trainer": trainer}}
    recipe = project(tmp_path, **options)
    at_home(tmp_path, monkeypatch)
    watched = Watched()

    def kills(event: Any) -> None:
        watched(event)
        if event["kind"] == "metric" and event["step"] > 10:  # the checkpoint of 10 is whole
            for one in watched.named("verl.trainer.sft_trainer"):
                one.send_signal(signal.SIGKILL)

    broken = lightningrun.load(recipe).run(observers=[kills])
    assert broken.exit_code == 3 and "killed by signal 9" in str(broken.error) and "verl.log" in str(broken.error)
    assert watched.is_gone()
    run = (tmp_path / "runs" / "latest").resolve()
    assert 10 <= newest_checkpoint(run) < 80
    watched = Watched()
    begun_with: list[int] = []

    def looks(event: Any) -> None:
        watched(event)
        if event["kind"] == "metric" and not begun_with:
            (log,) = (run / "stages" / "sft").rglob("verl.log")
            begun_with.append(log.read_text().count("Found latest checkpoint"))

    result = resume(run, observers=[looks])
    assert result.error is None and watched.is_gone() and begun_with == [1]
    told = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    steps = {event["step"]: event["values"] for event in told if event.get("kind") == "metric"}
    count = sum(event.get("kind") == "metric" for event in told)
    assert sorted(steps) == list(steps) and len(steps) == count and max(steps) == 80, "each step is told once"
    judged = {step: values["val.loss"] for step, values in steps.items() if "val.loss" in values}
    metrics = result.results["sft"].metrics
    assert sorted(judged) == list(range(10, 81, 10))
    assert metrics["val_loss"] == min(judged.values()) == judged[metrics["best_step"]]
    assert steps[80]["loss"] < steps[min(steps)]["loss"]
    loads_in_transformers(run / "stages" / "sft" / "outputs" / "model")


def newest_checkpoint(run: Path) -> int:
    (tracker,) = (run / "stages" / "sft").rglob("latest_checkpointed_iteration.txt")
    return int(tracker.read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_loss_that_is_no_number_fails_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path, lr=1e30, max_grad_norm=1e30, steps=100000)
    at_home(tmp_path, monkeypatch)
    watched = Watched()
    result = lightningrun.load(recipe).run(observers=[watched])
    assert result.exit_code == 3 and "became nan at step" in str(result.error) and "`lr`" in str(result.error)
    assert not psutil.Process().children(recursive=True)


def test_a_trainer_that_shows_no_life_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path, watchdog_s=0.1)
    at_home(tmp_path, monkeypatch)
    result = lightningrun.load(recipe).run()
    assert result.exit_code == 3 and "no sign of life" in str(result.error)
    assert not psutil.Process().children(recursive=True)


def test_too_few_demonstrations_for_a_batch_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = project(tmp_path, batch=8, holdout=0.1)
    at_home(tmp_path, monkeypatch)
    result = lightningrun.load(recipe).run()
    assert result.exit_code == 3 and "8 demonstrations are too few for batches of 8, 8 of them held" in str(
        result.error
    )
