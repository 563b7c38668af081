"""Small stage types of the tests' own, so that these tests do not depend on any real stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from lightningrun.recipe import Config, StageConfig
from lightningrun.types import ArtifactKind

PROMPTS, MODEL, ROLLOUTS, METRICS = (
    ArtifactKind.PROMPTS,
    ArtifactKind.MODEL,
    ArtifactKind.ROLLOUTS,
    ArtifactKind.METRICS,
)


class GateConfig(Config):
    min: dict[str, float] = Field(default={})
    beats: str | None = None


class MeasureConfig(StageConfig):
    type: Literal["evaluate"]
    split: str = "test"
    samples: int = Field(default=1, ge=1)
    gate: GateConfig | None = None

    def splits(self) -> tuple[tuple[str, str], ...]:
        return (("split", self.split),)

    def references(self) -> tuple[tuple[str, str], ...]:
        return (("gate.beats", self.gate.beats),) if self.gate and self.gate.beats else ()


class SearchBudget(Config):
    max_rollouts: int = Field(default=500, ge=1)


class SearchConfig(StageConfig):
    type: Literal["apo"]
    coach: str = "coach"
    rounds: int = Field(default=3, ge=1)
    mode: Literal["rewrite", "edits"] = "rewrite"
    optimize: list[str] | None = None
    budget: SearchBudget = SearchBudget()

    def roles(self) -> tuple[tuple[str, str], ...]:
        return (("coach", self.coach),)


class TuneConfig(StageConfig):
    type: Literal["sft"]
    epochs: int = 1


@dataclass(frozen=True)
class Spec:
    type: str
    config: type[StageConfig]
    consumes: Mapping[str, ArtifactKind]
    produces: Mapping[str, ArtifactKind]


SPECS = {
    spec.type: spec
    for spec in (
        Spec(
            "evaluate", MeasureConfig, {"prompts": PROMPTS, "model": MODEL}, {"rollouts": ROLLOUTS, "metrics": METRICS}
        ),
        Spec("apo", SearchConfig, {"prompts": PROMPTS}, {"prompts": PROMPTS, "rollouts": ROLLOUTS, "metrics": METRICS}),
        Spec("sft", TuneConfig, {"prompts": PROMPTS, "rollouts": ROLLOUTS}, {"model": MODEL, "metrics": METRICS}),
    )
}
