"""Improving only the rows with a tag, without harm to the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from world import Answer, WorldService, chance, context

from lightningrun.dataset.counts import RowCounts
from lightningrun.stages.apo.config import ApoConfig, forecast
from lightningrun.stages.apo.stage import run
from lightningrun.types import Task

SEED = {"system": "Take {q}."}


def tagged(split: str, each: int) -> list[Task]:
    names = [(tag, f"{split}-{tag}-{i}") for i in range(each) for tag in ("aggregate", "plain")]
    return [Task(name, split, {"id": name, "q": name}, (tag,)) for tag, name in names]


SPLITS = {"train": tagged("train", 20), "val": tagged("val", 20)}


def student(prompts: Mapping[str, str], task: Task, sample: int) -> Answer:
    """Rows with a sum need 'amber'; the others were fine until somebody says 'nickel'."""
    text = prompts["system"]
    right = "amber" in text if "aggregate" in task.tags else "nickel" not in text or chance(task.id) < 0.4
    return Answer(float(right), "" if right else "the sum is wrong" if "aggregate" in task.tags else "the row is wrong")


def config(**more: Any) -> ApoConfig:
    budget = {"max_rollouts": 200}
    return ApoConfig.model_validate({"type": "apo", "focus": {"tag": "aggregate"}, "budget": budget, **more})


async def optimise(folder: Path, reply: str, **more: Any) -> tuple[Any, Any]:
    service = WorldService(lambda question, again: f"```\n{reply}\n```")
    ctx = context(folder, config(**more), SEED, SPLITS, student, service=service)
    return await run(ctx, {}), ctx


@pytest.mark.parametrize("algorithm", ["reflective", "textual_gradient_beam"])
async def test_only_the_tagged_rows_are_searched_and_the_others_are_looked_at_once(
    tmp_path: Path, algorithm: str
) -> None:
    result, ctx = await optimise(tmp_path, "Take {q}. amber", algorithm=algorithm)
    assert result.metrics["promoted"] is True
    assert result.outputs["prompts"].value["system"] == "Take {q}. amber"
    assert result.metrics["focus_gain"] == 1.0
    assert (result.metrics["rest_gain"], result.metrics["rest_low"]) == (0.0, 0.0)
    ran = [event["rollout"] for event in ctx.journal.events() if event["kind"] == "rollout"]
    others = [one["task_id"] for one in ran if one["tags"] == ["plain"]]
    assert sorted(others) == sorted(2 * [task.id for task in SPLITS["val"] if task.tags == ("plain",)])
    asked = [call.request["messages"][0]["content"] for call in ctx.service.calls if call.role == "coach"]
    assert asked
    assert not any("plain" in question for question in asked)


async def test_a_winner_that_harms_the_other_rows_does_not_ship(tmp_path: Path) -> None:
    result, ctx = await optimise(tmp_path, "Take {q}. amber nickel")
    assert result.metrics["best_val"] == 1.0
    assert result.metrics["promoted"] is False
    assert result.outputs["prompts"].value == SEED
    assert result.metrics["rest_gain"] < -0.3
    verdict = [event for event in ctx.journal.events() if event["kind"] == "candidate"][-1]
    assert verdict["verdict"] == "not_promoted"
    assert "rows out of focus" in verdict["reason"]
    assert "focus.margin" in verdict["reason"]


async def test_harm_within_the_margin_is_allowed(tmp_path: Path) -> None:
    result, _ = await optimise(tmp_path, "Take {q}. amber nickel", focus={"tag": ["aggregate"], "margin": 0.95})
    assert result.metrics["promoted"] is True


async def test_what_the_check_costs_is_reserved(tmp_path: Path) -> None:
    least = 2 * (16 + 8) + 2 * 20
    result, ctx = await optimise(tmp_path, "Take {q}. amber", budget={"max_rollouts": least})
    assert ctx.engine.executed == least
    assert result.metrics["promoted"] is True
    assert "rest_gain" in result.metrics


def test_an_unknown_tag_and_a_budget_too_small_are_said_before_anything_runs() -> None:
    recipe: Any = SimpleNamespace(
        agent=SimpleNamespace(prompts={"system": None}), models={"policy": None, "coach": None}, stages={}
    )
    rows = RowCounts(SPLITS)
    assert forecast(config(), recipe, rows).errors == ()
    (error, _) = forecast(config(focus={"tag": "agregate"}), recipe, rows).errors[:2]
    assert "focus.tag: no row of 'train' has the tag 'agregate'; did you mean 'aggregate'?" in error
    (error,) = forecast(config(budget={"max_rollouts": 87}), recipe, rows).errors
    assert "need 88 rollouts (48 to search, 40 to confirm and report)" in error
