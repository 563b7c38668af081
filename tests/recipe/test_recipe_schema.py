"""The JSON Schema: current, valid, as permissive as composition needs and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from recipe_project import RECIPE
from stage_types import SPECS

from lightningrun.recipe import json_schema
from lightningrun.stages import specs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    made = json_schema(SPECS)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_committed_schema_is_current() -> None:
    made = json.loads(json.dumps(json_schema(specs())))
    committed = json.loads((ROOT / "lightningrun.schema.json").read_text("utf-8"))
    assert made == committed, "run `lightningrun schema -o lightningrun.schema.json`"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=str)
def test_the_recipes_that_come_along_fit_the_committed_schema(recipe: Path) -> None:
    committed = json.loads((ROOT / "lightningrun.schema.json").read_text("utf-8"))
    jsonschema.validate(yaml.safe_load(recipe.read_text("utf-8")), committed)


def test_a_whole_recipe_fits(validator: Any) -> None:
    validator.validate(yaml.safe_load(RECIPE))


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml\nseed: 3",
        "extends: [a.yaml, b.yaml]\nstages: {apo: {rounds: 3}}",
        "seed: ${vars.seed}",
        "execution: {workers: '${vars.w}', max_infra_errors: '${vars.e}'}",
        "tracking: {enabled: '${vars.on}', traces: {failures: '${vars.f}'}}",
        "models: {coach: '${models.policy}'}",
        "agent: {prompts: {system: Be brief.}, isolation: '${vars.i}', command: [node, a.mjs]}",
        "stages: {apo: {type: apo, rounds: '${vars.r}', budget: {max_rollouts: '${vars.m}'}}}",
        "reward: {function: 'a:b', range: [0, 1]}",
        "models: {policy: {provider: python, name: 'a:b', args: {anything: [1]}}}",
    ],
)
def test_fragments_and_interpolations_fit(validator: Any, text: str) -> None:
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "sead: 3",
        "seed: many",
        "version: 2",
        "execution: {workers: many}",
        "tracking: {enabled: maybe}",
        "agent: {isolation: container}",
        "agent: {prompts: {system: {fil: a}}}",
        "models: {policy: {provider: nobody}}",
        "models: {policy: {temperature: -1}}",
        "stages: {apo: {type: apo, roundz: 3}}",
        "stages: {apo: {type: nothing}}",
        "stages: {apo: {type: apo, mode: edit}}",
        "stages: {apo: {type: apo, budget: {max_rollouts: 0}}}",
        "stages: [apo]",
        "extends: {a: b}",
    ],
)
def test_mistakes_do_not_fit(validator: Any, text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(text))


def test_editors_get_descriptions(validator: Any) -> None:
    model = validator.schema["$defs"]["ModelConfig"]["properties"]
    assert model["timeout_s"]["description"] == "Of one attempt."
    assert "environment variable" in model["api_key_env"]["description"]
