"""One attempt at a rollout: run the agent, tell whose fault a failure is, score the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightningrun.agents.jobs import AgentJob, AgentPool, Outcome, RewardJob
from lightningrun.errors import GatewayBypassed
from lightningrun.reward import RewardGate, RewardProblem
from lightningrun.rollouts.requests import RolloutRequest
from lightningrun.rollouts.spans import Spans
from lightningrun.rollouts.trace import trace_call
from lightningrun.types import Json, RolloutStatus

if TYPE_CHECKING:
    from lightningrun.gateway.server import Gateway
    from lightningrun.models.service import ModelService
    from lightningrun.models.session import CallSession
    from lightningrun.recipe.model import Recipe

_STALLED = 0.5
"""A timeout is the model's fault if one call had been unanswered for more than this share of the agent's time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended. ``session`` holds the agent's LLM calls, ``spans`` what its framework told."""

    status: RolloutStatus
    session: CallSession
    spans: Spans
    score: float | None = None
    feedback: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[float, ...] = ()
    output: Json = None
    error: str = ""
    leftovers: int = 0


class Metered:
    """A session that knows since when its calls are unanswered; this is what the gateway is bound to."""

    def __init__(self, session: CallSession) -> None:
        self._session = session
        self._since: dict[int, float] = {}
        self._count = 0
        self._hung_up_s = 0.0

    async def chat(self, body: dict[str, Any], **options: Any) -> dict[str, Any]:
        number = self._begin()
        try:
            return await self._session.chat(body, **options)
        except asyncio.CancelledError:
            self._hung_up_s = self.unanswered_s()
            raise
        finally:
            del self._since[number]

    async def stream(self, body: dict[str, Any], **options: Any) -> AsyncGenerator[dict[str, Any], None]:
        number = self._begin()
        chunks = self._session.stream(body, **options)
        try:
            async for chunk in chunks:
                yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            self._hung_up_s = self.unanswered_s()
            raise
        finally:
            del self._since[number]
            await chunks.aclose()

    def refuse(self, reason: str, asked: dict[str, Any], **options: Any) -> None:
        self._session.refuse(reason, asked, **options)

    def unanswered_s(self) -> float:
        """How long the oldest unanswered call has been waiting, or had when its client was killed; 0.0 without one."""
        now = asyncio.get_running_loop().time()
        return max([self._hung_up_s, *(now - since for since in self._since.values())])

    def _begin(self) -> int:
        self._count += 1
        self._since[self._count] = asyncio.get_running_loop().time()
        return self._count


class Attempts:
    """Makes attempts for one stage."""

    def __init__(
        self,
        stage: str,
        recipe: Recipe,
        pool: AgentPool,
        gateway: Gateway,
        service: ModelService,
        seed: int,
        policy: str = "policy",
    ) -> None:
        self._stage = stage
        self._recipe = recipe
        self._pool = pool
        self._gateway: Any = gateway
        self._service = service
        self._seed = seed
        self._gate = RewardGate.of(recipe.reward)
        roles = list(recipe.models)
        self._policy = policy if policy in roles else next(iter(roles), "policy")
        self._judge = "judge" if "judge" in roles else self._policy
        self.baselines = {
            name: prompt.text or "" for name, prompt in recipe.agent.prompts.items() if prompt.bind == "gateway"
        }
        """Prompts that the gateway replaces: name -> the text that the agent has built in."""
        self.unseen = set(self.baselines)

    async def make(self, request: RolloutRequest, key: str) -> Attempt:
        """Raises what ends the stage: GatewayBypassed, BudgetReached, a fatal ModelError, StageFailed of the pool."""
        await self._service.ready(request.role or self._policy)
        rewrites = {text: request.prompts[name] for name, text in self.baselines.items() if name in request.prompts}
        session = self._service.session(
            stage=self._stage,
            owner=key,
            sample=request.sample,
            default_role=request.role or self._policy,
            stood_for="policy",
            rewrites=rewrites,
            prompts={**request.prompts, **self.baselines},
        )
        metered = Metered(session)
        spans = Spans(time.time())
        timeout_s = self._recipe.agent.timeout_s

        def bind(url_id: str) -> None:
            self._gateway.bind(url_id, metered, spans)

        job = AgentJob(request.task.fields, request.prompts, request.seed(self._seed), timeout_s, self._llm(request))
        outcome = await self._pool.run(job, bind)
        stalled = metered.unanswered_s() if outcome.kind == "timeout" else 0.0
        self._note_seen(session)
        _raise_what_ends_the_stage(session)
        infra = _infra_error(session, outcome, stalled, "agent", timeout_s)
        if infra:
            return Attempt(RolloutStatus.INFRA_ERROR, session, spans, error=infra, leftovers=outcome.leftovers)
        if outcome.ok and outcome.output is None:
            outcome = Outcome("bad_output", error="the agent gave no answer: it returned None")
        if not outcome.ok:
            error = f"{outcome.kind}: {outcome.error}" if outcome.kind in ("timeout", "crashed") else outcome.error
            score = self._recipe.reward.failure_score
            return Attempt(RolloutStatus.FAILED, session, spans, score, error, error=error, leftovers=outcome.leftovers)
        if session.llm_calls == 0:
            raise _bypassed(request)
        return await self._scored(request, key, session, spans, outcome)

    async def _scored(
        self, request: RolloutRequest, key: str, session: CallSession, spans: Spans, outcome: Outcome
    ) -> Attempt:
        wants = self._pool.reward_wants
        trace = None
        if "trace" in wants or "**" in wants:
            trace = [trace_call(self._service.read(ref)) for ref in session.refs]
        await self._service.ready(self._judge)
        judge = self._service.session(
            stage=self._stage, owner=f"judge:{key}", sample=request.sample, default_role=self._judge
        )
        config = self._recipe.reward
        seed = request.seed(self._seed)
        job = RewardJob(request.task.fields, outcome.output, trace, request.prompts, seed, config.timeout_s)
        metered = Metered(judge)
        scoring = await self._pool.score(job, lambda url_id: self._gateway.bind(url_id, metered))
        _raise_what_ends_the_stage(judge)
        stalled = metered.unanswered_s() if scoring.kind == "timeout" else 0.0
        infra = _infra_error(judge, scoring, stalled, "reward", config.timeout_s)
        if infra:
            error = f"while scoring: {infra}"
            return Attempt(RolloutStatus.INFRA_ERROR, session, spans, output=outcome.output, error=error)
        reward = self._gate.check(scoring.output, len(session.refs)) if scoring.ok else RewardProblem(_what(scoring))
        if isinstance(reward, RewardProblem):
            return Attempt(RolloutStatus.REWARD_ERROR, session, spans, output=outcome.output, error=f"reward: {reward}")
        return Attempt(
            RolloutStatus.SUCCEEDED,
            session,
            spans,
            reward.score,
            reward.feedback,
            reward.metrics,
            reward.steps,
            outcome.output,
            leftovers=outcome.leftovers,
        )

    def _llm(self, request: RolloutRequest) -> dict[str, Json]:
        """What the agent is told of the model that answers it."""
        config = self._recipe.models.get(request.role or self._policy)
        sampling = {name: getattr(config, name, None) for name in ("temperature", "top_p", "max_tokens")}
        return {name: value for name, value in sampling.items() if value is not None}

    def _note_seen(self, session: CallSession) -> None:
        if self.unseen and session.rewritten:
            self.unseen -= {name for name, text in self.baselines.items() if text in session.rewritten}


def _what(outcome: Outcome) -> str:
    return outcome.error if outcome.kind in ("raised", "bad_output") else f"{outcome.kind}: {outcome.error}"


def _raise_what_ends_the_stage(session: CallSession) -> None:
    if session.fatal is not None:
        raise session.fatal
    if session.budget is not None:
        raise session.budget


def _infra_error(session: CallSession, outcome: Outcome, stalled_s: float, who: str, timeout_s: float) -> str:
    """Why the machine or a model is to blame for how this ended; empty if they are not."""
    if outcome.kind == "lost":
        return outcome.error
    if session.infra_error is not None:
        return str(session.infra_error)
    if stalled_s > _STALLED * timeout_s:
        return (
            f"the model had not answered for {stalled_s:.1f} s when the {who}'s {timeout_s:g} s were over; "
            f"if it is that slow, raise {who}.timeout_s"
        )
    return ""


def _bypassed(request: RolloutRequest) -> GatewayBypassed:
    return GatewayBypassed(
        f"the agent answered task {request.task.id!r} ({request.task.split}) without one LLM call through the gateway",
        hint="have it use `llm` from its arguments, or OPENAI_BASE_URL and OPENAI_API_KEY from its environment, not "
        "an endpoint of its own",
    )
