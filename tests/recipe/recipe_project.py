"""A small project to load recipes from, and a whole recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage_types import SPECS

from lightningrun.errors import RecipeError
from lightningrun.recipe import LoadedRecipe, load

RECIPE = """\
version: 1
name: demo
seed: 7
vars: {rounds: 3, base_model: gpt}
agent:
  entrypoint: pkg.agent:answer
  prompts:
    system: {file: prompts/system.md}
  args: {database: x.db}
task:
  data: {train: data/train.jsonl, test: data/test.jsonl}
reward: {function: "pkg.agent:match"}
models:
  policy: {provider: python, name: "pkg.agent:student", temperature: 0}
  coach: {provider: litellm, name: openai/gpt-4.1, api_key_env: OPENAI_API_KEY}
stages:
  baseline: {type: evaluate, split: test}
  apo:
    type: apo
    when: baseline.reward < 0.95
    rounds: ${vars.rounds}
    budget: {max_rollouts: 500}
  sft:
    type: sft
    inputs: {prompts: apo.prompts, rollouts: apo.rollouts}
  final:
    type: evaluate
    split: test
    gate: {min: {reward: 0.8}, beats: baseline}
"""

AGENT = """\
raise SystemExit("imported: the user's code ran")

LIMIT = 3

async def answer(question): ...

def match(task, output): ...

def student(request): ...
"""


class Project:
    """Writes files below its folder and loads recipes from it with the tests' stage types."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, text: str = RECIPE, *overrides: str, name: str = "recipe.yaml", **options: Any) -> LoadedRecipe:
        return load(self.write(name, text).relative_to(self.root), overrides, specs=SPECS, **options)

    def problems(self, text: str = RECIPE, *overrides: str, **options: Any) -> list[str]:
        """What loading complains of, one string a problem."""
        with pytest.raises(RecipeError) as caught:
            self.load(text, *overrides, **options)
        assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
        return str(caught.value).splitlines()
