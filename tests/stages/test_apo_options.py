"""Options of the search that meet others: examples in a rewritten prompt, metrics as objectives, what is not read."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from world import RULES, SEED_PROMPT, Answer, HiddenRules, context, rows

from lightningrun.stages.apo.candidates import Candidate, choose_parent
from lightningrun.stages.apo.config import ApoConfig, forecast
from lightningrun.stages.apo.search import BARREN
from lightningrun.stages.apo.stage import run
from lightningrun.types import Task

SHOWN = re.compile(r"<given>\n(.*?)\n</given>", re.DOTALL)
RECIPE: Any = SimpleNamespace(
    agent=SimpleNamespace(prompts={"system": None}),
    models={"policy": None, "coach": None},
    reward=SimpleNamespace(range=None, objective=None),
    stages={},
)
ROWS = {"train": 60, "val": 400}


def options(rollouts: int = 300, **given: Any) -> ApoConfig:
    budget = {"max_rollouts": rollouts, **given.pop("budget", {})}
    return ApoConfig.model_validate({"type": "apo", "budget": budget, **given})


def candidates(ctx: Any) -> list[dict[str, Any]]:
    return [event for event in ctx.journal.events() if event["kind"] == "candidate"]


class Taught(HiddenRules):
    """The coach states rules, and rows succeed more often once a prompt shows an example of anything."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.asked: list[str] = []
        self.tried: list[tuple[str, str]] = []

    def student(self, prompts: Any, task: Task, sample: int) -> Answer:
        self.tried.append((prompts["system"], task.fields["q"]))
        return super().student(prompts, task, sample)

    def quality(self, prompt: str, task: Task) -> float:
        return super().quality(prompt, task) * (1.0 if SHOWN.search(prompt) else 0.6)

    def coach(self, question: str, again: int) -> str:
        self.asked.append(question.split("<failure")[0])
        return super().coach(question, again)


async def test_rewritten_prompts_end_with_examples_of_what_passed(tmp_path: Path) -> None:
    world = Taught(1)
    ctx = world.context(tmp_path, options(400, demos={"max": 2}))
    result = await run(ctx, {})
    text = result.outputs["prompts"].value["system"]
    assert result.metrics["promoted"] is True
    assert any(rule in text.partition("Examples of")[0] for rule in RULES)
    passed = {one.task_id for one in ctx.engine.memo.values() if one.split == "train" and one.score == 1.0}
    for event in candidates(ctx)[1:]:
        shown = [asked.removeprefix("question ") for asked in SHOWN.findall(event["prompts"]["system"])]
        assert len(shown) <= 2
        assert set(shown) <= passed
    assert 1 <= len(SHOWN.findall(text)) <= 2
    assert world.asked
    assert not any("<given>" in question for question in world.asked)


@pytest.mark.parametrize("number", [2, 3, 4])
async def test_no_candidate_is_tried_on_a_row_that_it_shows(tmp_path: Path, number: int) -> None:
    world = Taught(number)
    ctx = world.context(tmp_path, options(400, demos={"max": 3}))
    await run(ctx, {})
    showing = [(prompt, question) for prompt, question in world.tried if SHOWN.search(prompt)]
    assert len(showing) > 100
    assert not any(question in SHOWN.findall(prompt) for prompt, question in showing)


async def test_with_merges_examples_are_put_at_the_end_once(tmp_path: Path) -> None:
    config = options(600, demos={"max": 2}, merge={"enabled": True}, parent={"strategy": "pareto"})
    ctx = Taught(3).context(tmp_path, config)
    await run(ctx, {})
    assert all(event["prompts"]["system"].count("Examples of good answers") <= 1 for event in candidates(ctx))


def test_the_best_in_a_metric_is_a_parent_even_if_it_leads_no_row() -> None:
    rows_ = {"x": 1.0, "y": 1.0}
    best = Candidate(1, {"p": "a"}, (0,), rows_, {"label": 0.9, "cost": -0.5})
    cheap = Candidate(2, {"p": "b"}, (0,), {"x": 0.5, "y": 0.5}, {"label": 0.4, "cost": -0.1})
    poor = Candidate(0, {"p": "c"}, (), {"x": 0.0, "y": 0.0}, {"label": 0.1, "cost": -0.6})

    def drawn(frontier: Any) -> set[int]:
        rng = random.Random(0)
        found = Counter(choose_parent([poor, best, cheap], best, "pareto", 0, rng, frontier).id for _ in range(60))
        return set(found)

    assert drawn("rows") == {1}
    assert drawn("metrics") == {1, 2}
    assert drawn("both") == {1, 2}


async def test_metrics_of_the_objective_steer_a_search(tmp_path: Path) -> None:
    """Accuracy needs rules, brevity is lost with every word: two objectives that pull apart."""

    class Two(HiddenRules):
        def student(self, prompts: Any, task: Task, sample: int) -> Answer:
            told = super().student(prompts, task, sample)
            words = len(prompts["system"].split())
            told.metrics = {"right": told.score or 0.0, "words": float(words)}
            return told

    parents = {}
    for frontier in ("rows", "metrics"):
        config = options(500, parent={"strategy": "pareto", "frontier": frontier})
        objective = {"right": 1.0, "words": -0.001}
        ctx = Two(4).context(tmp_path / frontier, config, objective=objective)
        result = await run(ctx, {})
        parents[frontier] = [event["parents"] for event in candidates(ctx)[1:]]
        assert len(result.outputs["prompts"].value["system"].split()) > len(SEED_PROMPT.split())
    assert [0] in parents["metrics"][3:], "the seed is the shortest prompt: nobody dominates it"
    assert parents["rows"] != parents["metrics"]


def test_a_frontier_of_metrics_needs_metrics_and_pareto() -> None:
    config = options(parent={"strategy": "pareto", "frontier": "metrics"})
    assert any("reward.objective names no metrics" in said for said in forecast(config, RECIPE, ROWS).errors)
    with pytest.raises(ValidationError, match="no effect without strategy: pareto"):
        options(parent={"frontier": "metrics"})


@pytest.mark.parametrize(
    ("algorithm", "option", "reader"),
    [
        ("textual_gradient_beam", {"merge": {"enabled": True}}, "reflective"),
        ("gepa", {"merge": {"enabled": True}}, "reflective"),
        ("bootstrap_fewshot", {"merge": {"max": 3}}, "reflective"),
        ("reflective", {"beam": {"width": 3}}, "textual_gradient_beam"),
        ("reflective", {"gepa": {"minibatch": 5}}, "gepa"),
        ("textual_gradient_beam", {"parent": {"strategy": "pareto"}}, "reflective"),
        ("bootstrap_fewshot", {"proposals": {"parents": 2}}, "reflective"),
        ("gepa", {"reflection": {"rounds": 1}}, "reflective"),
    ],
)
def test_an_option_that_the_algorithm_does_not_read_is_refused(
    algorithm: str, option: dict[str, Any], reader: str
) -> None:
    with pytest.raises(ValidationError, match=f"{algorithm} does not read this.*{reader} does") as refused:
        options(algorithm=algorithm, **option)
    assert refused.value.errors()[0]["loc"] == tuple(option)


@pytest.mark.parametrize("algorithm", ["reflective", "textual_gradient_beam", "gepa"])
async def test_a_coach_that_says_the_same_again_and_again_is_soon_left_in_peace(tmp_path: Path, algorithm: str) -> None:
    splits = {"train": rows("train", 30), "val": rows("val", 30)}
    config = options(900, algorithm=algorithm)
    ctx = context(tmp_path, config, {"system": "Take {question}."}, splits, lambda p, t, s: Answer(0.0, "wrong"),
                  lambda question, again: "```\nTake {question} now.\n```")  # fmt: skip
    result = await run(ctx, {})
    assert f"{BARREN} proposals in a row gave nothing new" in str(result.metrics["stopped"])
    assert ctx.service.paid <= 4 * BARREN
    assert ctx.engine.executed < 300


def test_val_is_read_as_far_as_the_budget_bears() -> None:
    def read(rollouts: int, **more: Any) -> int:
        return options(rollouts, **more).searched(ROWS)["val"]

    assert [read(budget) for budget in (60, 100, 200, 500, 4000)] == [16, 16, 16, 41, 333]
    assert read(500, samples=2) == 20
    assert [read(500, algorithm="textual_gradient_beam"), read(100, confirm={"mode": "fresh"})] == [62, 20]
    assert read(500, val_rows=300) == 300
    assert read(500, val_rows=1000) == 400


async def test_rows_of_val_that_are_not_read_cost_nothing_and_stay_the_same(tmp_path: Path) -> None:
    seen = []
    for attempt in ("one", "two"):
        ctx = HiddenRules(1).context(tmp_path / attempt, options(100))
        await run(ctx, {})
        seen.append({one.task_id for one in ctx.engine.memo.values() if one.split == "val"})
    assert len(seen[0]) == 16 < 30
    assert seen[0] == seen[1]


def test_the_forecast_counts_the_judge_and_bounds_the_coach() -> None:
    recipe = SimpleNamespace(**{**vars(RECIPE), "models": {"policy": None, "coach": None, "judge": None}})
    assert forecast(options(400), recipe, ROWS).calls == {"policy": 400, "coach": 100, "judge": 400}
    asks = [options(budget).most_coach_calls() for budget in (60, 100, 500, 1000)]
    assert asks == [20, 25, 125, 250]
    assert options(500, budget={"max_coach_calls": 7}).most_coach_calls() == 7
