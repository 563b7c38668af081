"""The last word of a search: the winner replaces the seed only if it is better beyond chance and beyond luck.

Searching is choosing the best of many noisy scores, so that the winner's own score flatters it. ``corrected`` divides
alpha by how often luck was given a chance, and reads val and those training rows that seed and winner were compared on;
``sealed`` tests on val rows that the search never read; ``fresh``
tests on new samples of the val rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightningrun.errors import BudgetReached
from lightningrun.stages.apo.candidates import Candidate, differences
from lightningrun.stages.apo.config import ConfirmConfig
from lightningrun.stages.apo.evaluation import Evaluation, jobs_for
from lightningrun.stages.statistics import paired_p_value
from lightningrun.types import Task


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Whether the winner ships, and the evidence. ``threshold`` is what ``p_value`` had to stay at or below."""

    promoted: bool
    p_value: float
    threshold: float
    reason: str


async def confirm(
    config: ConfirmConfig,
    seed: Candidate,
    winner: Candidate,
    trials: float,
    evaluation: Evaluation,
    rows: Sequence[Task],
    samples: int,
    rng_seed: int,
    further: Sequence[float] = (),
) -> Confirmation:
    """Judge ``winner`` against ``seed``. ``trials``: how many chances luck had on val, that is candidates scored on all
    of it, or fewer where they had to pass something before. ``rows``: the sealed ones in ``sealed`` mode, else val.
    ``further``: what training rows say, winner minus seed; ``corrected`` alone reads it."""
    if winner.id == seed.id:
        return Confirmation(False, 1.0, config.alpha, "no candidate scored better than the seed")
    threshold = config.alpha
    try:
        if config.mode == "sealed":
            jobs = [jobs_for(one, rows, samples) for one in (seed, winner)]
            await evaluation.run([*jobs[0], *jobs[1]])
            gaps = differences(evaluation.scores(jobs[0]), evaluation.scores(jobs[1]))
        elif config.mode == "fresh":
            again = jobs_for(winner, rows, samples, first=samples)
            await evaluation.run(again)
            gaps = differences(seed.val or {}, evaluation.scores(again))
        else:
            gaps = [*differences(seed.val or {}, winner.val or {}), *further]
            threshold = config.alpha / trials
    except BudgetReached as reached:
        return Confirmation(False, 1.0, threshold, f"the confirmation could not be paid for: {reached}")
    if config.mode == "none":
        return Confirmation(True, paired_p_value(gaps, rng_seed), 1.0, "shipped unconfirmed: confirm.mode is none")
    corrected = config.mode == "corrected"
    return _judge(config, gaps, threshold, trials, rng_seed, len(further) if corrected else 0)


def _judge(
    config: ConfirmConfig, gaps: Sequence[float], threshold: float, trials: float, rng_seed: int, training: int
) -> Confirmation:
    """``training``: how many of the gaps are of training rows."""
    p_value = paired_p_value(gaps, rng_seed)
    gain = sum(gaps) / len(gaps) if gaps else 0.0
    beyond_luck = p_value <= threshold
    of = f"{config.alpha:g}/{trials:g} trials" if config.mode == "corrected" else f"{config.mode} rows"
    rows = f"{len(gaps) - training} val and {training} training rows" if training else f"{len(gaps)} rows"
    wins, losses = sum(gap > 1e-9 for gap in gaps), sum(gap < -1e-9 for gap in gaps)
    evidence = (
        f"{gain:+.3f} on {rows} ({wins} better, {losses} worse): p={p_value:.2g} "
        f"{'<=' if beyond_luck else '>'} {threshold:.2g} ({of})"
    )
    if beyond_luck:
        return Confirmation(True, p_value, threshold, f"confirmed: {evidence}")
    if config.on_inconclusive == "ship_winner":
        return Confirmation(True, p_value, threshold, f"shipped although inconclusive: {evidence}")
    return Confirmation(False, p_value, threshold, f"inconclusive, the seed ships: {evidence}")
