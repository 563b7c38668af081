"""What to try next, derived from the facts of a run; no rule fires without one."""

from __future__ import annotations

import itertools

from lightningrun.tracking.summary import RunSummary, StageSummary

SATURATED = 0.98
LONG_WAIT = 0.25
"""The share of a search's rollouts after which a curve without progress counts as flat."""


def next_steps(run: RunSummary) -> list[str]:
    """Sentences for a person, the most urgent first."""
    steps = []
    if run.status in ("failed", "killed", "interrupted"):
        steps.append(f"The run did not finish. Go on from where it stopped: lightningrun resume {run.run}")
    steps += _from_gates(run) + _from_headline(run) + _from_controls(run)
    for stage in run.stages:
        if stage.type == "apo" and stage.metrics:
            steps += _from_search(run, stage)
    steps += _from_rows(run) + _from_errors(run)
    if any("simulat" in note.lower() for note in run.notes):
        steps.append(
            "The models of this run are simulations: its numbers say that the machinery works, not how a real model "
            "would do. Name real ones under `models:` and run it again."
        )
    return steps


def _from_gates(run: RunSummary) -> list[str]:
    return [
        f"The gate of {stage} was not met: {check['name']} is {check['value']}, asked for {check['bound']}."
        for stage, gate in run.gates.items()
        for check in gate["checks"]
        if not check["met"]
    ]


def _from_headline(run: RunSummary) -> list[str]:
    head = run.headline
    if head is None or head.gain is None or head.low is None or head.high is None:
        return []
    if head.low <= 0 <= head.high:
        return [
            f"The gain cannot be told from chance: its interval holds 0. With {head.n} rows only larger effects show; "
            "add rows to the split, or samples to both."
        ]
    if head.high < 0:
        return ["The final result is worse than the baseline beyond chance: look at the rows that broke."]
    return []


def _from_controls(run: RunSummary) -> list[str]:
    return [
        f"{one.stage} is not better than its control beyond chance ({gain.mean:+.3f}, {gain.low:+.3f} to "
        f"{gain.high:+.3f}): more of the earlier training gave as much for the same cost. "
        "Train that until more gives nothing, then begin."
        for one in run.evaluations
        if (gain := one.beyond_control) is not None and gain.low <= 0
    ]


def _from_search(run: RunSummary, stage: StageSummary) -> list[str]:
    metrics = stage.metrics
    best, seed = metrics.get("best_val"), metrics.get("seed_val")
    steps = []
    if isinstance(best, float) and isinstance(seed, float) and best > seed and not metrics.get("promoted"):
        steps.append(
            f"{stage.id} found a prompt that scores {best:.3f} on val against {seed:.3f}, but the confirmation "
            f"did not rule out luck: more val rows, or more of `stages.{stage.id}.budget.max_rollouts`."
        )
    if isinstance(best, (int, float)) and best >= SATURATED:
        steps.append(f"{stage.id} solves val ({best:.3f}): harder questions would leave it something to learn.")
    curve = (run.curves.get(stage.id) or {}).get("val_reward") or ()
    rises = [x for (_, before), (x, after) in itertools.pairwise(curve) if after > before]
    spent = metrics.get("rollouts")
    late = rises and isinstance(spent, (int, float)) and rises[-1] >= (1 - LONG_WAIT) * spent
    if late and isinstance(best, (int, float)) and best < SATURATED:
        steps.append(f"The curve of {stage.id} was still rising near its end: raise `stages.{stage.id}.budget`.")
    return steps


def _from_rows(run: RunSummary) -> list[str]:
    overall = run.headline.final if run.headline else None
    weak = min(run.by_tag(), key=lambda row: (row.after, row.tag), default=None)
    if weak is None or not isinstance(overall, (int, float)) or weak.after >= overall - 0.1:
        return []
    return [
        f"Weakest kind of question: {weak.tag} ({weak.after:.3f} on {weak.n} rows, {overall:.3f} overall). Add "
        "training rows of this kind, and read its failures above."
    ]


def _from_errors(run: RunSummary) -> list[str]:
    rules = {
        "n_reward_errors": "{n} times the reward function gave no usable score: those rows are in no mean.",
        "n_infra_errors": "{n} rollouts were lost to infrastructure (not scored): check limits and `concurrency`.",
        "n_failed": "the agent raised, timed out or gave no answer {n} times: lightningrun logs {run} {stage}",
    }
    return [
        f"{stage.id}: " + text.format(n=stage.metrics[name], run=run.run, stage=stage.id)
        for stage in run.stages
        for name, text in rules.items()
        if stage.metrics.get(name)
    ]
