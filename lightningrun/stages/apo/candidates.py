"""Candidates of a prompt search, and the choice of whom to improve next.

A candidate is one text for each optimised prompt. Its ``val`` scores exist only once it was scored on all of the
validation rows; only then can it be a parent or a winner.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightningrun.files import digest
from lightningrun.stages.statistics import mean


@dataclass(slots=True)
class Candidate:
    """One node of the search's tree. ``id`` 0 is the seed; ids follow the order of proposals."""

    id: int
    prompts: Mapping[str, str]
    """All prompts of the agent, those that are not optimised included."""
    parents: tuple[int, ...] = ()
    val: dict[str, float] | None = None
    """Validation row -> score (mean of its samples); rows without a usable score are absent."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metric of the reward's objective -> mean on val, more is better."""
    shown: frozenset[str] = frozenset()
    """Training rows that its prompts show as examples: on these it proves nothing."""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.digest = digest(dict(self.prompts))

    @property
    def val_mean(self) -> float:
        return mean(list(self.val.values())) if self.val else float("-inf")


def differences(before: Mapping[str, float], after: Mapping[str, float]) -> list[float]:
    """``after - before`` for each row that both have, in the order of ``before``."""
    return [after[row] - score for row, score in before.items() if row in after]


def better(challenger: Candidate, holder: Candidate) -> bool:
    """Whether the challenger's mean is higher on the rows that both have (rows lost to errors must not decide)."""
    gaps = differences(holder.val or {}, challenger.val or {})
    return bool(gaps) and sum(gaps) > 1e-9


def choose_parent(
    pool: Sequence[Candidate],
    best: Candidate,
    strategy: Literal["epsilon_greedy", "pareto", "current_best"],
    epsilon: float,
    rng: random.Random,
    frontier: Literal["rows", "metrics", "both"] = "rows",
) -> Candidate:
    """One parent from the candidates that were scored on all of val."""
    if strategy == "epsilon_greedy":
        return rng.choice(pool) if rng.random() < epsilon else best
    if strategy == "pareto":
        return _from_frontier(pool, frontier, rng)
    return best


def _from_frontier(
    pool: Sequence[Candidate], frontier: Literal["rows", "metrics", "both"], rng: random.Random
) -> Candidate:
    """Drawn in proportion to the rows, or metrics, where it is among the best, once dominated candidates are out
    (GEPA, 2025)."""
    leaders = _leaders(pool, [candidate.val or {} for candidate in pool]) if frontier != "metrics" else {}
    if frontier != "rows":
        by_metric = _leaders(pool, [candidate.metrics for candidate in pool])
        leaders |= {f"metric {name}": ids for name, ids in by_metric.items()}
    alive = {c.id for c in pool}
    for candidate in sorted(pool, key=lambda c: (c.val_mean, c.id)):
        led = [ids & alive for ids in leaders.values() if candidate.id in ids]
        if len(alive) > 1 and all(len(ids) > 1 for ids in led):
            alive.discard(candidate.id)
    weights = [sum(c.id in ids for ids in leaders.values()) if c.id in alive else 0 for c in pool]
    return rng.choices(pool, weights=weights)[0] if any(weights) else pool[0]


def _leaders(pool: Sequence[Candidate], scores: Sequence[Mapping[str, float]]) -> dict[str, set[int]]:
    """Row or metric -> the candidates that are best there; ``scores`` are the pool's, in order."""
    found: dict[str, set[int]] = {}
    for name in dict.fromkeys(name for each in scores for name in each):
        values = [each.get(name, float("-inf")) for each in scores]
        found[name] = {c.id for c, value in zip(pool, values, strict=True) if value >= max(values) - 1e-9}
    return found
