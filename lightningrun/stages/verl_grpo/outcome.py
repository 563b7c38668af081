"""What both backends end with: the files and figures of the stage."""

from __future__ import annotations

import json
from pathlib import Path

from lightningrun.files import write_atomic
from lightningrun.stages.base import StageContext
from lightningrun.types import Artifact, ArtifactKind, Json, StageResult

JUDGED = 1_000_000_000
"""Samples of evaluations count from here, so that they are never a training rollout of the same row."""
LITTLE = 0.05
"""If sampling often finds hardly more than answering once, there is little for RL to make likelier."""
DEAD_STEPS = 10
"""So many steps in which all rollouts of every row earned the same end the stage."""
NOTHING_TO_LEARN = (
    "a reward with more than one value, rows that are sometimes right, a higher temperature, or more sft before"
)


def success_of(ctx: StageContext) -> float:
    """The reward from which on a rollout counts as right: the highest there is."""
    limits = ctx.recipe.reward.range
    return (limits[1] if limits else 1.0) - 1e-9


def result_of(ctx: StageContext, metrics: dict[str, Json]) -> StageResult:
    """The stage's result, its checkpoint already in ``outputs/model``; ``metrics`` gets the count of rollouts."""
    from lightningrun.models.local.folder import content_digest

    metrics["rollouts"] = _write_rollouts(ctx, ctx.outputs / "rollouts.jsonl")
    facts = {"role": ctx.config.policy, "digest": content_digest(ctx.outputs / "model")}
    outputs = {
        "model": Artifact(ArtifactKind.MODEL, facts, "model"),
        "rollouts": Artifact(ArtifactKind.ROLLOUTS, None, "rollouts.jsonl"),
        "metrics": Artifact(ArtifactKind.METRICS, metrics),
    }
    return StageResult(outputs, metrics)


def _write_rollouts(ctx: StageContext, path: Path) -> int:
    """All that was trained on, from the journal: a resumed stage has not seen the earlier ones."""
    trained = _trained(ctx, ctx.config.split)
    lines = [json.dumps(trained[key], ensure_ascii=False) for key in sorted(trained)]
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def _trained(ctx: StageContext, split: str) -> dict[str, Json]:
    """Key -> rollout, of this very work."""
    found: dict[str, Json] = {}
    key = None
    for event in ctx.journal.events():
        if event["stage"] != ctx.stage:
            continue
        rollout = event.get("rollout") if event["kind"] == "rollout" else None
        if event["kind"] == "stage_started" and event["key"] != key:
            key, found = event["key"], {}
        elif rollout and rollout["split"] == split and rollout["sample"] < JUDGED - 1:
            found[rollout["key"]] = rollout
    return found
