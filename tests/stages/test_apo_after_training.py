"""A prompt search after a training asks the trained weights, if they are its policy's: as the plan shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightningrun
from lightningrun.planning import StagePlan
from tests.run.project import RECIPE, make_project

STAGES = """\
stages:
  sft: {type: sft, source: gold, gold: answer, init: {size: tiny}, steps: 3, policy: own}
  apo: {type: apo, policy: own}
  hosted: {type: apo}
  final: {type: evaluate, split: test, policy: own}
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, StagePlan]:
    models = "models:\n  own: {provider: local, name: sft.model}\n"
    recipe = RECIPE.replace("models:\n", models).split("stages:\n")[0] + STAGES
    monkeypatch.chdir(make_project(tmp_path / "p", recipe=recipe))
    return {stage.id: stage for stage in lightningrun.load("recipe.yaml").plan().stages}


def test_the_newest_weights_of_the_same_policy_are_searched_on(plan: dict[str, StagePlan]) -> None:
    inputs = {id: {name: str(source) for name, source in stage.inputs.items()} for id, stage in plan.items()}
    assert inputs["apo"] == {"prompts": "recipe", "model": "sft.model"}
    assert inputs["hosted"] == {"prompts": "apo.prompts", "model": "recipe"}
    assert inputs["final"] == {"prompts": "hosted.prompts", "model": "sft.model"}


def test_other_weights_make_the_search_stale(plan: dict[str, StagePlan]) -> None:
    other = {stage.id: stage for stage in lightningrun.load("recipe.yaml", ["stages.sft.steps=4"]).plan().stages}
    assert other["apo"].key != plan["apo"].key


def test_calls_are_forecast_for_the_role_that_answers(plan: dict[str, StagePlan]) -> None:
    assert plan["apo"].forecast.calls == {"own": 500, "coach": 125}
    assert plan["hosted"].forecast.calls == {"policy": 500, "coach": 125}
