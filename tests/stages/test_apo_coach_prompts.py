"""Questions to the coach in words of one's own: checked before anything runs, filled in exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from world import Answer, context, rows

from lightningrun.errors import RecipeError
from lightningrun.recipe.load import load
from lightningrun.stages import specs
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.stage import run

CRITIQUE = 'What is wrong with {current_prompt}? It failed so: {failures} Say it as {{"points": []}}.'
REWRITE = "Mend {prompt_names}.\n{current_prompt}\nAdvice: {critique}"


def config(**coach_prompts: Any) -> ApoConfig:
    budget = {"max_rollouts": 100}
    return ApoConfig.model_validate({"type": "apo", "coach_prompts": coach_prompts, "budget": budget})


async def test_a_critique_makes_two_calls_of_a_proposal(tmp_path: Path) -> None:
    asked: list[str] = []

    def coach(question: str, again: int) -> str:
        asked.append(question)
        return (
            "Say amber, as in {json}." if question.startswith("What is wrong") else "```\nTake {question}, amber.\n```"
        )

    student: Any = lambda p, t, s: Answer(float("amber" in p["system"]), "no {colour} at all")  # noqa: E731
    splits = {"train": rows("train", 20), "val": rows("val", 20)}
    seed = {"system": "Take {question}."}
    ctx = context(tmp_path, config(critique=CRITIQUE, rewrite=REWRITE), seed, splits, student, coach)
    result = await run(ctx, {})
    assert result.outputs["prompts"].value == {"system": "Take {question}, amber."}
    assert result.metrics["coach_calls"] == len(asked) == 4
    assert asked[0].endswith('Say it as {"points": []}.')
    assert "Take {question}." in asked[0]
    assert asked[0].count("[feedback] no {colour} at all") == 4
    assert "Advice: Say amber, as in {json}." in asked[1]
    assert "Mend system." in asked[1]
    assert "fenced block" in asked[1]
    told = [event for event in ctx.journal.events() if event["kind"] == "candidate" and event["id"] == 1]
    assert told[0]["critique"].startswith("Say amber")
    assert len(told[0]["coach"]) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"critique": "Look: {current_prompt}"}, "must contain {failures}"),
        ({"critique": "{current_prompt} {failure}"}, "unknown field {failure}: did you mean 'failures'?"),
        ({"rewrite": "{failures}"}, "must contain {current_prompt}"),
        ({"rewrite": "{current_prompt} {critique}"}, "unknown field {critique}"),
        ({"rewrite": {"file": "a.md", "text": "b"}}, "either 'text' or 'file'"),
    ],
)
def test_a_wrong_template_is_refused_with_the_reason(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        config(**wrong)
    assert said in str(refused.value)


RECIPE = """\
version: 1
name: own
agent: {entrypoint: "a.py:f", prompts: {system: "x"}}
task: {data: {train: t.jsonl, val: v.jsonl}}
reward: {function: "a.py:r"}
models: {policy: {provider: python, name: "a.py:f"}, coach: {provider: python, name: "a.py:f"}}
stages:
  apo:
    type: apo
    coach_prompts:
      rewrite: {file: sub/rewrite.md}
"""


def test_a_file_is_read_beside_the_recipe_and_its_content_is_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("def f(**given): ...\ndef r(**given): ...\n")
    for split in ("t", "v"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"id": "{split}"}}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    template = tmp_path / "sub/rewrite.md"
    template.write_text("Mend {current_prompt} {failures}")
    first: Any = load(tmp_path / "recipe.yaml", specs=specs()).recipe.stages["apo"]
    assert first.coach_prompts.rewrite.text == "Mend {current_prompt} {failures}"
    template.write_text("Mend {current_prompt} {failures} well")
    second = load(tmp_path / "recipe.yaml", specs=specs()).recipe.stages["apo"]
    assert first.model_dump() != second.model_dump()
    template.write_text("Mend {current_promt} {failures}")
    with pytest.raises(RecipeError) as refused:
        load(tmp_path / "recipe.yaml", specs=specs())
    assert "recipe.yaml:11" in str(refused.value)
    assert "did you mean 'current_prompt'?" in str(refused.value)
    template.unlink()
    with pytest.raises(RecipeError, match=r"recipe\.yaml:11:.*stages\.apo\.coach_prompts\.rewrite\.file"):
        load(tmp_path / "recipe.yaml", specs=specs())
