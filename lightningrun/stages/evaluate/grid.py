"""An evaluation over a grid: every prompt with every model on the same rows, and what each adds.

Cells are compared row by row with the first one (its prompts and its model), the base. In a cell away from the base on
both axes the gain is that of its prompts alone, of its model alone, and their *interaction*: what the two do together
beyond the sum. All intervals are paired 95% bootstraps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lightningrun.files import write_atomic
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.config import EvaluateConfig, cell_name
from lightningrun.stages.evaluate.gate import scores_by_row, weights_of
from lightningrun.stages.statistics import bootstrap_interval, mean
from lightningrun.types import Artifact, Json, Rollout, Task

GRID = "grid.json"
Cell = tuple[str, str]
"""Prompts and model, as the recipe names them."""


async def run_cells(
    ctx: StageContext, inputs: Mapping[str, Artifact], tasks: Sequence[Task]
) -> dict[Cell, list[Rollout]]:
    """The rollouts of every cell. A model is loaded once, for all prompts."""
    config: EvaluateConfig = ctx.config
    prompts = _prompts(ctx, inputs)
    found: dict[Cell, list[Rollout]] = {}
    total = len(config.cells) * len(tasks) * config.samples
    for number, model in enumerate(config.grid.model or [""]):
        role = model if model and "." not in model else config.policy
        if model:
            ctx.service.serve(role, ctx.folders.get(f"model[{number}]"))
        requests = {
            name: [RolloutRequest(t, texts, sample, role, model) for t in tasks for sample in range(config.samples)]
            for name, texts in prompts.items()
        }
        rollouts = iter(await ctx.engine.run([one for asked in requests.values() for one in asked], total=total))
        found |= {(name, model): [next(rollouts) for _ in asked] for name, asked in requests.items()}
    return {cell: found[cell] for cell in config.cells}


def _prompts(ctx: StageContext, inputs: Mapping[str, Artifact]) -> dict[str, Mapping[str, str]]:
    """Name in the grid -> prompts."""
    config: EvaluateConfig = ctx.config
    given = [inputs.get(f"prompts[{number}]") for number in range(len(config.grid.prompts))]
    texts = [{**ctx.prompts, **artifact.value} if artifact else ctx.prompts for artifact in given]
    return dict(zip(config.grid.prompts, texts, strict=True)) or {"": ctx.prompts}


def compare_cells(
    cells: Mapping[Cell, Sequence[Rollout]], seed: int, weights: Mapping[str, float]
) -> list[dict[str, Json]]:
    """A record of each cell: ``reward`` of it, ``gain`` over the base, ``interaction``; each with ``_low``, ``_high``.

    ``n`` rows have a score in the cell; differences are of the rows that have one in all cells that they speak of.
    """
    scores = {cell: {row: mean(of) for row, of in scores_by_row(found).items()} for cell, found in cells.items()}
    (first_prompts, first_model) = base = next(iter(cells))
    records = []
    for (prompts, model), mine in scores.items():
        terms = {"reward": [(1, (prompts, model))]}
        if (prompts, model) != base:
            terms["gain"] = [(1, (prompts, model)), (-1, base)]
        if prompts != first_prompts and model != first_model:
            alone = [(prompts, first_model), (first_prompts, model)]
            terms["interaction"] = [*terms["gain"], *((-1, cell) for cell in alone), (2, base)]
        record: dict[str, Json] = {"prompts": prompts, "model": model, "n": len(mine)}
        for name, parts in terms.items():
            record |= _estimate(name, parts, scores, seed, weights)
        records.append(record)
    return records


def _estimate(
    name: str,
    parts: Sequence[tuple[int, Cell]],
    scores: Mapping[Cell, Mapping[str, float]],
    seed: int,
    weights: Mapping[str, float],
) -> dict[str, Json]:
    """The mean over rows of a sum of cells, with its interval; nothing where no row has a score in all of them."""
    rows = [row for row in scores[parts[0][1]] if all(row in scores[cell] for _, cell in parts)]
    if not rows:
        return {}
    sums = [sum(times * scores[cell][row] for times, cell in parts) for row in rows]
    heavy = weights_of(rows, weights)
    low, high = bootstrap_interval(sums, seed, weights=heavy)
    return {name: mean(sums, heavy), f"{name}_low": low, f"{name}_high": high}


def flat(records: Sequence[Mapping[str, Json]]) -> dict[str, float]:
    """The records as metrics: ``apo.prompts/grpo.model/reward``."""
    return {
        f"{cell_name(record['prompts'], record['model'])}/{name}": value
        for record in records
        for name, value in record.items()
        if name.partition("_")[0] in ("reward", "gain", "interaction")
    }


def write_grid(ctx: StageContext, split: str, records: Sequence[Mapping[str, Json]]) -> None:
    """The cells as a file of the stage, for reports."""
    text = json.dumps({"split": split, "cells": list(records)}, ensure_ascii=False, indent=1)
    write_atomic(ctx.outputs / GRID, text + "\n")
