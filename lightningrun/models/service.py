"""The one door to every model: sampling, cache, budgets, concurrency, retries, and a record of each call.

A call goes through it like this: the body is made as it will be sent; an equal finished call is answered from the call
log; an equal call under way is waited for; else one of the model's slots is taken, the budget reserved, the request
sent (and sent again while the model's deadline lasts), and the call recorded before its answer is handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import ModelError, UsageError
from lightningrun.models import build
from lightningrun.models.call_log import CallLog
from lightningrun.models.chunks import Assembler, split
from lightningrun.models.ledger import Ledger, Limits
from lightningrun.models.provider import SAMPLED, Body, Provider, RefusedRequest, checked, usage_of
from lightningrun.models.retries import Retries
from lightningrun.models.role import Role
from lightningrun.models.session import CallSession, PendingCall
from lightningrun.types import LLMCall, Usage

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig

DISCONNECTED = "client disconnected"


class ModelService:
    """Answers chat requests of sessions, for one run. Used from one event loop; one process at a time per file."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        calls_path: Path,
        *,
        environ: Mapping[str, str] = os.environ,
        seed: int = 0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        mask: Callable[[str], str] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Build every provider and read ``calls_path`` back. ``say`` is told of the progress of servers that are
        started. Raises Missing, UsageError.
        """
        self.roles = {name: Role(name, config, build(config, environ, name), seed) for name, config in models.items()}
        self._by_model = {role.config.name: role for role in reversed(self.roles.values())}
        for role in self.roles.values():
            if (attend := getattr(role.provider, "attend", None)) is not None:
                attend(calls_path.parent / "logs", say)
        secrets = [role.provider.secret for role in self.roles.values()]
        self._log = CallLog(calls_path, secrets, mask)
        self.damaged = self._log.damaged
        self._ledger = Ledger("run", limits)
        self._ledger.role_limits = {name: c.max_calls for name, c in models.items() if c.max_calls is not None}
        self._stages: dict[str, Ledger] = {}
        self._flights: dict[str, asyncio.Future[ModelError | None]] = {}
        self._last_id = 0
        self._check_prices(limits)
        self._log.restore(self._restore)

    def _restore(self, call: LLMCall) -> None:
        self._stage_ledger(call.stage).restore(call.role, call.usage, call.cost_usd or 0.0)

    def _check_prices(self, limits: Limits) -> None:
        unknown = [name for name, role in self.roles.items() if role.price is None]
        if limits.max_cost_usd is not None and unknown:
            raise UsageError(
                f"a budget in dollars cannot be kept: no price is known for {', '.join(unknown)}",
                where=f"models.{unknown[0]}.price",
                hint="set price: {input_per_mtok: ..., output_per_mtok: ...}",
            )

    def _stage_ledger(self, stage: str) -> Ledger:
        if stage not in self._stages:
            self._stages[stage] = self._ledger.child(f"stage {stage}", Limits())
        return self._stages[stage]

    def open_stage(
        self,
        stage: str,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        role_limits: Mapping[str, int] | None = None,
    ) -> Ledger:
        """The ledger of a stage, with these limits from now on; what the stage spent before a crash is in it."""
        self._check_prices(limits)
        ledger = self._stage_ledger(stage)
        ledger.limits = limits
        ledger.role_limits = dict(role_limits or {})
        return ledger

    def totals(self) -> dict[str, dict[str, float]]:
        """What the run spent, by role; see ``Ledger.totals``."""
        return self._ledger.totals()

    def session(
        self,
        *,
        stage: str,
        owner: str,
        sample: int = 0,
        default_role: str = "policy",
        stood_for: str = "",
        rewrites: Mapping[str, str] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> CallSession:
        """A session for one owner: a rollout's key, or ``coach:...``.

        A caller that asks for the role ``stood_for`` gets the default role. ``sample`` keeps the repeats of a task
        apart in the cache. ``rewrites`` replaces texts in messages. By ``prompts`` (name -> text as the agent sends
        it) calls are told apart whose request names no agent.
        """
        ledger = self._stage_ledger(stage)
        return CallSession(self, ledger, stage, owner, sample, default_role, stood_for, rewrites or {}, prompts or {})

    def read(self, ref: int) -> LLMCall:
        """The call at a byte offset of the call log. Raises ValueError if none is there."""
        return self._log.read(ref)

    def masked(self, text: str) -> str:
        """``text`` without any secret of the run."""
        return self._log.masked(text)

    def role_for(self, model: object, default: str, stood_for: str = "") -> Role:
        """The role whose name, or else model name, the caller asked for; ``default`` if there is none, or if that is
        the role it stands for."""
        if isinstance(model, str):
            own = self.roles.get(default)  # roles may share one model, and a judge's calls are the judge's
            role = self.roles.get(model) or (own if own and own.config.name == model else self._by_model.get(model))
            if role is not None and role.name != stood_for:
                return role
        if default in self.roles:
            return self.roles[default]
        raise UsageError(f"the recipe has no model {default!r}", where="models", hint=f"it has {', '.join(self.roles)}")

    def serve(self, role: str, checkpoint: Path | None) -> None:
        """Let ``role`` answer from a checkpoint that a stage made; None: from the one that the recipe names.

        Called between stages, when no call is under way. Raises UsageError if the role's provider serves none.
        """
        serve = getattr(self.role_for(role, role).provider, "serve", None)
        if serve is not None:
            serve(checkpoint)
        elif checkpoint is not None:
            raise UsageError(
                f"models.{role} cannot answer from the checkpoint of an earlier stage",
                where=f"models.{role}.provider",
                hint="provider: local can; or name no `model` among the stage's inputs",
            )

    async def ready(self, role: str) -> None:
        """Wait until ``role`` can answer, where that takes longer than an agent would wait. Raises ModelError."""
        ready = getattr(self.roles[role].provider if role in self.roles else None, "ready", None)
        if ready is not None:
            await ready()

    async def rest(self, role: str) -> None:
        """Free what ``role`` holds on the GPU, until it is asked again: the memory is wanted for training."""
        rest = getattr(self.role_for(role, role).provider, "rest", None)
        if rest is not None:
            await rest()

    @contextlib.contextmanager
    def stand_in(self, role: str, provider: Provider) -> Iterator[None]:
        """Let ``provider`` answer in the place of a role's own."""
        found = self.role_for(role, role)
        own, found.provider = found.provider, provider
        try:
            yield
        finally:
            found.provider = own

    def knows(self, model: str) -> bool:
        """Whether ``model`` is a role, or the model name of one."""
        return model in self.roles or model in self._by_model

    async def answer(self, call: PendingCall) -> Body:
        """The completion for ``call``, from the log or the provider. Raises ModelError, BudgetReached, DiskFull."""
        replayed = await self._replayed(call)
        if replayed is not None:
            return replayed
        with self._leading(call):
            async with self._sending(call) as attempts:
                complete = _embedding(call.role) if call.protocol == "embeddings" else call.role.provider.complete
                completion = await attempts.run(partial(complete, call.body, call.payload))
                sampled = completion.pop(SAMPLED, None)
                self._record(call, completion, sampled=sampled)
                return completion

    async def stream(self, call: PendingCall) -> AsyncGenerator[Body, None]:
        """The chunks for ``call``. Attempts are repeated only while no chunk was handed on. Raises as ``answer``."""
        replayed = await self._replayed(call)
        if replayed is not None:
            for chunk in split(replayed):
                yield chunk
            return
        body = {**call.body, "stream": True, "stream_options": {"include_usage": True}}
        assembled = Assembler()
        with self._leading(call):
            async with self._sending(call) as attempts:
                first, chunks = await attempts.run(partial(_opened, call.role, body))
                sampled = first.pop(SAMPLED, None)
                async with contextlib.aclosing(chunks):
                    assembled.add(first)
                    yield first
                    async for chunk in chunks:
                        sampled = chunk.pop(SAMPLED, sampled)
                        assembled.add(chunk)
                        yield chunk
                if not assembled.finished:
                    raise ModelError("the stream ended in the middle", kind="connection", where=call.role.where)
                self._record(call, checked(assembled.done(), call.role.where), body, sampled=sampled)

    async def _replayed(self, call: PendingCall) -> Body | None:
        """The logged answer to an equal call, waiting for one under way; None if this call must be sent."""
        while True:
            if (hit := self._log.answer(call.key)) is not None:
                return self._replay(call, *hit)
            flight = self._flights.get(call.key)
            if flight is None:
                return None
            try:
                error = await asyncio.shield(flight)
            except asyncio.CancelledError:
                self._record(call, None, error=DISCONNECTED)
                raise
            if error is not None:
                self._record(call, None, error=str(error))
                raise error

    def _replay(self, call: PendingCall, offset: int, original: LLMCall) -> Body:
        session = call.session
        usage, cost, took_s = original.usage, original.cost_usd or 0.0, original.duration_s
        if (original.stage, original.owner) != (session.stage, session.owner):
            cost = took_s = 0.0
            copy = self._log.copy(session.stage, session.owner, call.key)
            offset = (
                copy
                if copy is not None
                else self._log.append(
                    replace(
                        original,
                        id=self._new_id(),
                        role=call.role.name,
                        stage=session.stage,
                        owner=session.owner,
                        agent=call.agent,
                        protocol=call.protocol,
                        path=call.path,
                        span=call.span,
                        started_at=time.time(),
                        duration_s=0.0,
                        cost_usd=0.0,
                        attempts=0,
                        cached=True,
                    )
                )
            )
        session.note(offset, usage, cost, call.agent, took_s, False)
        assert original.response is not None
        return dict(original.response)

    @contextlib.contextmanager
    def _leading(self, call: PendingCall) -> Iterator[None]:
        """Let equal calls wait for this one. They share its answer and its failure, but not its cancellation."""
        key = call.key
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        failed: ModelError | None = None
        try:
            yield
        except ModelError as error:
            failed = error
            raise
        finally:
            del self._flights[key]
            flight.set_result(failed)

    @contextlib.asynccontextmanager
    async def _sending(self, call: PendingCall) -> AsyncIterator[Retries]:
        """Hold a slot of the model and a reservation; record the call if it fails, or its client leaves the queue."""
        config = call.role.config
        try:
            async with call.role.slots:
                bound = call.role.bound_usd(call.body, call.payload)
                call.reservation = await call.session.ledger.reserve(call.role.name, bound)
                call.attempts = Retries(config.timeout_s, config.deadline_s, config.retries)
                call.started_at, call.started = time.time(), time.monotonic()
                yield call.attempts
        except ModelError as error:
            self._record(call, None, error=str(error))
            raise
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
            odd = ModelError(f"answered oddly: {error!r}", kind="malformed", where=call.role.where)
            self._record(call, None, error=str(odd))
            raise odd from error
        except (asyncio.CancelledError, GeneratorExit):
            self._record(call, None, error=DISCONNECTED)
            raise
        finally:
            if call.reservation is not None:
                call.reservation.release()

    def refuse(self, call: PendingCall, reason: str) -> None:
        """Record a call that was sent to nobody."""
        self._record(call, None, error=reason)

    def _record(
        self,
        call: PendingCall,
        completion: Body | None,
        sent: Body | None = None,
        error: str = "",
        sampled: Body | None = None,
    ) -> None:
        session, role = call.session, call.role
        made = call.attempts.made if call.attempts else 0
        usage = usage_of(completion, call.payload) if completion is not None else Usage()
        cost = None if role.price is None else role.price.of(usage)
        took_s = round(time.monotonic() - call.started, 6) if call.started else 0.0
        offset = self._log.append(
            LLMCall(
                id=self._new_id(),
                role=role.name,
                model=role.config.name,
                stage=session.stage,
                owner=session.owner,
                request=sent or call.body,
                response=completion,
                error=error,
                started_at=round(call.started_at or time.time(), 4),
                duration_s=took_s,
                usage=usage,
                cost_usd=cost,
                attempts=made,
                sample=session.sample,
                occurrence=call.occurrence,
                agent=call.agent,
                protocol=call.protocol,
                path=call.path,
                span=call.span,
                cache_key=call.key,
                sampled=sampled,
            )
        )
        if call.reservation is not None:
            call.reservation.settle(usage, cost or 0.0)
        session.note(offset, usage, cost or 0.0, call.agent, took_s, bool(error))

    def _new_id(self) -> str:
        self._last_id += 1
        return f"call-{time.time_ns():x}-{self._last_id}"

    async def aclose(self) -> None:
        """Close connections and the log. Calls still under way must have been ended before."""
        for role in self.roles.values():
            with contextlib.suppress(Exception):
                await role.provider.aclose()
        self._log.close()


def _embedding(role: Role) -> Callable[[Body, bytes, float], Awaitable[Body]]:
    embed = getattr(role.provider, "embed", None)
    if embed is None:
        raise RefusedRequest(
            f"a model of provider {role.config.provider} has no embeddings: add one of provider openai or litellm to "
            "the recipe's models, and ask for it by its name",
            status=400,
            where=role.where,
        )
    return embed  # type: ignore[no-any-return]


async def _opened(role: Role, body: Body, timeout_s: float) -> tuple[Body, AsyncGenerator[Body, None]]:
    chunks = role.provider.stream(body, timeout_s)
    try:
        return await chunks.__anext__(), chunks
    except StopAsyncIteration:
        raise ModelError("the stream was empty", kind="connection", retryable=True, where=role.where) from None
