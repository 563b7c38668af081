"""The rollout engine of one stage: all its rollouts, of all candidates and rows, in one flat pool of slots.

A rollout that the journal holds already is not executed again; a new one is in the journal before it is returned. What
``run`` returns depends on the requests and on what models, agent and reward say, never on the order of completion.
Memory beside the slots' is one ``Rollout`` for each key, which makes a repeated request free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lightningrun.agents.jobs import AgentPool
from lightningrun.errors import BudgetReached, LightningError, RewardErrors, StageFailed, TooManyInfraErrors
from lightningrun.rollouts.attempt import Attempt, Attempts
from lightningrun.rollouts.progress import Progress
from lightningrun.rollouts.requests import RolloutRequest
from lightningrun.secrets import Masker
from lightningrun.types import Rollout, RolloutStatus

if TYPE_CHECKING:
    from lightningrun.gateway.server import Gateway
    from lightningrun.models.service import ModelService
    from lightningrun.recipe.model import Recipe
    from lightningrun.tracking.journal import RunJournal

__all__ = ["RolloutEngine", "RolloutRequest"]

_MIN_INFRA_ERRORS = 3
"""So many lost rollouts are never too many, however small the stage."""
_HOPELESS_REWARD_ERRORS = 20
"""So many reward errors without one score end the stage before it spends more."""
_DRAIN_S = 5.0
"""How long Ctrl-C waits for rollouts in flight before it drops them."""


class RolloutEngine:
    """``run`` may be called many times, also concurrently; all calls share the pool's slots."""

    def __init__(
        self,
        *,
        stage: str,
        recipe: Recipe,
        pool: AgentPool,
        gateway: Gateway,
        service: ModelService,
        journal: RunJournal,
        memo: Mapping[str, Rollout],
        seed: int,
        masker: Masker | None = None,
        policy: str = "policy",
    ) -> None:
        """``memo``: rollouts of this stage that an earlier process finished. Those without a score are tried again.

        ``masker`` takes secrets out of what agent and reward say, before a file or the coach gets to see it.
        """
        self._masker = masker or Masker()
        self._stage = stage
        self._pool = pool
        self._journal = journal
        self._attempts = Attempts(stage, recipe, pool, gateway, service, seed, policy)
        self._tries = recipe.agent.attempts
        self._max_infra_errors = recipe.execution.max_infra_errors
        self._earlier = {key: rollout for key, rollout in memo.items() if rollout.status.scored}
        self._finished: dict[str, Rollout] = {}
        self._flights: dict[str, asyncio.Future[None]] = {}
        self._failure: LightningError | None = None
        self._warned_of_leftovers = False
        self._progress = Progress(stage, journal)

    @property
    def done(self) -> int:
        """Rollouts finished in this stage, those from the journal included."""
        return self._progress.done

    @property
    def executed(self) -> int:
        """Rollouts executed by this process."""
        return self._progress.executed

    async def run(self, requests: Sequence[RolloutRequest], *, total: int | None = None) -> list[Rollout]:
        """The rollouts of ``requests``, in their order. ``total`` is what the whole stage expects to ask for.

        Raises TooManyInfraErrors, GatewayBypassed, RewardErrors, ModelError (a key that is refused, say) and
        BudgetReached; then rollouts in flight are finished or dropped, and what finished is in the journal.
        """
        keys = [request.key for request in requests]
        wanted = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._finished}
        self._progress.expected = max(self._progress.expected, total or 0, self.done + len(wanted))
        todo = iter(wanted.items())
        workers = [asyncio.create_task(self._work(todo)) for _ in range(min(len(wanted), 2 * self._pool.size))]
        if workers:
            await self._finish(workers)
        self._check_prompts_were_seen()
        self._check_rewards(at_end=True)
        self._check_answers()
        self._progress.show(force=True)
        return [self._finished[key] for key in keys]

    async def _finish(self, workers: list[asyncio.Task[None]]) -> None:
        try:
            done, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            self._failure = self._failure or StageFailed(f"stage {self._stage} was interrupted")
            _, pending = await asyncio.wait(workers, timeout=_DRAIN_S)
            await _cancelled(pending)
            await asyncio.gather(*workers, return_exceptions=True)  # they all failed, and this is why: nobody else asks
            raise
        failures = [error for task in done if (error := task.exception()) is not None]
        if not failures:
            return
        error = failures[0]
        if isinstance(error, LightningError):
            self._failure = self._failure or error
        if isinstance(error, BudgetReached) and pending:
            await asyncio.wait(pending)  # what is in flight may still finish within the budget
        await _cancelled(pending)
        raise error

    async def _work(self, todo: Iterator[tuple[str, RolloutRequest]]) -> None:
        for key, request in todo:
            if self._failure is not None:
                raise self._failure
            if key in self._flights:
                await asyncio.wait([self._flights[key]])
            if key in self._finished:
                continue
            if key in self._earlier:
                self._keep(self._earlier.pop(key), executed=False)
                continue
            flight = self._flights[key] = asyncio.get_running_loop().create_future()
            try:
                rollout = await self._rollout(key, request)
                self._journal.emit("rollout", stage=self._stage, rollout=rollout.to_json())
                self._keep(rollout, executed=True)
            finally:
                del self._flights[key]
                flight.set_result(None)

    async def _rollout(self, key: str, request: RolloutRequest) -> Rollout:
        started_at, started = time.time(), time.monotonic()
        cost_usd = 0.0
        for number in range(1, self._tries + 1):
            made = number
            attempt = await self._attempts.make(request, key)
            cost_usd += attempt.session.cost_usd
            self._warn_of_leftovers(attempt, request)
            if attempt.status is not RolloutStatus.INFRA_ERROR:
                break
        told = attempt.spans.to_json()
        did = attempt.session.agents
        return Rollout(
            key=key,
            stage=self._stage,
            task_id=request.task.id,
            split=request.task.split,
            sample=request.sample,
            status=attempt.status,
            score=attempt.score,
            feedback=self._masker.mask_json(attempt.feedback),
            metrics=attempt.metrics,
            output=self._masker.mask_json(attempt.output),
            error=self._masker.mask_json(attempt.error),
            call_refs=tuple(attempt.session.refs),
            llm_calls=attempt.session.llm_calls,
            usage=attempt.session.usage,
            cost_usd=cost_usd,
            started_at=round(started_at, 4),
            duration_s=round(time.monotonic() - started, 4),
            attempts=made,
            tags=request.task.tags,
            steps=attempt.steps,
            agents=did if any(did) else {},
            span_ref=self._journal.keep_spans({"stage": self._stage, "key": key, "spans": told}) if told else None,
        )

    def _keep(self, rollout: Rollout, executed: bool) -> None:
        self._finished[rollout.key] = rollout
        self._progress.add(rollout, executed)
        if rollout.status is RolloutStatus.INFRA_ERROR:
            self._check_infra(rollout)
        elif rollout.status is RolloutStatus.REWARD_ERROR:
            self._check_rewards(at_end=False)

    def _check_infra(self, last: Rollout) -> None:
        lost = self._progress.by_status[RolloutStatus.INFRA_ERROR]
        allowed = self._max_infra_errors * max(self._progress.expected, self.done)
        if lost >= _MIN_INFRA_ERRORS and lost > allowed:
            raise TooManyInfraErrors(
                f"{lost} of {self.done} rollouts of stage {self._stage} were lost to infrastructure; the last: "
                f"{last.error}",
                hint="mend that and `lightningrun resume`, which tries them again, or raise execution.max_infra_errors",
            )

    def _check_rewards(self, at_end: bool) -> None:
        wrong = self._progress.by_status[RolloutStatus.REWARD_ERROR]
        if wrong and wrong == self.done and (at_end or wrong >= _HOPELESS_REWARD_ERRORS):
            first = next(r for r in self._finished.values() if r.status is RolloutStatus.REWARD_ERROR)
            raise RewardErrors(
                f"none of {wrong} rollouts of stage {self._stage} got a usable score; task {first.task_id!r}: "
                f"{first.error}",
                hint="mend the reward function; no LLM call is repeated by `lightningrun resume`",
            )

    def _check_answers(self) -> None:
        """A model that refuses every request is a wrong request, not an agent that scores 0."""
        failed = self._progress.by_status[RolloutStatus.FAILED]
        if failed != self.done or failed < _MIN_INFRA_ERRORS:
            return
        rollouts = list(self._finished.values())
        if any(rollout.usage.completion_tokens for rollout in rollouts) or not all(r.llm_calls for r in rollouts):
            return
        raise StageFailed(
            f"the model answered no request of stage {self._stage}; the last rollout: {rollouts[-1].error}",
            hint="the requests are in the run's calls.jsonl; mend agent or model and start a new run",
        )

    def _check_prompts_were_seen(self) -> None:
        unseen = self._attempts.unseen
        called = any(rollout.llm_calls for rollout in self._finished.values())
        if unseen and self.executed and called:
            raise StageFailed(
                f"no request of stage {self._stage} held the text of prompt {sorted(unseen)[0]!r}, so the gateway "
                "could not replace it",
                where="agent.prompts",
                hint="its text must equal a message that the agent sends (from 40 characters on: or stand in one), or "
                "take it as argument: bind: argument",
            )

    def _warn_of_leftovers(self, attempt: Attempt, request: RolloutRequest) -> None:
        if attempt.leftovers and not self._warned_of_leftovers:
            self._warned_of_leftovers = True
            self._journal.emit(
                "log",
                stage=self._stage,
                level="warning",
                message=f"the agent left {attempt.leftovers} process(es) behind on task {request.task.id!r}; they were "
                "killed and the slot was replaced, which costs time (said once)",
            )


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
