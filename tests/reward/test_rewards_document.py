"""Each recipe of docs/rewards.md runs, and its rewards are what the text promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.documents import Document


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    return Document("rewards.md", Path(tmp_path_factory.mktemp("rewards")))


def test_every_recipe_is_run_here(document: Document) -> None:
    assert document.recipes.keys() == {"graded", "judged", "helpdesk"}


def test_an_objective_weighs_metrics_which_gates_and_conditions_read(document: Document) -> None:
    stages = document.run("graded", "--until", "apo", "stages.apo.budget.max_rollouts=60")
    before = stages["baseline"]["result"]["metrics"]
    assert before["reward"] == pytest.approx(0.8 * before["metric.right"] + 0.2 * before["metric.brevity"])
    assert before["metric.brevity_low"] < before["metric.brevity"] < before["metric.brevity_high"] < 0.9
    assert stages["apo"]["status"] == "succeeded"


def test_a_judge_is_counted_by_itself(document: Document) -> None:
    stage = document.run("judged", "--until", "baseline")["baseline"]
    assert 0.4 <= stage["result"]["metrics"]["reward"] < 1
    assert stage["cost"]["policy"]["calls"] == 12
    assert 1 < stage["cost"]["judge"]["calls"] <= 12, "the same question is asked once"


def test_a_simulated_user_is_asked_and_each_call_has_its_reward(document: Document) -> None:
    stage = document.run("helpdesk", "--until", "baseline")["baseline"]
    assert stage["result"]["metrics"]["metric.turns"] == 1.0
    assert {role: spent["calls"] for role, spent in stage["cost"].items()} == {"policy": 24, "user": 12}
    outputs = document.folder / "runs/latest/stages/baseline/outputs/rollouts.jsonl"
    rollouts = [json.loads(line) for line in outputs.read_text("utf-8").splitlines()]
    assert {tuple(rollout["steps"]) for rollout in rollouts} == {(0.0, -0.1, 0.0), (1.0, -0.1, 1.0)}
