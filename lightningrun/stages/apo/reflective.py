"""Reflective prompt search: rewrite from failures, accept on a uniform batch, keep what scores best on val.

The loop is GEPA's (Agrawal et al., 2025) in its outline: a coach reads traces of failures and rewrites. It differs in
what was measured to matter: a proposal is written in two rounds from all that is known of the parent's failures,
acceptance is on a uniform batch of training rows, the parent is the best so far except in a share ``epsilon`` of
cases, and rollouts left at the end go to proposals that just missed acceptance.

The search is a deterministic function of (config, seed, replies): a generation of proposals is planned together,
evaluated together and decided in the order of its proposals, whatever came back first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightningrun.errors import BudgetReached
from lightningrun.stages.apo.attempts import Attempt, choose_failures, failures, in_shares
from lightningrun.stages.apo.candidates import Candidate, better, choose_parent
from lightningrun.stages.apo.coach import Coach, Proposal
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.evaluation import Evaluation, Job, jobs_for, means
from lightningrun.stages.apo.guards import Guards
from lightningrun.stages.apo.log import SearchLog
from lightningrun.types import Rollout, Task

Describe = Callable[[Rollout, Mapping[str, str]], str]
"""Writes one failed rollout down for the coach; the mapping holds the prompts it ran with."""


@dataclass(slots=True)
class Outcome:
    """What a search ends with. ``pool`` holds the candidates scored on all of val, the seed first."""

    pool: list[Candidate]
    best: Candidate
    proposals: int
    stopped: str


class Reflective:
    """One search. ``run`` once."""

    def __init__(
        self,
        config: ApoConfig,
        seed: int,
        prompts: Mapping[str, str],
        optimize: Sequence[str],
        train: Sequence[Task],
        val: Sequence[Task],
        best_score: float,
        evaluation: Evaluation,
        coach: Coach,
        guards: Guards,
        describe: Describe,
        log: SearchLog,
        out_of_time: Callable[[int], bool],
    ) -> None:
        self._config = config
        self._seed = seed
        self._optimize = list(optimize)
        self._train = list(train)
        self._val = list(val)
        self._top = best_score
        self._evaluation = evaluation
        self._coach = coach
        self._guards = guards
        self._describe = describe
        self._log = log
        self._out_of_time = out_of_time
        self._root = Candidate(0, dict(prompts))
        self._goal = min(config.stop.score, best_score)
        self._near_misses: list[Attempt] = []
        self._best = self._root
        self._pool = [self._root]
        self._proposals = 0
        self._unaccepted = 0
        self._without_best = 0

    async def run(self) -> Outcome:
        """Search until something ends it. Raises BudgetReached only if not even the seed could be scored."""
        jobs = self._val_jobs(self._root)
        await self._evaluation.run(jobs)
        self._root.val = self._evaluation.scores(jobs)
        self._log_seed()
        stopped = self._reason_to_stop()
        while not stopped:
            try:
                stopped = await self._generation() or self._reason_to_stop()
            except BudgetReached as reached:
                stopped = str(reached)
        self._log.info(f"search ended after {self._proposals} proposals: {stopped}")
        return Outcome(self._pool, self._best, self._proposals, stopped)

    async def _second_look(self) -> None:
        """Spend what pays for no further proposal on near misses: as good as their parents on the batch, last first."""
        cost = len(self._val) * self._config.samples
        while self._near_misses and self._best.val_mean < self._goal and cost <= self._evaluation.budget.free:
            attempt = self._near_misses.pop()
            attempt.verdict, attempt.reason = "accepted", f"{attempt.reason}; scored with what was left of the budget"
            await self._score([attempt])
            self._settle(attempt)
            self._log_curve()

    def _reason_to_stop(self) -> str:
        stop = self._config.stop
        if self._best.val_mean >= self._goal:
            return f"val reward {self._best.val_mean:.3f} reached stop.score"
        if self._without_best >= stop.patience:
            return f"{stop.patience} candidates on val without a new best (stop.patience)"
        if self._unaccepted >= stop.stall_proposals:
            return f"{stop.stall_proposals} proposals in a row were not accepted (stop.stall_proposals)"
        if self._coach.calls_left < 1:
            return "budget.max_coach_calls is spent"
        if self._out_of_time(self._proposals):
            self._log.clock_stopped(self._proposals)
            return "budget.timeout_s is over"
        return ""

    async def _generation(self) -> str:
        """Plan, propose, accept and score one generation. Returns why the search must end, or ''."""
        attempts = self._plan()
        if not attempts:
            await self._second_look()
            return "budget.max_rollouts: what is left does not pay for another proposal on val"
        await self._evaluation.run(job for one in attempts for job in self._batch_jobs(one.parent, one))
        for parent in {one.parent.id: one.parent for one in attempts}.values():
            if not await self._find_failures(parent, attempts):
                return "no failure of the parent on the training rows that could be paid for"
        for attempt in attempts:
            self._leave_room(attempt)
        await self._propose(attempts)
        await self._accept([one for one in attempts if one.child])
        for attempt in attempts:
            self._settle(attempt)
        self._log_curve()
        return ""

    def _plan(self) -> list[Attempt]:
        """As many proposals as the budget bears in the worst case: each accepted and scored on all of val."""
        attempts: list[Attempt] = []
        free = self._evaluation.budget.free
        wanted = self._config.proposals.parents * self._config.proposals.per_parent
        rng = random.Random(f"{self._seed}/parents/{self._proposals}")
        parent = self._root
        for number in range(int(min(wanted, self._coach.calls_left))):
            if number % self._config.proposals.per_parent == 0:
                strategy = self._config.parent
                parent = choose_parent(self._pool, self._best, strategy.strategy, strategy.epsilon, rng)
            attempt = self._attempt(self._proposals + 1, parent, free)
            if attempt is None:
                break
            free -= self._worst_cost(attempt)
            attempts.append(attempt)
            self._proposals += 1
        return attempts

    def _attempt(self, index: int, parent: Candidate, free: int) -> Attempt | None:
        """A proposal that ``free`` rollouts pay for; near the end on training rows that the parent has had already."""
        rng = random.Random(f"{self._seed}/proposal/{index}")
        size = min(self._config.acceptance.batch, len(self._train))
        components = self._optimize
        if self._config.component_selector == "round_robin":
            components = [components[(index - 1) % len(components)]]
        known = [task for task in self._train if not self._evaluation.missing(self._jobs(parent, [task]))]
        for rows in (self._train, known):
            if len(rows) >= size:
                attempt = Attempt(index, parent, components, rng.sample(rows, size), rng)
                if self._worst_cost(attempt) <= free:
                    return attempt
        return None

    def _worst_cost(self, attempt: Attempt) -> int:
        unpaid = len(self._evaluation.missing(self._batch_jobs(attempt.parent, attempt)))
        return unpaid + (len(attempt.batch) + len(self._val)) * self._config.samples

    def _leave_room(self, attempt: Attempt) -> None:
        """On a batch that the parent solves whole no child can do better: one row gives way to a known failure."""
        known = failures(self._evaluation.rollouts(self._batch_jobs(attempt.parent, attempt)), self._top)
        if not known:
            failed = {rollout.task_id for rollout in self._failures(attempt.parent)}
            attempt.batch[-1] = attempt.rng.choice([task for task in self._train if task.id in failed])

    async def _find_failures(self, parent: Candidate, generation: Sequence[Attempt]) -> bool:
        """Run a parent on further training rows until a reflection batch of failures is known, or enough was looked at.

        Only with rollouts that the generation will not need. Returns whether any failure is known.
        """
        needed = sum((len(one.batch) + len(self._val)) * self._config.samples for one in generation)
        rng = random.Random(f"{self._seed}/failures/{generation[0].index}/{parent.id}")
        step = max(1, self._config.acceptance.batch // 2)
        while True:
            failures = len(self._failures(parent))
            fresh = [task for task in self._train if self._evaluation.missing(self._jobs(parent, [task]))]
            looked_at = len(self._train) - len(fresh)
            enough = failures >= self._config.reflection.batch or looked_at >= 2 * self._config.acceptance.batch
            more = self._jobs(parent, rng.sample(fresh, min(len(fresh), step)))
            if (enough and failures) or not more or len(more) + needed > self._evaluation.budget.free:
                return failures > 0
            await self._evaluation.run(more)

    def _mostly_fails(self, parent: Candidate) -> bool:
        """Whether there is still much to be said; a parent that mostly succeeds is changed with more care."""
        known = [one for one in self._evaluation.of(parent, self._config.train) if one.status.scored]
        return 2 * len(self._failures(parent)) > len(known)

    def _failures(self, candidate: Candidate) -> list[Rollout]:
        return failures(self._evaluation.of(candidate, self._config.train), self._top)

    async def _propose(self, attempts: Sequence[Attempt]) -> None:
        """Have the coach write all proposals of a generation, in rounds, and guard them in order.

        Each round shows the next share of the failures and rewrites what the round before has written; a parent that
        mostly succeeds gets one round. An answer of no use is passed over if another round gave a better one.
        """
        reflection = self._config.reflection
        shares: dict[int, list[list[Rollout]]] = {}
        for one in attempts:
            shown = choose_failures(self._failures(one.parent), self._top, reflection, one.rng)
            rounds = reflection.rounds if self._mostly_fails(one.parent) else 1
            shares[one.index] = in_shares(shown, reflection.batch, rounds)
            one.texts = {name: one.parent.prompts[name] for name in one.components}
        for number in range(reflection.rounds):
            asked = [one for one in attempts if number < len(shares[one.index])]
            asked = asked[: int(min(len(asked), self._coach.calls_left))]
            answers = await asyncio.gather(
                *(self._ask(one, shares[one.index][number]) for one in asked), return_exceptions=True
            )
            for one, answer in zip(asked, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                self._take(one, answer)
        for one in attempts:
            self._admit(one)

    async def _ask(self, attempt: Attempt, shown: Sequence[Rollout]) -> Proposal:
        written = [self._describe(rollout, attempt.parent.prompts) for rollout in shown]
        return await self._coach.propose(attempt.index, attempt.texts, written)

    def _take(self, attempt: Attempt, answer: Proposal) -> None:
        """Note one round's answer; its texts replace the ones before if the guards have no objection."""
        attempt.answers.append(answer)
        prompts = {**attempt.parent.prompts, **attempt.texts, **answer.texts}
        problem = answer.problem or self._guards.objection(prompts, answer.texts)
        if problem:
            attempt.reason = problem
        else:
            attempt.texts = {**attempt.texts, **answer.texts}
            attempt.written = True

    def _admit(self, attempt: Attempt) -> None:
        """Make a candidate of a proposal that is fit for rollouts."""
        if not attempt.written:
            return
        prompts = {**attempt.parent.prompts, **attempt.texts}
        twin = self._guards.duplicate_of(prompts)
        if twin is not None:
            attempt.verdict, attempt.reason = "duplicate", f"the same as candidate {twin}"
        else:
            self._guards.remember(prompts, attempt.index)
            attempt.child = Candidate(attempt.index, prompts, (attempt.parent.id,))

    async def _accept(self, attempts: Sequence[Attempt]) -> None:
        """Compare each child with its parent on the same rows; score those that pass on all of val."""
        await self._evaluation.run(job for one in attempts for job in self._batch_jobs(self._child(one), one))
        for attempt in attempts:
            before, after, rows = means(
                self._evaluation.scores(self._batch_jobs(attempt.parent, attempt)),
                self._evaluation.scores(self._batch_jobs(self._child(attempt), attempt)),
            )
            attempt.acceptance = {"before": before, "after": after, "n": rows}
            gain = after - before
            passed = rows > 0 and (gain > 1e-9 or (self._config.acceptance.rule == "no_worse" and gain > -1e-9))
            attempt.verdict = "accepted" if passed else "rejected"
            if not passed and rows and gain > -1e-9:
                self._near_misses.append(attempt)
            attempt.reason = f"{before:.3f} -> {after:.3f} on {rows} training rows"
        await self._score([one for one in attempts if one.verdict == "accepted"])

    async def _score(self, accepted: Sequence[Attempt]) -> None:
        await self._evaluation.run(job for one in accepted for job in self._val_jobs(self._child(one)))
        for attempt in accepted:
            child = self._child(attempt)
            child.val = self._evaluation.scores(self._val_jobs(child))

    def _settle(self, attempt: Attempt) -> None:
        """Book one decided proposal, in order."""
        if attempt.verdict == "accepted":
            child = self._child(attempt)
            self._pool.append(child)
            self._unaccepted = 0
            self._without_best += 1
            if better(child, self._best):
                self._best = child
                self._without_best = 0
        else:
            self._unaccepted += 1
        self._log_attempt(attempt)

    @staticmethod
    def _child(attempt: Attempt) -> Candidate:
        assert attempt.child is not None
        return attempt.child

    def _jobs(self, candidate: Candidate, tasks: Sequence[Task]) -> list[Job]:
        return jobs_for(candidate, tasks, self._config.samples)

    def _val_jobs(self, candidate: Candidate) -> list[Job]:
        return self._jobs(candidate, self._val)

    def _batch_jobs(self, candidate: Candidate, attempt: Attempt) -> list[Job]:
        return self._jobs(candidate, attempt.batch)

    def _log_seed(self) -> None:
        spent = spend(self._evaluation, self._coach)
        self._log.prompts(self._root, self._optimize, "seed")
        self._log.candidate(self._root, self._root, self._optimize, "seed", "the prompts to start from", 0, spent)
        self._log_curve()

    def _log_attempt(self, attempt: Attempt) -> None:
        self._log.attempt(attempt, self._best.id, spend(self._evaluation, self._coach))

    def _log_curve(self) -> None:
        spent = spend(self._evaluation, self._coach)
        self._log.emit("metric", step=spent["rollouts"], values={"val_reward": self._best.val_mean, **spent})


def spend(evaluation: Evaluation, coach: Coach) -> dict[str, float]:
    """What a search has spent so far."""
    return {
        "rollouts": evaluation.budget.spent,
        "coach_calls": coach.calls,
        "llm_calls": evaluation.llm_calls + coach.calls,
        "usd": round(evaluation.cost_usd + coach.cost_usd, 9),
    }
