"""An evaluation over a grid of prompts and weights: cells that differ, what each adds, and a recipe that is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightningrun.stages.evaluate.config import EvaluateConfig, forecast
from lightningrun.stages.evaluate.grid import compare_cells, flat
from lightningrun.types import Rollout, RolloutStatus
from tests.run.project import RECIPE, command, environment, lightningrun, make_project, show


def scored(cell: tuple[str, str], scores: dict[str, float | None]) -> list[Rollout]:
    return [
        Rollout(f"{cell}/{row}", "grid", row, "test", 0,
                RolloutStatus.SUCCEEDED if score is not None else RolloutStatus.INFRA_ERROR, score)
        for row, score in scores.items()
    ]  # fmt: skip


def test_effects_are_paired_and_the_interaction_is_what_the_sum_lacks() -> None:
    rows = [f"r{n}" for n in range(40)]
    table = {
        ("agent", "base"): {row: float(n < 10) for n, row in enumerate(rows)},
        ("agent", "sft.model"): {row: float(n < 20) for n, row in enumerate(rows)},
        ("apo.prompts", "base"): {row: float(n < 30) for n, row in enumerate(rows)},
        ("apo.prompts", "sft.model"): {row: None if n == 39 else float(n < 36) for n, row in enumerate(rows)},
    }
    cells = {cell: scored(cell, scores) for cell, scores in table.items()}
    base, weights, prompts, both = compare_cells(cells, 1, {})
    assert (base["prompts"], base["model"], base["reward"], base["n"]) == ("agent", "base", 0.25, 40)
    assert "gain" not in base and "interaction" not in weights
    assert (weights["gain"], prompts["gain"], both["n"]) == (0.25, 0.5, 39)
    paired = 39  # rows with a score in all four
    assert both["gain"] == pytest.approx(26 / paired)
    assert both["interaction"] == pytest.approx((36 - 30 - 20 + 10) / paired)
    assert both["interaction_low"] < both["interaction"] < both["interaction_high"]
    assert weights["gain_low"] > 0
    metrics = flat([base, weights, prompts, both])
    assert metrics["apo.prompts/sft.model/interaction"] == both["interaction"]
    assert metrics["agent/base/reward_low"] == base["reward_low"]


def recipe_of(**roles: str) -> Any:
    models = {role: SimpleNamespace(provider=provider, name=f"{provider}-{role}") for role, provider in roles.items()}
    return SimpleNamespace(stages={}, models=models)


def config_of(**options: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"type": "evaluate", **options})


def test_the_forecast_counts_every_cell_and_says_what_nobody_can_answer() -> None:
    grid = {"prompts": ("agent", "apo.prompts"), "model": ("policy", "sft.model", "grpo.model")}
    config = config_of(grid=grid, samples=2, policy="small", gate={"min": {"apo.prompts/sft.model/gain_low": 0}})
    told = forecast(config, recipe_of(policy="python", small="local", judge="openai"), {"test": 10})
    assert (told.rollouts, dict(told.calls)) == (120, {"policy": 40, "small": 80, "judge": 120})
    assert told.errors == ()
    told = forecast(
        config_of(grid=grid, gate={"min": {"apo.prompt/x/gain": 0}}), recipe_of(policy="python"), {"test": 1}
    )
    assert "no metric 'apo.prompt/x/gain'" in told.errors[0]
    assert "grid.model.1: models.policy is of provider python and cannot answer from sft.model" in told.errors[1]
    unmade = recipe_of(policy="local")
    unmade.models["policy"].name, unmade.stages["sft"] = "sft.model", None
    assert "it is sft.model: name that" in forecast(config_of(grid=grid), unmade, {"test": 1}).errors[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("grid: {prompts: [agent, apo.metrics]}", "'apo.metrics' is metrics, and prompts is needed"),
        (
            "grid: {prompts: [agnt, apo.prompts]}",
            "'agnt' is not of the form <stage>.<output>; `agent` names the recipe",
        ),
        ("grid: {prompts: [agent, agent]}", "must name two or more, each once"),
        ("grid: {prompts: [agent]}", "must name two or more, each once"),
        ("grid: {model: [polic, coach]}", "no model 'polic' in 'models'; did you mean 'policy'?"),
        ("grid: {prompts: [agent, final.prompts]}", "stage 'final' runs later"),
        (
            "grid: {prompts: [agent, apo.prompts]}, inputs: {prompts: apo.prompts}",
            "'inputs.prompts' and 'grid.prompts'",
        ),
    ],
)
def test_what_a_grid_names_is_checked_with_its_place(tmp_path: Path, options: str, message: str) -> None:
    stage = f"  grid: {{type: evaluate, split: test, {options}}}\n"
    before, mark, after = RECIPE.partition("  final:\n")
    project = make_project(tmp_path, recipe=before + stage + mark + after)
    done = lightningrun(project, "check", "recipe.yaml")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert f"recipe.yaml:{len(before.splitlines()) + 1}:" in done.stderr


def test_a_grid_of_prompts_and_models_runs_is_told_and_is_reused(tmp_path: Path) -> None:
    """No weights here: the other model is another role, so that this needs no extra."""
    recipe = RECIPE.replace("  coach: {", '  worse: {provider: python, name: "adder.models:zero"}\n  coach: {')
    recipe += "  grid: {type: evaluate, split: test, grid: {prompts: [agent, apo.prompts], model: [policy, worse]}}\n"
    project = make_project(tmp_path, recipe=recipe)
    models = project / "adder/models.py"
    zero = (
        "\ndef zero(request):\n    _record('zero', request)\n    return '0' if 'carefully' in str(request) else '5'\n"
    )
    models.write_text(models.read_text() + zero)
    planned = json.loads(lightningrun(project, "plan", "recipe.yaml", "--json").stdout)["stages"][-1]
    assert planned["forecast"]["llm_calls"] == {"policy": 48, "worse": 48}
    assert planned["inputs"]["prompts[1]"]["from"] == "apo.prompts"
    assert planned["inputs"]["model[1]"]["from"] == "worse"
    done = lightningrun(project, "recipe.yaml")
    assert done.returncode == 0, done.stderr
    stage = show(project)["stages"]["grid"]
    metrics = stage["metrics"]
    third = pytest.approx(1 / 3)
    assert metrics["agent/policy/reward"] == third and metrics["apo.prompts/policy/gain"] == pytest.approx(2 / 3)
    assert metrics["apo.prompts/worse/reward"] == metrics["reward"] == 0.0
    assert metrics["apo.prompts/worse/interaction"] == pytest.approx(-2 / 3)
    assert "policy" not in stage["cost"], "both cells of the policy were asked for before"
    assert stage["cost"]["worse"]["calls"] == 48 and stage["rollouts"] == 96
    again = lightningrun(project, "plan", "recipe.yaml", "--exit-code")
    assert again.returncode == 0, again.stdout
    changed = recipe.replace("model: [policy, worse]", "model: [worse, policy]")
    (project / "recipe.yaml").write_text(changed)
    assert "model[0]" in lightningrun(project, "plan", "recipe.yaml").stdout


TRAINED = """\
  sft: {type: sft, policy: small, source: gold, split: train, gold: answer, init: {size: tiny, vocab_size: 300},
        steps: 2, batch: 8}
  two_by_two:
    type: evaluate
    policy: small
    grid: {prompts: [agent, apo.prompts], model: [policy, sft.model]}
"""


@pytest.mark.slow
def test_trained_weights_and_the_recipes_own_model_answer_in_turn_and_a_kill_repeats_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    recipe = RECIPE.replace("  coach: {", "  small: {provider: local, name: sft.model, max_tokens: 8}\n  coach: {")
    recipe = recipe.replace("{delay_s: 0.0}", "{delay_s: 0.05}")
    project = make_project(tmp_path, recipe=recipe + TRAINED)
    runner = subprocess.Popen(
        command("recipe.yaml"), cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal = project / "runs/latest/journal.jsonl"
    while runner.poll() is None and not (journal.exists() and journal.read_text().count('/sft.model"') > 3):
        time.sleep(0.02)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    before = journal.read_text().count('"kind":"rollout"')
    done = lightningrun(project, "resume", "latest")
    assert done.returncode == 0, done.stderr
    run = project / "runs/latest"
    cells = json.loads((run / "stages/two_by_two/outputs/grid.json").read_text())["cells"]
    assert [(cell["prompts"], cell["model"]) for cell in cells] == [
        ("agent", "policy"), ("agent", "sft.model"), ("apo.prompts", "policy"), ("apo.prompts", "sft.model")
    ]  # fmt: skip
    assert [cell["n"] for cell in cells] == [24] * 4
    assert cells[0]["reward"] == pytest.approx(1 / 3) and cells[2]["reward"] == 1.0
    digest = show(project)["stages"]["sft"]["outputs"]["model"]["value"]["digest"]
    rollouts = [
        json.loads(line) for line in (run / "stages/two_by_two/outputs/rollouts.jsonl").read_text().splitlines()
    ]
    assert len({one["key"] for one in rollouts}) == 96
    calls = [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]
    small = [call for call in calls if call["stage"] == "two_by_two" and call["role"] == "small"]
    assert {call["sampled"]["weights"] for call in small} == {digest}
    assert {call["owner"].rpartition("/")[2] for call in small} == {"sft.model"}
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    told = [
        event["rollout"]["key"] for event in events if event["kind"] == "rollout" and event["stage"] == "two_by_two"
    ]
    assert len(told) == len(set(told)) == 96 and before > 0
