"""Evaluations beside each other within a run: those of one split in a table, and the cells of a grid.

A stage that ``control_for`` marks as the control of another is shown as such, with what each cost to train: what is
left of a training's gain beside its control is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from lightningrun.tracking.comparison import Row, compare_rows, paired_interval
from lightningrun.types import Json

GRID = "grid.json"


@dataclass(frozen=True, slots=True)
class Gain:
    """A mean paired difference over ``n`` rows, and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Standing:
    """One evaluation. ``prompts`` and ``model`` say where those are from, as ``grpo.model``; empty: the recipe's."""

    stage: str
    split: str
    n: int
    reward: float
    low: float | None
    high: float | None
    prompts: str = ""
    model: str = ""
    gain: Gain | None = None
    """Over the first evaluation of the split."""
    control_for: str = ""
    """The stage that the weights are the control of."""
    beyond_control: Gain | None = None
    """Over the evaluation of the control of these weights."""
    cpu_s: float | None = None
    """Processor seconds that the stage took which made these weights."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of an evaluation over a grid, in rows of prompts and columns of models. The first is the base."""

    stage: str
    split: str
    prompts: tuple[str, ...]
    models: tuple[str, ...]
    cells: tuple[Mapping[str, Json], ...]
    """prompts, model, n, and ``reward``, ``gain``, ``interaction``, each with ``_low`` and ``_high``."""

    def cell(self, prompts: str, model: str) -> Mapping[str, Json]:
        return next(cell for cell in self.cells if (cell["prompts"], cell["model"]) == (prompts, model))

    def effects(self) -> list[tuple[str, str, Mapping[str, Json]]]:
        """(what was changed, which of ``gain`` and ``interaction``, the cell): each axis alone, then together."""
        (base_prompts, base_model), found = (self.prompts[0], self.models[0]), []
        for cell in self.cells:
            changed = [
                name for name, old in ((cell["prompts"], base_prompts), (cell["model"], base_model)) if name != old
            ]
            if changed:
                found.append((" + ".join(changed), "gain", cell))
        both = [cell for cell in self.cells if cell.get("interaction") is not None]
        return [*found, *((f"{cell['prompts']} x {cell['model']}", "interaction", cell) for cell in both)]


def grid_of(stage: str, told: Mapping[str, Any]) -> Grid | None:
    """From what a stage left in its ``grid.json``; None if that is nothing."""
    cells = told.get("cells")
    if not cells:
        return None
    prompts, models = (tuple(dict.fromkeys(cell[axis] for cell in cells)) for axis in ("prompts", "model"))
    return Grid(stage, str(told.get("split", "")), prompts, models, tuple(cells))


def standings(
    evaluated: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Row]]],
    inputs: Mapping[str, Mapping[str, str]],
    trained: Mapping[str, Mapping[str, Any]],
    controls: Mapping[str, str],
) -> tuple[Standing, ...]:
    """From (stage, metrics, rows) of each evaluation in order.

    ``inputs`` are those of the stages, ``trained`` the metrics of the stages that made weights, ``controls`` maps a
    stage to the one that it is the control of.
    """
    rows = {stage: found for stage, _, found in evaluated}
    made = {stage: inputs.get(stage, {}).get("model", "").partition(".")[0] for stage in rows}
    first: dict[str, str] = {}
    found = []
    for stage, metrics, mine in evaluated:
        split = next((row.split for row in mine.values()), "")
        base = first.setdefault(split, stage)
        rivals = [other for other in rows if controls.get(made[other]) == made[stage] != ""]
        given = inputs.get(stage, {})
        found.append(
            Standing(
                stage=stage,
                split=split,
                n=len(mine),
                reward=metrics["reward"],
                low=metrics.get("reward_low"),
                high=metrics.get("reward_high"),
                prompts=given.get("prompts", ""),
                model=given.get("model", ""),
                gain=None if base == stage else _gain(rows[base], mine),
                control_for=controls.get(made[stage], ""),
                beyond_control=next((gain for other in rivals if (gain := _gain(rows[other], mine))), None),
                cpu_s=trained.get(made[stage], {}).get("cpu_s"),
            )
        )
    return tuple(found)


def worth_showing(found: Sequence[Standing], least: int = 3) -> dict[str, list[Standing]]:
    """Split -> its evaluations, where there are at least so many (two are told by the headline), or a control."""
    splits: dict[str, list[Standing]] = {}
    for standing in found:
        splits.setdefault(standing.split, []).append(standing)
    return {split: mine for split, mine in splits.items() if len(mine) >= least or any(one.control_for for one in mine)}


def _gain(before: Mapping[str, Row], after: Mapping[str, Row]) -> Gain | None:
    gaps = tuple(b.score - a.score for a, b in compare_rows(before, after))
    return Gain(fmean(gaps), *_interval(gaps), len(gaps)) if gaps else None


@lru_cache(maxsize=256)
def _interval(gaps: tuple[float, ...]) -> tuple[float, float]:
    """Remembered, since a run is summarised several times."""
    return paired_interval(gaps)
