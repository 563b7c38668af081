"""The evaluate stage: its numbers, its breakdown, its gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from world import Answer, chance, context

from lightningrun.errors import GateNotMet, RewardErrors
from lightningrun.recipe.when import parse
from lightningrun.stages.evaluate.config import EvaluateConfig, forecast
from lightningrun.stages.evaluate.stage import run
from lightningrun.types import RolloutStatus, Task

TASKS = tuple(Task(f"t{i}", "test", {"q": str(i)}, ("easy",) if i < 10 else ("hard", "sql")) for i in range(40))


def by_luck(worth: float) -> Any:
    return lambda prompts, task, sample: Answer(float(chance(task.id, sample) < worth))


def prepare(folder: Path, student: Any, **options: Any) -> Any:
    config = EvaluateConfig.model_validate({"type": "evaluate", **options})
    return context(folder, config, {"system": "s"}, {"test": TASKS}, student)


async def test_mean_interval_passes_and_tags(tmp_path: Path) -> None:
    ctx = prepare(tmp_path, lambda p, t, s: Answer(float("easy" in t.tags or s == 1)), samples=4)
    metrics = (await run(ctx, {})).metrics
    assert metrics["reward"] == pytest.approx((10 + 30 / 4) / 40)
    assert metrics["reward_low"] < metrics["reward"] < metrics["reward_high"]
    assert metrics["pass_at_1"] == pytest.approx(metrics["reward"])
    assert metrics["pass_at_4"] == 1.0
    assert (metrics["n"], metrics["n_failed"]) == (40, 0)
    assert (metrics["tag.easy.reward"], metrics["tag.easy.n"]) == (1.0, 10)
    assert (metrics["tag.sql.reward"], metrics["tag.sql.n"]) == (0.25, 30)
    lines = (tmp_path / "outputs/rollouts.jsonl").read_text().splitlines()
    assert len(lines) == 160
    assert json.loads(lines[0])["task_id"] == "t0"


async def test_metrics_of_the_reward_have_means_and_intervals_and_a_gate(tmp_path: Path) -> None:
    def student(prompts: Any, task: Task, sample: int) -> Answer:
        if task.id == "t0":
            return Answer(0.0, status=RolloutStatus.FAILED)
        return Answer(1.0, metrics={"valid": float("easy" in task.tags), "words": sample + 1.0})

    gate = {"min": {"metric.valid": 0.2, "metric.words": 2}, "max": {"metric.words_high": 1.5, "metric.none": 1}}
    ctx = prepare(tmp_path, student, samples=2, gate=gate)
    with pytest.raises(GateNotMet, match=r"min\.metric\.words: 1\.5, wanted 2; max\.metric\.none: unknown") as caught:
        await run(ctx, {})
    assert caught.value.result is not None
    metrics = caught.value.result.metrics
    assert metrics["metric.valid"] == pytest.approx(9 / 39), "the failed rollout gave none"
    assert metrics["metric.valid_low"] < metrics["metric.valid"] < metrics["metric.valid_high"]
    assert (metrics["metric.words"], metrics["metric.words_low"], metrics["metric.words_high"]) == (1.5, 1.5, 1.5)
    assert parse("baseline.metric.valid < 0.3").decide({"baseline": metrics}, False)[0]


def with_weights(folder: Path, student: Any, **options: Any) -> Any:
    """Of 40 rows, the ten easy ones weigh 9 each, as much as 270 rows of weight 1."""
    tasks = tuple(replace(task, weight=9.0 if "easy" in task.tags else 1.0) for task in TASKS)
    config = EvaluateConfig.model_validate({"type": "evaluate", **options})
    return context(folder, config, {"system": "s"}, {"test": tasks}, student)


async def test_weights_weigh_every_mean_and_the_comparison(tmp_path: Path) -> None:
    def easy_only(prompts: Any, task: Task, sample: int) -> Answer:
        return Answer(float("easy" in task.tags), metrics={"easy": float("easy" in task.tags)})

    metrics = (await run(with_weights(tmp_path / "easy", easy_only), {})).metrics
    assert metrics["reward"] == metrics["pass_at_1"] == metrics["metric.easy"] == pytest.approx(90 / 120)
    assert metrics["reward_low"] < 0.75 < metrics["reward_high"]
    assert metrics["n"] == 40
    same = (await run(prepare(tmp_path / "same", by_luck(0.5)), {})).metrics
    assert same["reward"] != pytest.approx(
        (await run(with_weights(tmp_path / "w", by_luck(0.5)), {})).metrics["reward"]
    )
    hard_only = with_weights(tmp_path / "hard", lambda p, t, s: Answer(float("hard" in t.tags)), gate={"beats": "easy"})
    hard_only = replace(hard_only, references={"easy": tmp_path / "easy/outputs"})
    with pytest.raises(GateNotMet, match=r"paired difference -0\.500"):
        await run(hard_only, {})


async def test_failures_count_as_scored_and_errors_do_not(tmp_path: Path) -> None:
    kinds = {
        "t0": Answer(0.0, "raised", RolloutStatus.FAILED),
        "t1": Answer(None, "NaN", RolloutStatus.REWARD_ERROR),
        "t2": Answer(None, "503", RolloutStatus.INFRA_ERROR),
    }
    metrics = (await run(prepare(tmp_path, lambda p, t, s: kinds.get(t.id, Answer(1.0))), {})).metrics
    assert metrics["n"] == 38
    assert metrics["reward"] == pytest.approx(37 / 38)
    assert (metrics["n_failed"], metrics["n_reward_errors"], metrics["n_infra_errors"]) == (1, 1, 1)


async def test_no_score_at_all_is_no_mean(tmp_path: Path) -> None:
    ctx = prepare(tmp_path, lambda p, t, s: Answer(None, status=RolloutStatus.REWARD_ERROR))
    with pytest.raises(RewardErrors):
        await run(ctx, {})


async def test_a_gate_that_is_not_met_keeps_the_result(tmp_path: Path) -> None:
    gate = {"min": {"reward": 0.9}, "max": {"n_failed": 0, "tag.none.n": 3}}
    ctx = prepare(tmp_path, by_luck(0.5), gate=gate)
    with pytest.raises(GateNotMet, match=r"min\.reward: 0\.\d+, wanted 0\.9.*max\.tag\.none\.n: unknown") as caught:
        await run(ctx, {})
    assert caught.value.result is not None
    assert caught.value.result.metrics["n"] == 40
    assert (tmp_path / "outputs/rollouts.jsonl").exists()
    event = next(event for event in ctx.journal.events() if event["kind"] == "gate")
    assert event["met"] is False
    assert [check["met"] for check in event["checks"]] == [False, True, False]


@pytest.mark.parametrize(("before", "after", "met"), [(0.3, 0.8, True), (0.5, 0.52, False), (0.8, 0.3, False)])
async def test_beats_compares_row_by_row(tmp_path: Path, before: float, after: float, met: bool) -> None:
    await run(prepare(tmp_path / "baseline", by_luck(before)), {})
    ctx = prepare(tmp_path / "final", by_luck(after), gate={"beats": "baseline"})
    ctx = replace(ctx, references={"baseline": tmp_path / "baseline/outputs"})
    if met:
        await run(ctx, {})
    else:
        with pytest.raises(GateNotMet, match="paired difference"):
            await run(ctx, {})
    event = next(event for event in ctx.journal.events() if event["kind"] == "gate")
    assert event["met"] is met


def test_forecast_is_exact_and_refuses_a_gate_that_cannot_work() -> None:
    other = EvaluateConfig(type="evaluate", split="val")
    recipe: Any = SimpleNamespace(stages={"baseline": other}, models={"policy": None})
    config = EvaluateConfig.model_validate(
        {"type": "evaluate", "samples": 3, "gate": {"min": {"rewrad": 1}, "beats": "baseline"}}
    )
    assert config.references() == (("gate.beats", "baseline"),)
    told = forecast(config, recipe, {"test": 40, "val": 5})
    assert (told.rollouts, told.calls) == (120, {"policy": 120})
    assert "no metric 'rewrad'" in told.errors[0]
    assert "runs on 'val', not on 'test'" in told.errors[1]
    recipe.models["judge"] = None
    assert forecast(config, recipe, {"test": 40, "val": 5}).calls == {"policy": 120, "judge": 120}
    assert "no split" in forecast(EvaluateConfig(type="evaluate", split="x"), recipe, {"test": 4}).errors[0]
