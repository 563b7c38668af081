"""The gate of an evaluation: bounds on its metrics, and a comparison with an earlier evaluation of the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightningrun.stages.evaluate.config import GateConfig
from lightningrun.stages.rollout_file import read_rollouts
from lightningrun.stages.statistics import bootstrap_interval, mean
from lightningrun.types import Json, Rollout


@dataclass(frozen=True, slots=True)
class Check:
    """One condition. ``value`` is None when there is nothing to judge, which never meets a gate."""

    name: str
    value: float | None
    bound: float
    met: bool
    note: str = ""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    def __str__(self) -> str:
        value = "unknown" if self.value is None else f"{self.value:.4g}"
        return f"{self.name}: {value}, wanted {self.bound:.4g}{f' ({self.note})' if self.note else ''}"


def check_gate(
    gate: GateConfig,
    metrics: Mapping[str, float],
    rollouts: Sequence[Rollout],
    beaten: Path | None,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> list[Check]:
    """Every condition of the gate. ``beaten`` is the rollouts file of the stage that ``beats`` names."""
    checks = []
    for name, bound in gate.min.items():
        value = metrics.get(name)
        checks.append(Check(f"min.{name}", value, bound, value is not None and value >= bound))
    for name, bound in gate.max.items():
        value = metrics.get(name)
        checks.append(Check(f"max.{name}", value, bound, value is not None and value <= bound))
    if beaten is not None:
        checks.append(
            _beats(str(gate.beats), _means(rollouts), _means(list(read_rollouts(beaten))), seed, weights or {})
        )
    return checks


def scores_by_row(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """Row -> the scores of its samples, failed rollouts included, errors of reward or infrastructure not."""
    by_row: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.status.scored and rollout.score is not None:
            by_row.setdefault(rollout.task_id, []).append(rollout.score)
    return by_row


def weights_of(rows: Iterable[str], weights: Mapping[str, float]) -> list[float] | None:
    """The weights of ``rows`` in their order; None where all count the same."""
    return [weights[row] for row in rows] if weights else None


def row_mean(by_row: Mapping[str, list[float]], weights: Mapping[str, float]) -> float:
    """The mean over rows of the mean of each."""
    return mean([mean(values) for values in by_row.values()], weights_of(by_row, weights))


def _means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    return {row: mean(scores) for row, scores in scores_by_row(rollouts).items()}


def _beats(
    name: str, mine: Mapping[str, float], theirs: Mapping[str, float], seed: int, weights: Mapping[str, float]
) -> Check:
    """Met if the paired 95% bootstrap interval of the mean difference lies above 0."""
    gaps = {row: score - theirs[row] for row, score in mine.items() if row in theirs}
    if not gaps:
        return Check(f"beats.{name}", None, 0.0, False, "no row has a score in both")
    values, heavy = list(gaps.values()), weights_of(gaps, weights)
    low, high = bootstrap_interval(values, seed, weights=heavy)
    note = f"paired difference {mean(values, heavy):+.3f}, 95% interval {low:+.3f} to {high:+.3f}, {len(gaps)} rows"
    return Check(f"beats.{name}", low, 0.0, low > 0, note)
