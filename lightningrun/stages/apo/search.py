"""What every search for prompts shares: the seed's score, the pool, the incumbent, reasons to stop, and the booking.

An algorithm is a room of its own with one verb: ``generation`` plans proposals, has them written, scores those worth
it and books them. It is a deterministic function of (config, seed, replies): a generation is planned together,
evaluated together and decided in the order of its proposals, whatever came back first.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrun.errors import BudgetReached
from lightningrun.stages.apo.attempts import Attempt, failures
from lightningrun.stages.apo.candidates import Candidate, better
from lightningrun.stages.apo.coach import Coach, Proposal
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.demos import Demo
from lightningrun.stages.apo.evaluation import Evaluation, Job, jobs_for
from lightningrun.stages.apo.guards import Guards
from lightningrun.stages.apo.log import SearchLog
from lightningrun.stages.statistics import mean
from lightningrun.types import Rollout, Task

BARREN = 8
"""So many proposals in a row that gave nothing new to try (duplicates, refusals, answers without a prompt) end a
search: the coach is asked in vain."""

Describe = Callable[[Rollout, Mapping[str, str]], str]
"""Writes one rollout down for the coach; the mapping holds the prompts it ran with."""

Demonstrate = Callable[[Rollout, str, Mapping[str, str]], Demo | None]
"""One good rollout as an example for the prompt of that name; the mapping holds the prompts it ran with."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a search works with."""

    config: ApoConfig
    seed: int
    prompts: Mapping[str, str]
    """The prompts to start from, those that are not optimised included."""
    optimize: Sequence[str]
    train: Sequence[Task]
    val: Sequence[Task]
    bottom: float
    top: float
    """The worst and the best score that the reward can give."""
    weights: Mapping[str, float]
    """The metrics of the reward's objective and their weights, if it has one."""
    evaluation: Evaluation
    coach: Coach
    guards: Guards
    describe: Describe
    demonstrate: Demonstrate
    log: SearchLog
    out_of_time: Callable[[int], bool]

    @property
    def span(self) -> float:
        return self.top - self.bottom


@dataclass(slots=True)
class Outcome:
    """What a search ends with. ``pool`` holds the candidates scored on all of val, the seed first."""

    pool: list[Candidate]
    best: Candidate
    proposals: int
    trials: float
    """How many chances luck had to make one of them look better on val than it is."""
    stopped: str
    further: Sequence[float] = ()
    """Best minus seed on training rows that both have had, where that may count for the confirmation."""


class Search(ABC):
    """One search. ``run`` once."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config = setting.config
        self.evaluation = setting.evaluation
        self.coach = setting.coach
        self.guards = setting.guards
        self.root = Candidate(0, dict(setting.prompts))
        self.best = self.root
        self.pool = [self.root]
        self.goal = min(setting.config.stop.score, setting.top)
        self.proposals = 0
        self.glimpsed = 0
        """Candidates that were dropped for some val scores: for the confirmation they count as scored on val."""
        self._unaccepted = 0
        self._barren = 0
        self._without_best = 0

    @abstractmethod
    async def generation(self) -> str:
        """Plan, write, score and book some proposals. Returns why the search must end, or ''."""

    @property
    def step(self) -> int:
        """How far the search is: a number that grows whenever the clock is asked for."""
        return self.proposals

    async def run(self) -> Outcome:
        """Search until something ends it. Raises BudgetReached only if not even the seed could be scored."""
        jobs = self.val_jobs(self.root)
        await self.evaluation.run(jobs)
        self.root.val = self.evaluation.scores(jobs)
        self.root.metrics = self._metrics(self.root)
        self._log_seed()
        stopped = self._reason_to_stop()
        while not stopped:
            try:
                stopped = await self.generation() or self._reason_to_stop()
            except BudgetReached as reached:
                stopped = str(reached)
        try:
            await self.finish()
        except BudgetReached as reached:
            stopped = str(reached)
        self.setting.log.info(f"search ended after {self.proposals} proposals: {stopped}")
        return Outcome(self.pool, self.best, self.proposals, self.trials, stopped, self.further())

    @property
    def trials(self) -> float:
        """How many candidates val scores were read of, the seed not counted."""
        return len(self.pool) - 1 + self.glimpsed

    def further(self) -> list[float]:
        """What training rows say of best against seed; nothing where many were compared on them to find the best."""
        return []

    async def finish(self) -> None:  # noqa: B027 (nothing to do is a choice)
        """Spend what the budget has left when the search has ended."""

    def _reason_to_stop(self) -> str:
        stop = self.config.stop
        if self.best.val_mean >= self.goal:
            return f"val reward {self.best.val_mean:.3f} reached stop.score"
        if self._without_best >= stop.patience:
            return f"{stop.patience} candidates on val without a new best (stop.patience)"
        if self._unaccepted >= stop.stall_proposals:
            return f"{stop.stall_proposals} proposals in a row were not accepted (stop.stall_proposals)"
        if self._barren >= BARREN:
            return f"{BARREN} proposals in a row gave nothing new to try"
        if self.coach.calls_left < max(1, self.config.least_coach_calls()):
            return "budget.max_coach_calls is spent"
        if self.setting.out_of_time(self.step):
            self.setting.log.clock_stopped(self.step)
            return "budget.timeout_s is over"
        return ""

    def admit(self, attempt: Attempt, answer: Proposal, quotable: Collection[str] = ()) -> None:
        """Make a candidate of what was written if it is fit for rollouts; else ``attempt.reason`` says why not.

        ``quotable``: see ``Guards.objection``.
        """
        prompts = {**attempt.parent.prompts, **answer.texts}
        twin = self.guards.duplicate_of(prompts)
        attempt.reason = answer.problem or self.guards.objection(prompts, answer.texts, quotable)
        if not attempt.reason and twin is not None:
            attempt.verdict, attempt.reason = "duplicate", f"the same as candidate {twin}"
        if not attempt.reason:
            attempt.texts, attempt.written = {**attempt.texts, **answer.texts}, True
            self.guards.remember(prompts, attempt.index)
            attempt.child = Candidate(attempt.index, prompts, (attempt.parent.id,))

    async def score(self, accepted: Sequence[Attempt]) -> None:
        """Score what was accepted on all of val, together."""
        await self.evaluation.run(job for one in accepted for job in self.val_jobs(self.child(one)))
        for attempt in accepted:
            child = self.child(attempt)
            child.val = self.evaluation.scores(self.val_jobs(child))
            child.metrics = self._metrics(child)

    def settle(self, attempt: Attempt) -> None:
        """Book one decided proposal, in order."""
        self.count(attempt)
        if attempt.verdict == "accepted":
            self.keep(self.child(attempt))
        self.setting.log.attempt(attempt, self.best.id, self.spent())

    def count(self, attempt: Attempt) -> None:
        """Count how many proposals in a row were in vain."""
        self._unaccepted = 0 if attempt.verdict == "accepted" else self._unaccepted + 1
        self._barren = 0 if attempt.child else self._barren + 1

    def keep(self, candidate: Candidate) -> None:
        """Take a candidate that was scored on val into the pool; it may be the best so far."""
        self.pool.append(candidate)
        self._without_best += 1
        if self.is_better(candidate, self.best):
            self.best = candidate
            self._without_best = 0

    def is_better(self, challenger: Candidate, holder: Candidate) -> bool:
        return better(challenger, holder)

    def _metrics(self, candidate: Candidate) -> dict[str, float]:
        """The mean on val of each metric of the reward's objective, turned so that more is better."""
        told = [one.metrics for one in self.evaluation.rollouts(self.val_jobs(candidate)) if one.status.scored]
        means: dict[str, float] = {}
        for name, weight in self.setting.weights.items():
            values = [metrics[name] for metrics in told if name in metrics]
            means |= {name: mean(values) * (1 if weight > 0 else -1)} if values else {}
        return means

    def failures(self, candidate: Candidate) -> list[Rollout]:
        """The candidate's known rollouts on train that could have scored better."""
        return failures(self.evaluation.of(candidate, self.config.train), self.setting.top)

    @staticmethod
    def child(attempt: Attempt) -> Candidate:
        assert attempt.child is not None
        return attempt.child

    def jobs(self, candidate: Candidate, tasks: Sequence[Task]) -> list[Job]:
        return jobs_for(candidate, tasks, self.config.samples)

    def val_jobs(self, candidate: Candidate) -> list[Job]:
        return self.jobs(candidate, self.setting.val)

    def spent(self) -> dict[str, float]:
        return spend(self.evaluation, self.coach)

    def log_curve(self) -> None:
        spent = self.spent()
        self.setting.log.emit("metric", step=spent["rollouts"], values={"val_reward": self.best.val_mean, **spent})

    def _log_seed(self) -> None:
        log, optimize = self.setting.log, self.setting.optimize
        log.prompts(self.root, optimize, "seed")
        log.candidate(self.root, self.root, optimize, "seed", "the prompts to start from", 0, self.spent())
        self.log_curve()


def spend(evaluation: Evaluation, coach: Coach) -> dict[str, float]:
    """What a search has spent so far."""
    return {
        "rollouts": evaluation.budget.spent,
        "coach_calls": coach.calls,
        "llm_calls": evaluation.llm_calls + coach.calls,
        "usd": round(evaluation.cost_usd + coach.cost_usd, 9),
    }


async def both(first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]) -> None:
    """Do both at once. An error is raised once both have ended, the first one's before the second one's."""
    for done in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
