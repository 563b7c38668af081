"""The ``evaluate`` stage: the agent on every row of a split, its mean with an interval, and a gate.

Over a grid its metrics are those of the last cell, beside each cell's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightningrun.errors import GateNotMet, RewardErrors
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.config import EvaluateConfig
from lightningrun.stages.evaluate.gate import Check, check_gate, row_mean, scores_by_row, weights_of
from lightningrun.stages.evaluate.grid import compare_cells, flat, run_cells, write_grid
from lightningrun.stages.rollout_file import write_rollouts
from lightningrun.stages.statistics import bootstrap_interval, mean, pass_at_k
from lightningrun.tracking.by_agent import by_agent
from lightningrun.types import Artifact, ArtifactKind, Json, Rollout, RolloutStatus, StageResult

ROLLOUTS = "rollouts.jsonl"


async def run(ctx: StageContext, inputs: Mapping[str, Artifact]) -> StageResult:
    """Evaluate. Raises GateNotMet, which carries the result, after everything is written; RewardErrors if no rollout
    has a score."""
    config: EvaluateConfig = ctx.config
    tasks = ctx.data.splits[config.split].tasks
    cells = await run_cells(ctx, inputs, tasks)
    write_rollouts(ctx.outputs / ROLLOUTS, {one.key: one for found in cells.values() for one in found}.values())
    reward_range = ctx.recipe.reward.range
    weights = {task.id: task.weight for task in tasks} if any(task.weight != 1.0 for task in tasks) else {}
    rollouts = list(cells.values())[-1]
    metrics = measure(rollouts, config.samples, reward_range[1] if reward_range else 1.0, ctx.seed, weights)
    if config.choices():
        records = compare_cells(cells, ctx.seed, weights)
        write_grid(ctx, config.split, records)
        metrics |= flat(records)
    outputs = {
        "rollouts": Artifact(ArtifactKind.ROLLOUTS, None, ROLLOUTS),
        "metrics": Artifact(ArtifactKind.METRICS, metrics),
    }
    result = StageResult(outputs, metrics)
    # Times are told and decide nothing: they are no metrics of the stage.
    slow = {f"agent.{agent}.latency_s": did["latency_s"] for agent, did in _agents(rollouts).items()}
    ctx.journal.emit("metric", stage=ctx.stage, step=0, values={**metrics, **slow})
    beaten = ctx.references[config.gate.beats] / ROLLOUTS if config.gate.beats else None
    checks = check_gate(config.gate, metrics, rollouts, beaten, ctx.seed, weights)
    if checks:
        _decide(ctx, checks, result)
    return result


Weights = Mapping[str, float]
"""Row -> how much it counts; empty where all count the same."""


def measure(
    rollouts: Sequence[Rollout], samples: int, success: float, seed: int, weights: Weights | None = None
) -> dict[str, float]:
    """The stage's metrics. A row's score is the mean of its scored samples; rows without one are not counted in ``n``.

    ``pass_at_k`` counts scores of at least ``success``, over the rows with k scored samples. ``metric.<name>`` is the
    mean of what the reward function called so, over the rows for which it did: a failed rollout has no metrics.
    ``agent.<name>.calls`` and so on are sums over all rollouts, where several agents made calls.
    """
    weights = weights or {}
    by_row = scores_by_row(rollouts)
    if not by_row:
        raise RewardErrors("not one rollout has a score", hint="see the errors in the run's journal")
    metrics = _with_interval("reward", by_row, weights, seed)
    metrics["n"] = len(by_row)
    for k in sorted({1, samples}):
        chances = {
            row: [pass_at_k(len(scores), sum(score >= success - 1e-9 for score in scores), k)]
            for row, scores in by_row.items()
            if len(scores) >= k
        }
        if chances:
            metrics[f"pass_at_{k}"] = row_mean(chances, weights)
    for name, status in (
        ("n_failed", RolloutStatus.FAILED),
        ("n_reward_errors", RolloutStatus.REWARD_ERROR),
        ("n_infra_errors", RolloutStatus.INFRA_ERROR),
    ):
        metrics[name] = sum(rollout.status is status for rollout in rollouts)
    for name in sorted({name for rollout in rollouts for name in rollout.metrics}):
        metrics |= _with_interval(f"metric.{name}", _metric_by_row(rollouts, name), weights, seed)
    for agent, did in _agents(rollouts).items():
        metrics |= {f"agent.{agent}.{name}": value for name, value in did.items() if name != "latency_s"}
    for tag in sorted({tag for rollout in rollouts for tag in rollout.tags}):
        tagged = scores_by_row([rollout for rollout in rollouts if tag in rollout.tags])
        if tagged:
            metrics[f"tag.{tag}.reward"] = row_mean(tagged, weights)
            metrics[f"tag.{tag}.n"] = len(tagged)
    return metrics


def _agents(rollouts: Sequence[Rollout]) -> dict[str, dict[str, float]]:
    return by_agent(rollout.agents for rollout in rollouts)


def _with_interval(name: str, by_row: Mapping[str, list[float]], weights: Weights, seed: int) -> dict[str, float]:
    values = [mean(scores) for scores in by_row.values()]
    low, high = bootstrap_interval(values, seed, weights=weights_of(by_row, weights))
    return {name: row_mean(by_row, weights), f"{name}_low": low, f"{name}_high": high}


def _metric_by_row(rollouts: Sequence[Rollout], name: str) -> dict[str, list[float]]:
    by_row: dict[str, list[float]] = {}
    for rollout in rollouts:
        if name in rollout.metrics:
            by_row.setdefault(rollout.task_id, []).append(rollout.metrics[name])
    return by_row


def _decide(ctx: StageContext, checks: Sequence[Check], result: StageResult) -> None:
    met = all(check.met for check in checks)
    listed: list[dict[str, Json]] = [check.to_json() for check in checks]
    ctx.journal.emit("gate", stage=ctx.stage, met=met, checks=listed)
    if not met:
        failed = "; ".join(str(check) for check in checks if not check.met)
        raise GateNotMet(f"stages.{ctx.stage}.gate is not met: {failed}", result=result)
