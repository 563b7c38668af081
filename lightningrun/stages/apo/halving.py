"""Successive halving: many children on few training rows, the better half on twice as many, the last ones on val.

The bandit is from Jamieson and Talwalkar (2016); ProTeGi (Pryzant et al., 2023) discusses it for prompts. The halving
reads training rows only: val is read by those scored on all of it, so that the confirmation knows how often luck was
given a chance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from lightningrun.stages.apo.attempts import Attempt
from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.evaluation import means
from lightningrun.stages.apo.search import Search, Setting
from lightningrun.types import Task


class Halving(Search):
    """A search that chooses its candidates so."""

    UNTIL: ClassVar[int]
    """The halving ends with so many children."""
    FINALISTS: ClassVar[int]
    """So many of them, the best that beat their parents, are scored on val."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._unscored: list[Attempt] = []

    @property
    @abstractmethod
    def first(self) -> int:
        """Training rows of the first comparison."""

    def worst_cost(self, parents: Sequence[Candidate], rows: Sequence[Task]) -> int:
        """Rollouts of halving one child for each of ``parents`` on ``rows``, the finalists on val included."""
        stages = self._stages(len(parents), len(rows))
        known = {parent.id: self.jobs(parent, rows[: stages[-1][1]]) for parent in parents}
        cost = sum(len(self.evaluation.missing(jobs)) for jobs in known.values())
        before = 0
        for alive, size in stages:
            cost += alive * (size - before) * self.config.samples
            before = size
        return cost + min(len(parents), self.FINALISTS) * len(self.setting.val) * self.config.samples

    def _stages(self, children: int, rows: int) -> list[tuple[int, int]]:
        """(children alive, rows that each has had by then) of the halving."""
        size = min(self.first, rows)
        stages = [(children, size)]
        while children > self.UNTIL and size < rows:
            children = max(self.UNTIL, -(-children // 2))
            size = min(2 * size, rows)
            stages.append((children, size))
        return stages

    async def halve(self, attempts: Sequence[Attempt], rows: Sequence[Task]) -> None:
        """Compare children on more and more rows, dropping the worse half; score the best that beat their parents.

        Without rows all are finalists. Children that were as good as their parents and yet not scored are remembered.
        """
        alive = list(attempts)
        for places, size in self._stages(len(alive), len(rows)) if alive else ():
            alive = alive[:places]
            await self._compare(alive, rows[:size])
            alive.sort(key=lambda one: (-one.acceptance["after"], one.index))
            for rank, one in enumerate(alive, 1):
                one.reason += f", no. {rank} of {len(alive)}"
        least = 1e-9 if self.config.acceptance.rule == "strict_improvement" else -1e-9
        passed = [one for one in alive if not rows or (one.acceptance["n"] and gain(one) > least)][: self.FINALISTS]
        for one in passed:
            one.verdict = "accepted"
        await self.score(passed)
        self._unscored += [one for one in attempts if one.verdict == "rejected" and gain(one) > -1e-9]

    async def _compare(self, attempts: Sequence[Attempt], rows: Sequence[Task]) -> None:
        """Children and their parents on the same rows."""
        await self.evaluation.run(
            job for one in attempts for who in (one.parent, self.child(one)) for job in self.jobs(who, rows)
        )
        for one in attempts:
            scores = [self.evaluation.scores(self.jobs(who, rows)) for who in (one.parent, self.child(one))]
            before, after, count = means(*scores)
            one.acceptance = {"before": before, "after": after, "n": count}
            one.verdict, one.reason = "rejected", f"{before:.3f} -> {after:.3f} on {count} training rows"

    async def score_the_rest(self) -> None:
        """Spend what is left of the budget on children that did well and were not scored, the best first."""
        cost = len(self.setting.val) * self.config.samples
        self._unscored.sort(key=lambda one: (one.acceptance["n"], gain(one), one.index))
        while self._unscored and self.best.val_mean < self.goal and cost <= self.evaluation.budget.free:
            attempt = self._unscored.pop()
            attempt.verdict, attempt.reason = "accepted", f"{attempt.reason}; scored with what was left of the budget"
            await self.score([attempt])
            self.settle(attempt)
            self.log_curve()


def gain(attempt: Attempt) -> float:
    """How much better the child was than its parent, on the rows that both had last."""
    return attempt.acceptance["after"] - attempt.acceptance["before"]
