"""Scoring candidates: candidate x row x sample -> rollouts, paid once, reserved before dispatch.

A score that was paid for is never paid again: the engine is only asked for what is not known. The budget of rollouts
is checked before anything is sent, for the whole batch, so that it cannot be overshot even by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lightningrun.errors import BudgetReached
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.statistics import mean
from lightningrun.types import Rollout, Task


class Engine(Protocol):
    """What the search needs of the rollout engine."""

    async def run(self, requests: Sequence[RolloutRequest], *, total: int | None = None) -> list[Rollout]: ...


@dataclass(slots=True)
class RolloutBudget:
    """Rollouts of the whole stage. ``reserved`` ones are kept for what follows the search."""

    limit: int
    reserved: int = 0
    spent: int = 0

    @property
    def free(self) -> int:
        return self.limit - self.reserved - self.spent

    def take(self, count: int) -> None:
        """Raises BudgetReached, taking nothing, if ``count`` are not free."""
        if count > self.free:
            raise BudgetReached(f"{count} rollouts are needed, {self.free} of {self.limit} are free")
        self.spent += count


@dataclass(frozen=True, slots=True)
class Job:
    """One rollout to be had: a candidate on a row. ``sample`` tells repetitions of the same apart."""

    candidate: Candidate
    task: Task
    sample: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.candidate.digest, self.task.split, self.task.id, self.sample


def jobs_for(candidate: Candidate, tasks: Iterable[Task], samples: int = 1, first: int = 0) -> list[Job]:
    """A candidate on each row, ``samples`` times."""
    return [Job(candidate, task, sample) for task in tasks for sample in range(first, first + samples)]


class Evaluation:
    """The scores known so far, and the only way to get more."""

    def __init__(self, engine: Engine, budget: RolloutBudget) -> None:
        self.budget = budget
        self.llm_calls = 0
        self.cost_usd = 0.0
        self._engine = engine
        self._known: dict[tuple[str, str, str, int], Rollout] = {}

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that have to be paid for, each once."""
        return list({job.key: job for job in jobs if job.key not in self._known}.values())

    async def run(self, jobs: Iterable[Job]) -> None:
        """Get what is missing. Raises BudgetReached before dispatch, or from the call budgets while running.

        A batch that ends so leaves no trace here: which of its rollouts came back first must not decide anything.
        """
        missing = self.missing(jobs)
        if not missing:
            return
        self.budget.take(len(missing))
        requests = [RolloutRequest(job.task, job.candidate.prompts, job.sample) for job in missing]
        rollouts = await self._engine.run(requests, total=self.budget.limit)
        for job, rollout in zip(missing, rollouts, strict=True):
            self._known[job.key] = rollout
            self.llm_calls += rollout.llm_calls
            self.cost_usd += rollout.cost_usd

    def rollouts(self, jobs: Iterable[Job]) -> list[Rollout]:
        """Those already known, in order."""
        return [self._known[job.key] for job in jobs if job.key in self._known]

    def of(self, candidate: Candidate, split: str) -> list[Rollout]:
        """Every known rollout of a candidate on a split, in the order they were asked for."""
        return [r for (owner, part, _, _), r in self._known.items() if owner == candidate.digest and part == split]

    def all_rollouts(self) -> list[Rollout]:
        """Everything known, in the order it was asked for."""
        return list(self._known.values())

    def scores(self, jobs: Iterable[Job]) -> dict[str, float]:
        """Row -> mean score of its samples. Rows without a usable score (reward or infrastructure error) are absent."""
        by_row: dict[str, list[float]] = {}
        for rollout in self.rollouts(jobs):
            if rollout.status.scored and rollout.score is not None:
                by_row.setdefault(rollout.task_id, []).append(rollout.score)
        return {row: mean(scores) for row, scores in by_row.items()}


def means(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float, int]:
    """Both means over the rows that both have, and their number; (0, 0, 0) for none."""
    rows = [row for row in before if row in after]
    if not rows:
        return 0.0, 0.0, 0
    return mean([before[row] for row in rows]), mean([after[row] for row in rows]), len(rows)
