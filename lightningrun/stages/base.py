"""What every stage room has in common: its description, and the context it runs in.

A room is a folder with two files. ``config.py`` is light (pydantic only): the options, the plan-time checks and the
forecast, gathered in one ``SPEC``. ``stage.py`` is where the work is: ``async def run(ctx, inputs) -> StageResult``.
"""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.types import Artifact, ArtifactKind, StageResult

if TYPE_CHECKING:
    from lightningrun.dataset import Dataset
    from lightningrun.models.service import ModelService
    from lightningrun.recipe.model import Recipe, StageConfig
    from lightningrun.rollouts.engine import RolloutEngine
    from lightningrun.tracking.journal import RunJournal


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a stage expects to spend, before it runs. Each count is an upper bound unless ``exact``."""

    rollouts: int = 0
    calls: Mapping[str, int] = field(default_factory=dict)
    """Role -> LLM calls, at one call a rollout: nobody knows how many an agent makes."""
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    """What makes the stage pointless or impossible (a budget too small to do anything): refused at plan time."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage type. ``version`` goes into cache keys: raise it when the same config would give other results."""

    type: str
    version: int
    summary: str
    config: builtins.type[StageConfig]
    consumes: Mapping[str, ArtifactKind]
    """Input name -> kind; an input left out in the recipe takes the newest matching output, or the recipe's own."""
    produces: Mapping[str, ArtifactKind]
    entry: str
    """``module:function`` of ``run``, imported only when the stage runs."""
    forecast: Callable[[Any, Recipe, Mapping[str, int]], Forecast]
    """(stage config, recipe, split -> row count) -> Forecast."""

    def load(self) -> Callable[[StageContext, Mapping[str, Artifact]], Awaitable[StageResult]]:
        module, _, name = self.entry.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


@dataclass(slots=True)
class StageContext:
    """Everything a running stage may touch."""

    stage: str
    """The stage's id in the recipe."""
    config: Any
    """Its pydantic config."""
    recipe: Recipe
    seed: int
    """Derived from (recipe seed, stage id)."""
    data: Dataset
    prompts: Mapping[str, str]
    """The prompts to start from: the ``prompts`` input if there is one, else the recipe's own."""
    journal: RunJournal
    engine: RolloutEngine
    service: ModelService
    outputs: Path
    """An empty folder to write output files into; committed by the runner when ``run`` returns."""
    results: Mapping[str, StageResult]
    """Results of the stages that this config ``references()``, by stage id (for ``gate: {beats: ...}``)."""
    references: Mapping[str, Path]
    """Their committed output folders."""
    work: Path
    """A folder kept between attempts at the same work, for what a resumed stage goes on from; gone once it commits."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Input name -> where its file or folder lies; inputs without one, and the recipe's own, are absent."""
    calls: Mapping[str, Path] = field(default_factory=dict)
    """Input name -> the call log that ``call_refs`` of its rollouts point into: an earlier run's for a reused stage."""

    def warn(self, message: str) -> None:
        self.journal.emit("log", stage=self.stage, level="warning", message=message)

    def info(self, message: str) -> None:
        self.journal.emit("log", stage=self.stage, level="info", message=message)
