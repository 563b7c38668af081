"""Options of the ``evaluate`` stage, its plan-time checks and its forecast."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from lightningrun.recipe.model import Config, StageConfig
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe

_METRICS = re.compile(
    r"reward(_low|_high)?|pass_at_\d+|n(_failed|_reward_errors|_infra_errors)?|tag\..+\.(reward|n)|metric\..+"
    r"|agent\..+\.(calls|tokens|cost_usd|errors)"
)
_CELL_METRICS = re.compile(r"(?P<cell>.+)/(reward|gain|interaction)(_low|_high)?")


class GateConfig(Config):
    """What must hold for the run to go on; otherwise it ends with exit code 4, results kept."""

    min: dict[str, float] = Field(default_factory=dict)
    """Metric -> the least it may be."""
    max: dict[str, float] = Field(default_factory=dict)
    """Metric -> the most it may be."""
    beats: str | None = None
    """An earlier evaluate stage on the same rows: the paired 95% interval of the difference must lie above 0."""


class GridConfig(Config):
    """Prompts and weights to try in every combination. Each is ``<stage>.<output>``, or what the recipe itself has.

    The first of each is what the others are compared with. What is left out is as in any other evaluation.
    """

    prompts: tuple[str, ...] = ()
    """``agent`` names the recipe's own."""
    model: tuple[str, ...] = ()
    """A role of ``models`` names the recipe's own; weights of a stage answer for the stage's ``policy``."""

    @field_validator("prompts", "model")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == 1 or len(set(value)) < len(value):
            raise ValueError("must name two or more, each once")
        return value


class EvaluateConfig(StageConfig):
    """Score the agent with its present prompts on one split, or several prompts and weights in every combination."""

    type: Literal["evaluate"] = "evaluate"
    split: str = "test"
    samples: int = Field(default=1, ge=1)
    """Rollouts a row: they are averaged for the mean and counted for pass@k."""
    grid: GridConfig = GridConfig()
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _given_once(self) -> EvaluateConfig:
        for name in self.choices():
            if name in self.inputs:
                raise ValueError(f"'inputs.{name}' and 'grid.{name}' are both given")
        return self

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(prompts, model) of each cell, the first prompts with each model first; "" where the grid names none."""
        return [(prompts, model) for prompts in self.grid.prompts or [""] for model in self.grid.model or [""]]

    def uses(self, name: str) -> bool:
        return name not in self.choices()

    def choices(self) -> Mapping[str, Sequence[str]]:
        return {name: values for name, values in (("prompts", self.grid.prompts), ("model", self.grid.model)) if values}

    def roles(self) -> tuple[tuple[str, str], ...]:
        return tuple((f"grid.model.{n}", name) for n, name in enumerate(self.grid.model) if "." not in name)

    def references(self) -> tuple[tuple[str, str], ...]:
        return (("gate.beats", self.gate.beats),) if self.gate.beats else ()

    def splits(self) -> tuple[tuple[str, str], ...]:
        return (("split", self.split),)


def forecast(config: EvaluateConfig, recipe: Recipe, rows: Mapping[str, int]) -> Forecast:
    """Exact in rollouts; of LLM calls only that there is at least one a rollout, and one of a judge if there is one."""
    errors = [
        f"gate.{side}: evaluate has no metric {name!r}"
        for side, bounds in (("min", config.gate.min), ("max", config.gate.max))
        for name in bounds
        if not _METRICS.fullmatch(name) and not _is_of_a_cell(name, config)
    ]
    if config.grid.model:
        errors += _unanswerable(config, recipe)
    other = recipe.stages.get(config.gate.beats or "")
    if other is not None and not isinstance(other, EvaluateConfig):
        errors.append(f"gate.beats: stage {config.gate.beats!r} is of type {other.type}, not evaluate")
    elif isinstance(other, EvaluateConfig) and other.split != config.split:
        errors.append(f"gate.beats: stage {config.gate.beats!r} runs on {other.split!r}, not on {config.split!r}")
    if isinstance(other, EvaluateConfig) and (config.choices() or other.choices()):
        errors.append("gate.beats: an evaluation over a grid compares its own cells: gate: {min: {<cell>/gain_low: 0}}")
    if not rows.get(config.split):
        errors.append(f"split: the task has no split {config.split!r}")
    count = rows.get(config.split, 0) * config.samples
    calls: dict[str, int] = {}
    for _, model in config.cells:
        role = model if model and "." not in model else config.policy
        calls[role] = calls.get(role, 0) + count
    if "judge" in recipe.models:
        calls["judge"] = calls.get("judge", 0) + count * len(config.cells)
    return Forecast(rollouts=count * len(config.cells), calls=calls, errors=tuple(errors))


def _is_of_a_cell(name: str, config: EvaluateConfig) -> bool:
    found = _CELL_METRICS.fullmatch(name)
    return found is not None and found["cell"] in {cell_name(*cell) for cell in config.cells}


def cell_name(prompts: str, model: str) -> str:
    """Of a cell, in the names of its metrics."""
    return "/".join(filter(None, (prompts, model)))


def _unanswerable(config: EvaluateConfig, recipe: Recipe) -> list[str]:
    """Models of the grid that nothing could serve."""
    errors = []
    role = recipe.models.get(config.policy)
    for n, name in enumerate(config.grid.model):
        own = recipe.models.get(name)
        if "." in name and role is not None and role.provider != "local":
            errors.append(
                f"grid.model.{n}: models.{config.policy} is of provider {role.provider} and cannot answer from {name}: "
                "let `policy` of this stage name the role of provider local"
            )
        elif own is not None and own.provider == "local" and own.name.partition(".")[0] in recipe.stages:
            errors.append(f"grid.model.{n}: models.{name} has no weights of its own, it is {own.name}: name that")
    return errors


SPEC = StageSpec(
    type="evaluate",
    version=2,
    summary="score the agent on one split, with intervals and a gate",
    config=EvaluateConfig,
    consumes={"prompts": ArtifactKind.PROMPTS, "model": ArtifactKind.MODEL},
    produces={"rollouts": ArtifactKind.ROLLOUTS, "metrics": ArtifactKind.METRICS},
    entry="lightningrun.stages.evaluate.stage:run",
    forecast=forecast,
)
