"""Intervals and tests against known values, and against scipy where it is installed."""

from __future__ import annotations

import math
import random

import pytest

from lightningrun.stages.statistics import (
    bootstrap_interval,
    mean,
    paired_p_value,
    pass_at_k,
    permutation_test,
    sign_test,
)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [(5, 0, 1 / 32), (0, 5, 1.0), (8, 3, 232 / 2048), (0, 0, 1.0), (7, 2, 46 / 512)],
)
def test_sign_test_is_the_binomial_tail(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p, abs=1e-12)


def test_sign_test_agrees_with_scipy_for_hundreds_of_rows() -> None:
    stats = pytest.importorskip("scipy.stats")
    for wins, losses in ((60, 41), (300, 250), (1200, 1100)):
        known = stats.binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue
        assert sign_test(wins, losses) == pytest.approx(known, rel=1e-9)


def test_permutation_test_counts_all_flips_of_few_differences() -> None:
    assert permutation_test([1.0, 2.0, 3.0]) == 1 / 8
    assert permutation_test([-1.0, 2.0, 3.0]) == 2 / 8
    assert permutation_test([]) == 1.0


def test_permutation_test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(1)
    for size in (9, 60):
        gaps = [rng.gauss(0.25, 1) for _ in range(size)]
        known = stats.permutation_test(
            (gaps,), lambda x, axis: x.mean(axis), permutation_type="samples", alternative="greater", n_resamples=20_000
        ).pvalue
        assert permutation_test(gaps) == pytest.approx(known, abs=0.012)


def test_a_large_permutation_test_is_never_zero_and_repeats_itself() -> None:
    gaps = [0.5 + i / 100 for i in range(40)]
    assert 0 < permutation_test(gaps, 3) == permutation_test(gaps, 3) < 0.001


def test_paired_test_takes_signs_for_binary_rewards_and_sizes_for_graded_ones() -> None:
    assert paired_p_value([1.0] * 5 + [0.0] * 30) == 1 / 32
    assert paired_p_value([0.0] * 10) == 1.0
    assert paired_p_value([0.9, 0.8, 0.7, 0.6, -0.01]) == 2 / 32


def test_bootstrap_interval_covers_a_known_mean_about_95_times_in_100() -> None:
    hits = 0
    for trial in range(120):
        rng = random.Random(trial)
        low, high = bootstrap_interval([rng.gauss(0.3, 1) for _ in range(60)], trial)
        hits += low <= 0.3 <= high
    assert 106 <= hits <= 119


def test_the_weighted_interval_covers_the_weighted_mean_about_95_times_in_100() -> None:
    """Rows of two kinds: the weight of a row goes with its value, so a plain mean would be far off."""
    covered = 0
    for trial in range(25):
        rng = random.Random(trial)
        heavy = [rng.random() < 0.5 for _ in range(80)]
        values = [rng.gauss(0.9 if big else 0.1, 0.3) for big in heavy]
        low, high = bootstrap_interval(values, trial, weights=[3.0 if big else 1.0 for big in heavy])
        covered += low <= (3 * 0.9 + 0.1) / 4 <= high
    assert 20 <= covered <= 25
    assert mean([1.0, 0.0], [3.0, 1.0]) == 0.75


def test_bootstrap_interval_is_seeded_and_has_no_width_without_spread() -> None:
    values = [0.0, 1.0] * 20
    assert bootstrap_interval(values, 5) == bootstrap_interval(values, 5)
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError):
        bootstrap_interval([])


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 1), (5, 2, 1), (5, 2, 3), (5, 5, 5), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n: int, c: int, k: int) -> None:
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(expected)
    if k == 1:
        assert pass_at_k(n, c, 1) == pytest.approx(c / n)


def test_pass_at_k_needs_k_samples_and_a_mean_needs_values() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        pass_at_k(2, 1, 3)
    with pytest.raises(ValueError):
        mean([])
