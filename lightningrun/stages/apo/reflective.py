"""Reflective prompt search: rewrite from failures, accept on a uniform batch, keep what scores best on val.

The loop is GEPA's (Agrawal et al., 2025) in its outline: a coach reads traces of failures and rewrites. It differs in
what was measured to matter: a proposal is written in two rounds from all that is known of the parent's failures,
acceptance is on a uniform batch of training rows, the parent is the best so far except in a share ``epsilon`` of
cases, and rollouts left at the end go to proposals that just missed acceptance.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from lightningrun.stages.apo.attempts import Attempt, choose_failures, failures, in_shares
from lightningrun.stages.apo.candidates import Candidate, choose_parent
from lightningrun.stages.apo.coach import Proposal
from lightningrun.stages.apo.evaluation import Job, means
from lightningrun.stages.apo.search import Search, Setting
from lightningrun.types import Rollout


class Reflective(Search):
    """One search. ``run`` once."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._near_misses: list[Attempt] = []

    async def _second_look(self) -> None:
        """Spend what pays for no further proposal on near misses: as good as their parents on the batch, last first."""
        cost = len(self.setting.val) * self.config.samples
        while self._near_misses and self.best.val_mean < self.goal and cost <= self.evaluation.budget.free:
            attempt = self._near_misses.pop()
            attempt.verdict, attempt.reason = "accepted", f"{attempt.reason}; scored with what was left of the budget"
            await self.score([attempt])
            self.settle(attempt)
            self.log_curve()

    async def generation(self) -> str:
        """Plan, propose, accept and score one generation. Returns why the search must end, or ''."""
        attempts = self._plan()
        if not attempts:
            await self._second_look()
            return "budget.max_rollouts: what is left does not pay for another proposal on val"
        await self.evaluation.run(job for one in attempts for job in self._batch_jobs(one.parent, one))
        for parent in {one.parent.id: one.parent for one in attempts}.values():
            if not await self._find_failures(parent, attempts):
                return "no failure of the parent on the training rows that could be paid for"
        for attempt in attempts:
            self._leave_room(attempt)
        await self._propose(attempts)
        await self._accept([one for one in attempts if one.child])
        for attempt in attempts:
            self.settle(attempt)
        self.log_curve()
        return ""

    def _plan(self) -> list[Attempt]:
        """As many proposals as the budget bears in the worst case: each accepted and scored on all of val."""
        attempts: list[Attempt] = []
        free = self.evaluation.budget.free
        wanted = self.config.proposals.parents * self.config.proposals.per_parent
        rng = random.Random(f"{self.setting.seed}/parents/{self.proposals}")
        parent = self.root
        for number in range(int(min(wanted, self.coach.calls_left))):
            if number % self.config.proposals.per_parent == 0:
                strategy = self.config.parent
                parent = choose_parent(self.pool, self.best, strategy.strategy, strategy.epsilon, rng)
            attempt = self._attempt(self.proposals + 1, parent, free)
            if attempt is None:
                break
            free -= self._worst_cost(attempt)
            attempts.append(attempt)
            self.proposals += 1
        return attempts

    def _attempt(self, index: int, parent: Candidate, free: int) -> Attempt | None:
        """A proposal that ``free`` rollouts pay for; near the end on training rows that the parent has had already."""
        rng = random.Random(f"{self.setting.seed}/proposal/{index}")
        size = min(self.config.acceptance.batch, len(self.setting.train))
        components = list(self.setting.optimize)
        if self.config.component_selector == "round_robin":
            components = [components[(index - 1) % len(components)]]
        known = [task for task in self.setting.train if not self.evaluation.missing(self.jobs(parent, [task]))]
        for rows in (self.setting.train, known):
            if len(rows) >= size:
                attempt = Attempt(index, parent, components, rng.sample(rows, size), rng)
                if self._worst_cost(attempt) <= free:
                    return attempt
        return None

    def _worst_cost(self, attempt: Attempt) -> int:
        unpaid = len(self.evaluation.missing(self._batch_jobs(attempt.parent, attempt)))
        return unpaid + (len(attempt.batch) + len(self.setting.val)) * self.config.samples

    def _leave_room(self, attempt: Attempt) -> None:
        """On a batch that the parent solves whole no child can do better: one row gives way to a known failure."""
        known = failures(self.evaluation.rollouts(self._batch_jobs(attempt.parent, attempt)), self.setting.top)
        if not known:
            failed = {rollout.task_id for rollout in self.failures(attempt.parent)}
            attempt.batch[-1] = attempt.rng.choice([task for task in self.setting.train if task.id in failed])

    async def _find_failures(self, parent: Candidate, generation: Sequence[Attempt]) -> bool:
        """Run a parent on further training rows until a reflection batch of failures is known, or enough was looked at.

        Only with rollouts that the generation will not need. Returns whether any failure is known.
        """
        needed = sum((len(one.batch) + len(self.setting.val)) * self.config.samples for one in generation)
        rng = random.Random(f"{self.setting.seed}/failures/{generation[0].index}/{parent.id}")
        step = max(1, self.config.acceptance.batch // 2)
        while True:
            failures = len(self.failures(parent))
            fresh = [task for task in self.setting.train if self.evaluation.missing(self.jobs(parent, [task]))]
            looked_at = len(self.setting.train) - len(fresh)
            enough = failures >= self.config.reflection.batch or looked_at >= 2 * self.config.acceptance.batch
            more = self.jobs(parent, rng.sample(fresh, min(len(fresh), step)))
            if (enough and failures) or not more or len(more) + needed > self.evaluation.budget.free:
                return failures > 0
            await self.evaluation.run(more)

    def _mostly_fails(self, parent: Candidate) -> bool:
        """Whether there is still much to be said; a parent that mostly succeeds is changed with more care."""
        known = [one for one in self.evaluation.of(parent, self.config.train) if one.status.scored]
        return 2 * len(self.failures(parent)) > len(known)

    async def _propose(self, attempts: Sequence[Attempt]) -> None:
        """Have the coach write all proposals of a generation, in rounds, and guard them in order.

        Each round shows the next share of the failures and rewrites what the round before has written; a parent that
        mostly succeeds gets one round. An answer of no use is passed over if another round gave a better one.
        """
        reflection = self.config.reflection
        shares: dict[int, list[list[Rollout]]] = {}
        for one in attempts:
            shown = choose_failures(self.failures(one.parent), self.setting.top, reflection, one.rng)
            rounds = reflection.rounds if self._mostly_fails(one.parent) else 1
            shares[one.index] = in_shares(shown, reflection.batch, rounds)
            one.texts = {name: one.parent.prompts[name] for name in one.components}
        for number in range(reflection.rounds):
            asked = [one for one in attempts if number < len(shares[one.index])]
            asked = asked[: int(min(len(asked), self.coach.calls_left))]
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
        written = [self.setting.describe(rollout, attempt.parent.prompts) for rollout in shown]
        return await self.coach.propose(attempt.index, attempt.texts, written)

    def _take(self, attempt: Attempt, answer: Proposal) -> None:
        """Note one round's answer; its texts replace the ones before if the guards have no objection."""
        attempt.answers.append(answer)
        prompts = {**attempt.parent.prompts, **attempt.texts, **answer.texts}
        problem = answer.problem or self.guards.objection(prompts, answer.texts)
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
        twin = self.guards.duplicate_of(prompts)
        if twin is not None:
            attempt.verdict, attempt.reason = "duplicate", f"the same as candidate {twin}"
        else:
            self.guards.remember(prompts, attempt.index)
            attempt.child = Candidate(attempt.index, prompts, (attempt.parent.id,))

    async def _accept(self, attempts: Sequence[Attempt]) -> None:
        """Compare each child with its parent on the same rows; score those that pass on all of val."""
        await self.evaluation.run(job for one in attempts for job in self._batch_jobs(self.child(one), one))
        for attempt in attempts:
            before, after, rows = means(
                self.evaluation.scores(self._batch_jobs(attempt.parent, attempt)),
                self.evaluation.scores(self._batch_jobs(self.child(attempt), attempt)),
            )
            attempt.acceptance = {"before": before, "after": after, "n": rows}
            gain = after - before
            passed = rows > 0 and (gain > 1e-9 or (self.config.acceptance.rule == "no_worse" and gain > -1e-9))
            attempt.verdict = "accepted" if passed else "rejected"
            if not passed and rows and gain > -1e-9:
                self._near_misses.append(attempt)
            attempt.reason = f"{before:.3f} -> {after:.3f} on {rows} training rows"
        await self.score([one for one in attempts if one.verdict == "accepted"])

    def _batch_jobs(self, candidate: Candidate, attempt: Attempt) -> list[Job]:
        return self.jobs(candidate, attempt.batch)
