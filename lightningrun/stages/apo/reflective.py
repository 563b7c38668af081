"""Reflective prompt search: rewrite from failures, climb on training rows, let val decide what is kept.

The loop is GEPA's (Agrawal et al., 2025) in its outline: a coach reads traces of failures and rewrites. It differs in
what was measured to matter. A rewrite that beats its parent on a uniform batch of training rows is improved further at
once; val is paid for the newest of several such steps, not for each, so that most rollouts buy steps and few
candidates share the confirmation's alpha. A narrow lead is looked at on more rows; where there is little left to gain,
on as many as it takes to tell, and each one accepted is scored on val. Whether it replaces the best is decided by every
row that both have had; between two good ones training rows are added until the difference stands out of its noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from lightningrun.stages.apo.attempts import Attempt
from lightningrun.stages.apo.candidates import Candidate, choose_parent, differences
from lightningrun.stages.apo.evaluation import Job, means
from lightningrun.stages.apo.merging import Pair, pick_pair
from lightningrun.stages.apo.search import Search, Setting, both
from lightningrun.stages.apo.writing import Writer
from lightningrun.stages.statistics import mean
from lightningrun.types import Task

LEAST_ROWS = 4
"""Near the end of the budget a rewrite is compared on fewer rows than it should be, but not on fewer than these."""
SURE = 2.0
"""A lead of so many rows ends a comparison early."""
CLIMB_BATCHES = 3
"""A lead of a row or two over a poor parent is looked at on so many batches: a chain of lucky steps leads downhill."""
RUN_OFF = 60
"""Training rows that are added at most to tell two good candidates apart."""
STALLED = 5
"""After so many proposals in vain the candidate that they come from is scored on val: does it deserve them?"""


class Reflective(Search):
    """One search. ``run`` once."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.lead = self.root
        """The candidate to improve next: the best as far as training rows tell."""
        self._steps = 0
        self._compared = 0
        self._rivals = 0
        """Rewrites that were compared with the seed."""
        self._unscored: list[Attempt] = []
        self._by_child: dict[int, Attempt] = {}
        self._merged: set[tuple[int, int]] = set()
        self._writer = Writer(setting, self.failures, self._is_good)

    @property
    def trials(self) -> float:
        """How often luck was given a chance on val. Whoever is no better than its parent passes the comparison that
        comes before at most half of the time, so that one proposal is half a trial. A good seed has little to win and
        much to lose, and its rewrites are nearly its equals: the training rows have told the luckiest of them, so that
        there each rewrite that was compared with the seed counts, whether val was read of it or not."""
        tried = len(self.pool) - 1
        if self.config.acceptance.rule == "no_worse":
            return tried
        rivals = self._rivals if self._is_good(self.root) else 0
        return max(1, rivals, min(tried, self._compared / 2))

    def further(self) -> list[float]:
        """Training rows that both have had count too: few proposals are compared on the same ones."""
        jobs = (self.jobs(who, self._unseen(self.best)) for who in (self.root, self.best))
        return differences(*(self.evaluation.scores(each) for each in jobs))

    async def generation(self) -> str:
        """Plan, write, compare and book one generation. Returns why the search must end, or ''."""
        if self._unaccepted >= STALLED and self._can_pay_val(2):
            await self._validate()
        merging = self._plan_merge()
        if merging:
            await self._merge(*merging)
            return ""
        attempts = self._plan()
        if not attempts:
            return "budget.max_rollouts: what is left does not pay for another proposal on val"
        if not await self._find_failures(attempts):
            return "no failure of the parent on the training rows that could be paid for"
        batches = [job for one in attempts for job in self.jobs(one.parent, one.batch)]
        await both(self._writer.write(attempts), self.evaluation.run(batches))
        for attempt in attempts:
            self._leave_room(attempt)
        await self._compare([one for one in attempts if one.child])
        for attempt in attempts:
            self.settle(attempt)
        await self._follow([one for one in attempts if one.verdict == "accepted"])
        self.log_curve()
        return ""

    async def finish(self) -> None:
        """Spend what pays for no further proposal on val: the lead, others that were accepted, then those that were as
        good as the best."""
        await self._validate()
        waiting = [one for one in self._unscored if one.verdict == "accepted" or one.parent is self.best]
        waiting.sort(key=lambda one: (one.verdict == "accepted", one.index))
        while waiting and self.best.val_mean < self.goal and self._can_pay_val():
            attempt = waiting.pop()
            self._compared += attempt.verdict != "accepted"
            attempt.verdict = "accepted"
            attempt.reason += "; scored with what was left of the budget"
            await self._score([attempt])

    def _plan(self) -> list[Attempt]:
        """As many proposals as the budget bears in the worst case, val for what comes of them included."""
        attempts: list[Attempt] = []
        free = self.evaluation.budget.free - self._val_price()
        wanted = self.config.proposals.parents * self.config.proposals.per_parent
        rng = random.Random(f"{self.setting.seed}/parents/{self.proposals}")
        parent = self.root
        for number in range(int(min(wanted, self.coach.calls_left // self.config.calls_a_round()))):
            if number % self.config.proposals.per_parent == 0:
                strategy = self.config.parent
                epsilon = strategy.epsilon if self._unaccepted >= STALLED else 0.0
                parent = choose_parent(self.pool, self.lead, strategy.strategy, epsilon, rng, strategy.frontier)
            attempt = self._attempt(self.proposals + 1, parent, free)
            if attempt is None:
                break
            free -= self._price(attempt) + (self._val_price() if self._scores_each else 0)
            attempts.append(attempt)
            self.proposals += 1
        return attempts

    def _attempt(self, index: int, parent: Candidate, free: int) -> Attempt | None:
        """A proposal that ``free`` rollouts pay for, on rows that the parent has had if these are enough: they cost
        only the child's rollouts. Near the end on fewer rows."""
        rng = random.Random(f"{self.setting.seed}/proposal/{index}")
        components = list(self.setting.optimize)
        if self.config.component_selector == "round_robin":
            components = [components[(index - 1) % len(components)]]
        train = self._unseen(parent)
        known = [task for task in train if not self.evaluation.missing(self.jobs(parent, [task]))]
        size = min(self.config.acceptance.batch, len(train))
        less = max(min(LEAST_ROWS, size), min(size, free // self.config.samples))
        for rows, count in ((known, size), (train, size), (known, less)):
            if len(rows) >= count:
                attempt = Attempt(index, parent, components, rng.sample(rows, count), rng)
                if self._price(attempt) <= free:
                    return attempt
        return None

    def _price(self, attempt: Attempt) -> int:
        """Rollouts of the first comparison."""
        return len(self._unpaid([attempt.parent], attempt.batch)) + len(attempt.batch) * self.config.samples

    def _val_price(self, times: int = 1) -> int:
        return times * len(self.setting.val) * self.config.samples

    def _can_pay_val(self, times: int = 1) -> bool:
        return self._val_price(times) <= self.evaluation.budget.free

    @property
    def _scores_each(self) -> bool:
        """Parents from the Pareto frontier need val scores of all candidates."""
        return self.config.parent.strategy == "pareto"

    async def _find_failures(self, attempts: Sequence[Attempt]) -> bool:
        """Run parents on training rows until enough of their failures are known for the coach, or enough was looked at:
        first on the rows of the comparison, then on others that the budget can spare.

        Returns whether any failure of each is known.
        """
        spared = sum(self._price(one) for one in attempts) + self._val_price()
        for attempt in attempts:
            parent = attempt.parent
            rng = random.Random(f"{self.setting.seed}/failures/{attempts[0].index}/{parent.id}")
            while not self._knows_enough(parent):
                more = self.evaluation.missing(self.jobs(parent, attempt.batch))
                if not more:
                    fresh = [t for t in self._unseen(parent) if self.evaluation.missing(self.jobs(parent, [t]))]
                    more = self.jobs(parent, rng.sample(fresh, min(len(fresh), self.config.acceptance.batch)))
                    if not more or len(more) + spared > self.evaluation.budget.free:
                        break
                await self.evaluation.run(more)
            if not self.failures(parent):
                return False
        return True

    def _knows_enough(self, parent: Candidate) -> bool:
        known, failed = len(self.evaluation.of(parent, self.config.train)), len(self.failures(parent))
        looked_enough = known >= 2 * self.config.acceptance.batch * self.config.samples
        return failed >= self.config.reflection.batch or (failed > 0 and looked_enough)

    def _leave_room(self, attempt: Attempt) -> None:
        """On a batch that the parent solves whole no child can do better: one row gives way to a known failure."""
        failed = {rollout.task_id for rollout in self.failures(attempt.parent)}
        fit = [task for task in self._unseen(attempt.parent, attempt.candidate) if task.id in failed]
        if fit and not any(task.id in failed for task in attempt.batch):
            attempt.batch[-1] = attempt.rng.choice(fit)

    def _unseen(self, *candidates: Candidate) -> list[Task]:
        """The training rows that none of them shows as an example: on the others they only prove that they can read."""
        shown = frozenset[str]().union(*(one.shown for one in candidates))
        return [task for task in self.setting.train if task.id not in shown]

    def _is_good(self, candidate: Candidate) -> bool:
        """Whether a candidate does well by what is known of it on train."""
        known = [one.score for one in self.evaluation.of(candidate, self.config.train) if one.score is not None]
        return bool(known) and mean(known) >= self.setting.bottom + self.config.acceptance.good * self.setting.span

    async def _compare(self, attempts: Sequence[Attempt]) -> None:
        """Compare each child with its parent on the same rows; with a good parent on more and more of them."""
        self._compared += len(attempts)
        self._rivals += sum(one.parent is self.root for one in attempts)
        undecided = list(attempts)
        while undecided:
            await self.evaluation.run(job for one in undecided for job in self._batch_jobs(one))
            undecided = [one for one in undecided if not self._decided(one)]
            undecided = [one for one in undecided if self._more_rows(one, len(undecided))]

    def _decided(self, attempt: Attempt) -> bool:
        """Write down how the child compares with its parent. Returns whether more rows would tell no more."""
        jobs = (self.jobs(who, attempt.batch) for who in (attempt.parent, self.child(attempt)))
        before, after, rows = means(*(self.evaluation.scores(each) for each in jobs))
        gain = after - before
        attempt.acceptance = {"before": before, "after": after, "n": rows}
        attempt.reason = f"{before:.3f} -> {after:.3f} on {rows} training rows"
        least = 1e-9 if self.config.acceptance.rule == "strict_improvement" else -1e-9
        attempt.verdict = "accepted" if rows and gain > least else "rejected"
        config = self.config.acceptance
        most = config.most if self._is_good(attempt.parent) else min(config.most, CLIMB_BATCHES * config.batch)
        return gain < -1e-9 or gain * rows >= SURE * self.setting.span or len(attempt.batch) >= most

    def _more_rows(self, attempt: Attempt, sharing: int) -> bool:
        """Add rows to a comparison if the budget pays for them; ``sharing`` comparisons are waiting for more."""
        had = {task.id for task in attempt.batch}
        fresh = [task for task in self._unseen(attempt.parent, self.child(attempt)) if task.id not in had]
        more = attempt.rng.sample(fresh, min(len(fresh), self.config.acceptance.batch))
        cost = len(self.evaluation.missing(self.jobs(attempt.parent, more))) + len(more) * self.config.samples
        vals = sharing if self._scores_each else 1
        if not more or sharing * cost + self._val_price(vals) > self.evaluation.budget.free:
            return False
        attempt.batch += more
        return True

    async def _follow(self, accepted: Sequence[Attempt]) -> None:
        """Go on from the best of what was accepted, and score on val what is due."""
        if not accepted:
            return
        self._unscored += accepted
        first = max(accepted, key=lambda one: (one.acceptance["after"] - one.acceptance["before"], -one.index))
        careful = self._is_good(first.parent)
        self.lead = self.child(first)
        self._steps += 1
        if self._scores_each:
            await self._score(accepted)
        elif self._steps >= (1 if careful else self.config.acceptance.steps) and self._can_pay_val(2):
            await self._validate()

    async def _validate(self) -> None:
        """Score the lead on val if it was not; what is no better than the best leads no more."""
        if self.lead.val is None and self._can_pay_val():
            await self._score([self._by_child[self.lead.id]])
        if self.lead.val is not None:
            self._steps = 0
            self.lead = self.best

    async def _score(self, attempts: Sequence[Attempt]) -> None:
        await self.score(attempts)
        for attempt in attempts:
            self._unscored = [one for one in self._unscored if one is not attempt]
            if self._is_good(attempt.parent) and self._is_good(self.best):
                await self._run_off(self.child(attempt))
            self.keep(self.child(attempt))
            self.setting.log.attempt(attempt, self.best.id, self.spent())
        self.log_curve()

    async def _run_off(self, challenger: Candidate) -> None:
        """Run best and challenger on training rows, those that cost least first, until the rows that both have had
        differ by more than one standard error, or ``RUN_OFF`` were added.

        Val alone is read by all that come this far: the luckiest of a few would win it more often than the best.
        """
        sides = (self.best, challenger)
        rng = random.Random(f"{self.setting.seed}/run-off/{challenger.id}")
        rows = [task for task in self._unseen(*sides) if self._unpaid(sides, [task])]
        rows = sorted(rng.sample(rows, len(rows)), key=lambda task: len(self._unpaid(sides, [task])))[:RUN_OFF]
        while rows:
            gaps = self._gaps(challenger, self.best)
            batch, rows = rows[: self.config.acceptance.batch], rows[self.config.acceptance.batch :]
            more = self._unpaid(sides, batch)
            told = abs(sum(gaps)) > math.sqrt(math.fsum(gap * gap for gap in gaps)) + 1e-9
            if told or len(more) + self._val_price() > self.evaluation.budget.free:
                return
            await self.evaluation.run(more)

    def _unpaid(self, candidates: Sequence[Candidate], tasks: Sequence[Task]) -> list[Job]:
        return self.evaluation.missing(job for one in candidates for job in self.jobs(one, tasks))

    def _plan_merge(self) -> tuple[Attempt, Pair] | None:
        """The next merge, if one is due, promising and paid for."""
        config = self.config.merge
        if not config.enabled or len(self._merged) >= config.max or self.coach.calls_left < 1:
            return None
        known = {0: self.root, **{number: self.child(one) for number, one in self._by_child.items()}}
        pair = pick_pair(self.pool, known, self._merged)
        if pair is None:
            return None
        rng = random.Random(f"{self.setting.seed}/proposal/{self.proposals + 1}")
        fresh = self._unseen(pair.first, pair.second)
        train = rng.sample(fresh, len(fresh))
        sides = (pair.first, pair.second)
        train.sort(key=lambda task: len(self._unpaid(sides, [task])))
        batch = train[: self.config.acceptance.batch]
        attempt = Attempt(self.proposals + 1, pair.first, list(self.setting.optimize), batch, rng, way="merge")
        cost = len(self._unpaid(sides, batch)) + len(batch) * self.config.samples + self._val_price()
        return (attempt, pair) if cost <= self.evaluation.budget.free else None

    async def _merge(self, attempt: Attempt, pair: Pair) -> None:
        """Merge two candidates and accept the child if it beats both on rows that all three have had."""
        self.proposals += 1
        self._merged.add((min(pair.first.id, pair.second.id), max(pair.first.id, pair.second.id)))
        sides = (pair.first, pair.second)
        await self.evaluation.run(job for one in sides for job in self.jobs(one, attempt.batch))
        scores = {one.id: self.evaluation.scores(self.jobs(one, attempt.batch)) for one in sides}
        attempt.parent = max(sides, key=lambda one: sum(scores[one.id].values()))
        await self._writer.merge(attempt, pair)
        if attempt.child:
            await self._compare([attempt])
        self.settle(attempt)
        if attempt.verdict == "accepted":
            self._unscored.append(attempt)
            await self._score([attempt])
            self.lead = self.best
        self.log_curve()

    def is_better(self, challenger: Candidate, holder: Candidate) -> bool:
        """By every row that both have had, of val and of train."""
        return sum(self._gaps(challenger, holder)) > 1e-9

    def _gaps(self, challenger: Candidate, holder: Candidate) -> list[float]:
        jobs = (self.jobs(who, self.setting.train) for who in (holder, challenger))
        training = differences(*(self.evaluation.scores(each) for each in jobs))
        return [*differences(holder.val or {}, challenger.val or {}), *training]

    def settle(self, attempt: Attempt) -> None:
        """Book one decided proposal, in order: whether it goes on val is decided later."""
        self.count(attempt)
        as_good = attempt.acceptance and attempt.acceptance["after"] > attempt.acceptance["before"] - 1e-9
        if attempt.verdict != "accepted" and as_good:
            self._unscored.append(attempt)
        if attempt.child:
            self._by_child[attempt.child.id] = attempt
        self.setting.log.attempt(attempt, self.best.id, self.spent())

    def _batch_jobs(self, attempt: Attempt) -> list[Job]:
        return [job for who in (attempt.parent, self.child(attempt)) for job in self.jobs(who, attempt.batch)]
