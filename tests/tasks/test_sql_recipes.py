"""The recipes: all load, what is simulated says so, and the one with real models differs by its two lines."""

from __future__ import annotations

import re
from pathlib import Path

from lightningrun import recipe
from lightningrun.stages import specs

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_demonstration_says_that_it_is_simulated() -> None:
    loaded = recipe.load(RECIPES / "sql_agent.yaml", specs=specs())
    prompt, weights = ["baseline", "apo", "final"], ["lessons", "sft", "grpo", "control"]
    measured = ["both", "after_sft", "after_control", "after_grpo"]
    assert list(loaded.recipe.stages) == [*prompt, *weights, *measured]
    assert list(recipe.load(RECIPES / "sql_agent_apo.yaml", specs=specs()).recipe.stages) == prompt
    for role in ("policy", "coach"):
        assert "simulated" in loaded.recipe.models[role].note


def test_real_models_come_by_two_lines() -> None:
    text = (RECIPES / "sql_agent_openai.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"^  \w+: \{provider", text, re.MULTILINE)) == 2
    simulated = recipe.load(RECIPES / "sql_agent_apo.yaml", specs=specs()).recipe
    real = recipe.load(RECIPES / "sql_agent_openai.yaml", specs=specs()).recipe
    assert {role: model.name for role, model in real.models.items()} == {
        "policy": "openai/gpt-4.1-mini",
        "coach": "openai/gpt-4.1",
    }
    assert all(model.provider == "litellm" and not model.note and not model.args for model in real.models.values())
    assert real.stages == simulated.stages and real.agent == simulated.agent and real.reward == simulated.reward


def test_the_calculator_is_a_task_of_its_own() -> None:
    loaded = recipe.load(RECIPES / "calculator.yaml", specs=specs()).recipe
    assert loaded.agent.entrypoint == "tasks.calculator.agent:answer"
    assert [stage.type for stage in loaded.stages.values()] == ["sft", "evaluate", "verl_grpo", "evaluate"]
