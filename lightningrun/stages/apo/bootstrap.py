"""Few-shot examples bootstrapped from the agent's own successes: sets of them drawn at random, the best set kept.

DSPy's BootstrapFewShot with random search (Khattab et al., 2023) in its outline. The prompt's own words stay as they
are and no coach is asked. Examples come from one part of the training rows and sets are compared on the other, as a
set would look good on the rows that it shows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightningrun.stages.apo.attempts import Attempt
from lightningrun.stages.apo.coach import Proposal
from lightningrun.stages.apo.demos import Demo, with_demos
from lightningrun.stages.apo.examples import example_pools, fitting
from lightningrun.stages.apo.halving import Halving
from lightningrun.stages.apo.search import Setting
from lightningrun.types import Task

DEFAULT_DEMOS = 4
FIRST_COMPARISON = 8
"""Training rows of the halving's first comparison."""
CHUNK = 8
"""Training rows looked at together until there are examples enough to choose from."""


class BootstrapFewshot(Halving):
    """One search. ``run`` once: a first generation finds examples and draws sets of them, a second compares these."""

    UNTIL = 3
    FINALISTS = 3

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._sets: list[Attempt] = []
        self._most = setting.config.demos.max or DEFAULT_DEMOS
        rng = random.Random(f"{setting.seed}/rows")
        self._shuffled = rng.sample(list(setting.train), len(setting.train))
        self._looked_at = 0

    @property
    def first(self) -> int:
        return FIRST_COMPARISON

    async def generation(self) -> str:
        """Draw sets of examples, or compare those drawn. Returns why the search must end, or ''."""
        if not self._sets:
            return await self._draw()
        await self.halve([one for one in self._sets if one.child], self._comparison(len(self._sets)))
        for attempt in self._sets:
            self.settle(attempt)
        self.log_curve()
        await self.score_the_rest()
        return f"all {len(self._sets)} sets of examples were compared"

    async def _draw(self) -> str:
        """Find examples and make candidates of as many sets as the budget can compare."""
        pools = await self._examples()
        shown = {row for pool in pools.values() for row in pool}
        rows = [task.id for task in self._shuffled if task.id in shown]
        if not rows:
            return f"none of {self._looked_at} training rows gave an example of a good answer"
        count = self._affordable()
        if not count:
            return "budget.max_rollouts: what is left does not pay for a set of examples on val"
        for index in range(1, count + 1):
            rng = random.Random(f"{self.setting.seed}/set/{index}")
            most = min(self._most, len(rows))
            size = most if index == 1 else rng.randint(1, most)
            self._sets.append(self._set(index, rng.sample(rows, size), pools, rng))
        self.proposals = count
        return ""

    async def _examples(self) -> dict[str, dict[str, Demo]]:
        """Prompt -> training row -> example. The seed is run on training rows until there are twice as many as one
        set takes, or half of the rows were looked at and there are some, or half of what the budget leaves is spent."""
        spare = self.evaluation.budget.free - len(self.setting.val) * self.config.samples
        room = max(self.config.acceptance.batch, spare // 2)
        found: dict[str, dict[str, Demo]] = {}
        while self._looked_at < len(self._shuffled):
            chunk = self._shuffled[self._looked_at : self._looked_at + CHUNK]
            jobs = self.evaluation.missing(self.jobs(self.root, chunk))
            if len(jobs) > min(spare, room):
                break
            await self.evaluation.run(jobs)
            self._looked_at += len(chunk)
            room, spare = room - len(jobs), spare - len(jobs)
            found = example_pools(self.setting, self.root, self._most)
            rows = {row for pool in found.values() for row in pool}
            if len(rows) >= 2 * self._most or (rows and 2 * self._looked_at >= len(self._shuffled)):
                break
        return found

    def _comparison(self, count: int) -> list[Task]:
        """The rows to compare so many sets on: those not looked at for examples, none if that cannot be paid."""
        rows = self._shuffled[self._looked_at :]
        fits = self.worst_cost([self.root] * count, rows) <= self.evaluation.budget.free
        return rows if fits else []

    def _affordable(self) -> int:
        """How many sets can be compared. Without rows to compare on only as many as go on val."""
        for count in range(self.config.demos.sets, 0, -1):
            rows = self._comparison(count)
            paid = self.worst_cost([self.root] * count, rows) <= self.evaluation.budget.free
            if paid and (rows or count <= self.FINALISTS):
                return count
        return 0

    def _set(self, index: int, rows: Sequence[str], pools: dict[str, dict[str, Demo]], rng: random.Random) -> Attempt:
        """One set as a candidate: each prompt with those of the rows' examples that are its own and fit."""
        texts: dict[str, str] = {}
        for name, pool in pools.items():
            text = self.root.prompts[name]
            texts[name] = with_demos(text, fitting(self.setting, text, [pool[row] for row in rows if row in pool]))
        attempt = Attempt(index, self.root, list(pools), [], rng, {name: self.root.prompts[name] for name in pools})
        attempt.answers.append(Proposal(texts, "", f"examples from the training rows {', '.join(rows)}", ()))
        self.admit(attempt, attempt.answers[0], quotable=(self.config.train,))
        return attempt
