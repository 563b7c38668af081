"""The ``evaluate`` stage: the agent on every row of a split, its mean with an interval, and a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightningrun.errors import GateNotMet, RewardErrors
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.config import EvaluateConfig
from lightningrun.stages.evaluate.gate import Check, check_gate, scores_by_row
from lightningrun.stages.rollout_file import write_rollouts
from lightningrun.stages.statistics import bootstrap_interval, mean, pass_at_k
from lightningrun.types import Artifact, ArtifactKind, Json, Rollout, RolloutStatus, StageResult

ROLLOUTS = "rollouts.jsonl"


async def run(ctx: StageContext, inputs: Mapping[str, Artifact]) -> StageResult:
    """Evaluate. Raises GateNotMet, which carries the result, after everything is written; RewardErrors if no rollout
    has a score."""
    config: EvaluateConfig = ctx.config
    tasks = ctx.data.splits[config.split].tasks
    requests = [RolloutRequest(task, ctx.prompts, sample) for task in tasks for sample in range(config.samples)]
    rollouts = await ctx.engine.run(requests, total=len(requests))
    write_rollouts(ctx.outputs / ROLLOUTS, rollouts)
    reward_range = ctx.recipe.reward.range
    metrics = measure(rollouts, config.samples, reward_range[1] if reward_range else 1.0, ctx.seed)
    outputs = {
        "rollouts": Artifact(ArtifactKind.ROLLOUTS, None, ROLLOUTS),
        "metrics": Artifact(ArtifactKind.METRICS, metrics),
    }
    result = StageResult(outputs, metrics)
    ctx.journal.emit("metric", stage=ctx.stage, step=0, values=metrics)
    beaten = ctx.references[config.gate.beats] / ROLLOUTS if config.gate.beats else None
    checks = check_gate(config.gate, metrics, rollouts, beaten, ctx.seed)
    if checks:
        _decide(ctx, checks, result)
    return result


def measure(rollouts: Sequence[Rollout], samples: int, success: float, seed: int) -> dict[str, float]:
    """The stage's metrics. A row's score is the mean of its scored samples; rows without one are not counted in ``n``.

    ``pass_at_k`` counts scores of at least ``success``, over the rows with k scored samples.
    """
    by_row = scores_by_row(rollouts)
    if not by_row:
        raise RewardErrors("not one rollout has a score", hint="see the errors in the run's journal")
    values = [mean(scores) for scores in by_row.values()]
    low, high = bootstrap_interval(values, seed)
    metrics = {"reward": mean(values), "reward_low": low, "reward_high": high, "n": len(values)}
    for k in sorted({1, samples}):
        chances = [
            pass_at_k(len(scores), sum(score >= success - 1e-9 for score in scores), k)
            for scores in by_row.values()
            if len(scores) >= k
        ]
        if chances:
            metrics[f"pass_at_{k}"] = mean(chances)
    for name, status in (
        ("n_failed", RolloutStatus.FAILED),
        ("n_reward_errors", RolloutStatus.REWARD_ERROR),
        ("n_infra_errors", RolloutStatus.INFRA_ERROR),
    ):
        metrics[name] = sum(rollout.status is status for rollout in rollouts)
    for tag in sorted({tag for rollout in rollouts for tag in rollout.tags}):
        tagged = scores_by_row([rollout for rollout in rollouts if tag in rollout.tags])
        if tagged:
            metrics[f"tag.{tag}.reward"] = mean([mean(scores) for scores in tagged.values()])
            metrics[f"tag.{tag}.n"] = len(tagged)
    return metrics


def _decide(ctx: StageContext, checks: Sequence[Check], result: StageResult) -> None:
    met = all(check.met for check in checks)
    listed: list[dict[str, Json]] = [check.to_json() for check in checks]
    ctx.journal.emit("gate", stage=ctx.stage, met=met, checks=listed)
    if not met:
        failed = "; ".join(str(check) for check in checks if not check.met)
        raise GateNotMet(f"stages.{ctx.stage}.gate is not met: {failed}", result=result)
