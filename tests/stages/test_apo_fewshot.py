"""Few-shot examples: from passing training rows only, compared on other rows, no coach."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from world import Answer, context, rows

from lightningrun.stages.apo.config import ApoConfig, forecast
from lightningrun.stages.apo.stage import run
from lightningrun.types import Task

SHOWN = re.compile(r"<given>\nquestion (\w+)\n</given>\n<answer>\nan answer\n</answer>")
SEED = {"system": "Sort it."}


def options(rollouts: int = 400, **given: Any) -> ApoConfig:
    budget = {"max_rollouts": rollouts, **given.pop("budget", {})}
    return ApoConfig.model_validate({"type": "apo", "algorithm": "bootstrap_fewshot", "budget": budget, **given})


def learner(prompts: Any, task: Task, sample: int) -> Answer:
    """Solves every fourth row unaided, and with two examples and more three of four."""
    number = int(re.sub(r"\D", "", task.id)) % 4
    known = number == 0 or (number < 3 and len(SHOWN.findall(prompts["system"])) >= 2)
    return Answer(float(known), "" if known else "wrong")


def events(ctx: Any, kind: str = "candidate") -> list[dict[str, Any]]:
    return [event for event in ctx.journal.events() if event["kind"] == kind]


async def test_examples_that_help_are_found_without_a_coach(tmp_path: Path) -> None:
    splits = {"train": rows("train", 40), "val": rows("val", 40), "test": rows("test", 30)}
    ctx = context(tmp_path, options(), SEED, splits, learner)
    del ctx.recipe.models["coach"]
    result = await run(ctx, {})
    text = result.outputs["prompts"].value["system"]
    shown = SHOWN.findall(text)
    assert result.metrics["promoted"] is True
    assert text.startswith("Sort it.\n\nExamples")
    assert 2 <= len(shown) <= 4
    assert all(row.startswith("train") and int(row[5:]) % 4 == 0 for row in shown)
    assert ctx.service.paid == result.metrics["coach_calls"] == 0
    proposals = [event for event in events(ctx) if event["id"] and event["verdict"] != "promoted"]
    assert 8 <= len(proposals) <= 16
    assert len({event["prompts"]["system"] for event in proposals}) > 4
    assert all(re.match(r"examples from the training rows train\d", event["critique"]) for event in proposals)


async def test_sets_are_compared_on_rows_that_no_set_shows(tmp_path: Path) -> None:
    splits = {"train": rows("train", 40), "val": rows("val", 20)}
    ctx = context(tmp_path, options(), SEED, splits, learner)
    await run(ctx, {})
    texts = [event["prompts"]["system"] for event in events(ctx)]
    shown = {row for text in texts for row in SHOWN.findall(text)}
    asked = [event["rollout"] for event in events(ctx, "rollout")]
    seed = asked[0]["key"].split("/")[0]
    compared = {one["task_id"] for one in asked if one["split"] == "train" and not one["key"].startswith(seed)}
    assert compared
    assert not compared & shown


async def test_an_example_with_the_answer_of_another_split_is_never_shown(tmp_path: Path) -> None:
    gold = "one two three four five six seven eight"
    train = (*rows("train", 19), Task("train99", "train", {"id": "train99", "q": f"say {gold}", "answer": gold}))
    free = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    train = (*train, Task("train98", "train", {"id": "train98", "q": f"say {free}", "answer": free}))
    val = (*rows("val", 19), Task("val99", "val", {"id": "val99", "q": "say it", "answer": gold}))
    everything = lambda p, t, s: Answer(float(t.split == "train" or "Examples" in p["system"]))  # noqa: E731
    config = options(600, demos={"max": 21, "sets": 6}, guards={"max_prompt_tokens": 9000})
    ctx = context(tmp_path, config, SEED, {"train": train, "val": val}, everything)
    result = await run(ctx, {})
    texts = "\n".join(event["prompts"]["system"] for event in events(ctx))
    assert result.metrics["candidates"] > 1
    assert free in texts
    assert gold not in texts
    assert "train99" not in texts


async def test_what_is_too_long_is_left_out(tmp_path: Path) -> None:
    long = Task("train7", "train", {"id": "train7", "q": "word " * 3000})
    train = tuple(long if task.id == "train7" else task for task in rows("train", 12))
    everything = lambda p, t, s: Answer(float(t.split == "train" or "Examples" in p["system"]))  # noqa: E731
    config = options(demos={"max": 12}, guards={"max_prompt_tokens": 120})
    ctx = context(tmp_path, config, SEED, {"train": train, "val": rows("val", 20)}, everything)
    result = await run(ctx, {})
    assert result.metrics["promoted"] is True
    assert all(len(event["prompts"]["system"]) <= 480 for event in events(ctx))


async def test_without_one_good_answer_the_seed_ships_and_that_is_said(tmp_path: Path) -> None:
    splits = {"train": rows("train", 20), "val": rows("val", 20)}
    ctx = context(tmp_path, options(), SEED, splits, lambda p, t, s: Answer(0.0, "wrong"))
    result = await run(ctx, {})
    assert result.metrics["stopped"] == "none of 20 training rows gave an example of a good answer"
    assert result.outputs["prompts"].value == SEED
    assert ctx.engine.executed == 40


def test_the_plan_asks_for_no_coach_and_bounds_what_is_spent() -> None:
    recipe: Any = SimpleNamespace(agent=SimpleNamespace(prompts={"p": None}), models={"policy": None})
    config = options(10_000, demos={"sets": 3}, budget={"max_coach_calls": 1})
    told = forecast(config, recipe, {"train": 30, "val": 20})
    assert told.errors == ()
    assert told.calls == {"policy": told.rollouts} == {"policy": 200}
    assert config.roles() == ()
    assert forecast(options(48), recipe, {"train": 30, "val": 20}).errors == ()
    assert "need 48 rollouts" in forecast(options(47), recipe, {"train": 30, "val": 20}).errors[0]


@pytest.mark.parametrize("limit", range(48, 140, 7))
async def test_every_budget_is_enough_for_what_it_starts(tmp_path: Path, limit: int) -> None:
    splits = {"train": rows("train", 30), "val": rows("val", 20)}
    ctx = context(tmp_path, options(limit), SEED, splits, learner)
    result = await run(ctx, {})
    assert ctx.engine.executed == result.metrics["rollouts"] <= limit
    assert result.metrics["candidates"] >= 2


@pytest.mark.parametrize("algorithm", ["textual_gradient_beam", "gepa"])
def test_examples_are_refused_where_they_would_have_no_effect(algorithm: str) -> None:
    with pytest.raises(ValidationError, match=f"{algorithm} does not read this.*bootstrap_fewshot does") as refused:
        options(algorithm=algorithm, demos={"max": 4})
    assert refused.value.errors()[0]["loc"] == ("demos",)
    assert options(algorithm=algorithm, demos={"max": 0}).demos.max == 0
