"""Small exact statistics in plain Python: intervals and one-sided paired tests for a few hundred rows.

Everything random is seeded, so that a resumed stage reports the same digits. Scores are floats, one a row (several
samples of a row are averaged before they come here); pairs are differences ``after - before``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from statistics import fmean

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95% interval are then steady to about a tenth of its width."""
EXACT_SIGN_FLIPS = 14
"""Up to so many non-zero differences all 2^n sign flips are counted; above, a seeded sample of them."""
MONTE_CARLO_FLIPS = 20_000
_TIE = 1e-9


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, or of the weighted mean. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to take the mean of")
    if len(set(values)) == 1:
        return values[0], values[0]
    rng = random.Random(seed)
    size = len(values)
    if weights is None:
        means = sorted(math.fsum(rng.choices(values, k=size)) / size for _ in range(RESAMPLES))
    else:  # rows are drawn with their weights: how heavy a draw is belongs to its luck
        products = [value * weight for value, weight in zip(values, weights, strict=True)]
        draws = (rng.choices(range(size), k=size) for _ in range(RESAMPLES))
        means = sorted(
            math.fsum(map(products.__getitem__, draw)) / math.fsum(map(weights.__getitem__, draw)) for draw in draws
        )
    cut = (1 - confidence) / 2
    return means[int(cut * RESAMPLES)], means[min(RESAMPLES - 1, math.ceil((1 - cut) * RESAMPLES) - 1)]


def sign_test(wins: int, losses: int) -> float:
    """One-sided exact p-value of at least ``wins`` of ``wins + losses`` fair coins (McNemar's exact test)."""
    trials = wins + losses
    hits: int = sum(math.comb(trials, k) for k in range(wins, trials + 1))
    return hits / (1 << trials)


def permutation_test(differences: Sequence[float], seed: int = 0) -> float:
    """One-sided p-value of the mean difference under random sign flips (Fisher's paired permutation test).

    Exact for few non-zero differences. For many, ``(1 + hits) / (1 + draws)`` of seeded flips, which is a valid
    p-value too, never 0.
    """
    moved = [difference for difference in differences if abs(difference) > _TIE]
    observed = math.fsum(moved) - _TIE
    if len(moved) <= EXACT_SIGN_FLIPS:
        signs = itertools.product((1, -1), repeat=len(moved))
        hits = sum(math.fsum(s * d for s, d in zip(flips, moved, strict=True)) >= observed for flips in signs)
        return hits / (1 << len(moved))
    rng = random.Random(seed)
    total = math.fsum(moved)
    size = len(moved)
    hits = 0
    for _ in range(MONTE_CARLO_FLIPS):
        flips = rng.getrandbits(size)
        hits += total - 2 * sum(d for i, d in enumerate(moved) if flips >> i & 1) >= observed
    return (1 + hits) / (1 + MONTE_CARLO_FLIPS)


def paired_p_value(differences: Sequence[float], seed: int = 0) -> float:
    """One-sided p-value that the mean difference is above 0: sign test for binary rewards, permutation for graded."""
    moved = [difference for difference in differences if abs(difference) > _TIE]
    if not moved:
        return 1.0
    if max(map(abs, moved)) - min(map(abs, moved)) < _TIE:
        wins = sum(difference > 0 for difference in moved)
        return sign_test(wins, len(moved) - wins)
    return permutation_test(moved, seed)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples drawn from these n is correct: unbiased (Chen et al. 2021). k <= n."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The mean, or the weighted mean. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to take the mean of")
    if weights is None:
        return fmean(values)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)
