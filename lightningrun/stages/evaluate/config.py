"""Options of the ``evaluate`` stage, its plan-time checks and its forecast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lightningrun.recipe.model import Config, StageConfig
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe

_METRICS = re.compile(
    r"reward(_low|_high)?|pass_at_\d+|n(_failed|_reward_errors|_infra_errors)?|tag\..+\.(reward|n)|metric\..+"
)


class GateConfig(Config):
    """What must hold for the run to go on; otherwise it ends with exit code 4, results kept."""

    min: dict[str, float] = Field(default_factory=dict)
    """Metric -> the least it may be."""
    max: dict[str, float] = Field(default_factory=dict)
    """Metric -> the most it may be."""
    beats: str | None = None
    """An earlier evaluate stage on the same rows: the paired 95% interval of the difference must lie above 0."""


class EvaluateConfig(StageConfig):
    """Score the agent with its present prompts on one split."""

    type: Literal["evaluate"] = "evaluate"
    split: str = "test"
    samples: int = Field(default=1, ge=1)
    """Rollouts a row: they are averaged for the mean and counted for pass@k."""
    gate: GateConfig = GateConfig()

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
        if not _METRICS.fullmatch(name)
    ]
    other = recipe.stages.get(config.gate.beats or "")
    if other is not None and not isinstance(other, EvaluateConfig):
        errors.append(f"gate.beats: stage {config.gate.beats!r} is of type {other.type}, not evaluate")
    elif isinstance(other, EvaluateConfig) and other.split != config.split:
        errors.append(f"gate.beats: stage {config.gate.beats!r} runs on {other.split!r}, not on {config.split!r}")
    if not rows.get(config.split):
        errors.append(f"split: the task has no split {config.split!r}")
    count = rows.get(config.split, 0) * config.samples
    return Forecast(
        rollouts=count,
        calls={config.policy: count, **({"judge": count} if "judge" in recipe.models else {})},
        errors=tuple(errors),
    )


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
