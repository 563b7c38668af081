"""Having proposals written: failures chosen and shown to the coach, its answers guarded, candidates made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lightningrun.stages.apo.attempts import Attempt, choose_failures, in_shares
from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.coach import Proposal
from lightningrun.stages.apo.search import Setting
from lightningrun.types import Rollout


class Writer:
    """Writes the proposals of a generation together. ``failures`` gives what is known to go wrong with a candidate,
    ``is_good`` whether it mostly succeeds: then it is changed with more care, in one round."""

    def __init__(
        self, setting: Setting, failures: Callable[[Candidate], list[Rollout]], is_good: Callable[[Candidate], bool]
    ) -> None:
        self._setting = setting
        self._failures = failures
        self._is_good = is_good

    async def write(self, attempts: Sequence[Attempt]) -> None:
        """Have the coach write all proposals, in rounds, and guard them in order.

        Each round shows the next share of the failures and rewrites what the round before has written. An answer of no
        use is passed over if another round gave a better one.
        """
        reflection = self._setting.config.reflection
        shares: dict[int, list[list[Rollout]]] = {}
        for one in attempts:
            shown = choose_failures(self._failures(one.parent), self._setting.top, reflection, one.rng)
            rounds = 1 if self._is_good(one.parent) else reflection.rounds
            shares[one.index] = in_shares(shown, reflection.batch, rounds)
            one.texts = {name: one.parent.prompts[name] for name in one.components}
        for number in range(reflection.rounds):
            asked = [one for one in attempts if number < len(shares[one.index])]
            asked = asked[: int(min(len(asked), self._setting.coach.calls_left))]
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
        written = [self._setting.describe(rollout, attempt.parent.prompts) for rollout in shown]
        return await self._setting.coach.propose(attempt.index, attempt.texts, written)

    def _take(self, attempt: Attempt, answer: Proposal) -> None:
        """Note one round's answer; its texts replace the ones before if the guards have no objection."""
        attempt.answers.append(answer)
        prompts = {**attempt.parent.prompts, **attempt.texts, **answer.texts}
        problem = answer.problem or self._setting.guards.objection(prompts, answer.texts)
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
        twin = self._setting.guards.duplicate_of(prompts)
        if twin is not None:
            attempt.verdict, attempt.reason = "duplicate", f"the same as candidate {twin}"
        else:
            self._setting.guards.remember(prompts, attempt.index)
            attempt.child = Candidate(attempt.index, prompts, (attempt.parent.id,))
