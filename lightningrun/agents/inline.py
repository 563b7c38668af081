"""``isolation: inline``: the agent in the runner's own process, for trusted light agents.

Async functions share the runner's event loop; each sync call has a thread, which later calls use again. Each rollout
has a url of its own, which the agent must take from ``llm``. Limits that process isolation has not: a sync function
cannot be killed, so after a timeout its thread goes on until it returns; an agent that blocks the loop, exits the
process or eats memory does that to the run; the environment is the runner's, keys included.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightningrun.agents import calling
from lightningrun.agents.jobs import AgentJob, Bind, Endpoint, Outcome, RewardJob
from lightningrun.agents.slot import available
from lightningrun.agents.slots import SlotKind
from lightningrun.agents.threads import Threads
from lightningrun.errors import UsageError
from lightningrun.waiting import timeout

_SWITCH_S = 0.02
"""How often a thread that waits for the interpreter looks whether it is free; so long may one hold it.
At Python's 5 ms, hundreds of agents that wait spend a sixth of the processor on looking."""


class InlinePool:
    """An ``AgentPool`` without processes."""

    def __init__(self, size: int, agent: SlotKind, reward: SlotKind, endpoint: Endpoint) -> None:
        self.size = size
        self.reward_wants: frozenset[str] = frozenset()
        self._kinds = (agent, reward)
        self._endpoint = endpoint
        self._free = asyncio.Semaphore(size)
        self._free_reward = asyncio.Semaphore(size)
        self._threads = Threads("lightningrun-inline")
        self._switch_s = sys.getswitchinterval()

    async def start(self) -> None:
        if "" not in sys.path and "." not in sys.path:
            sys.path.insert(0, "")
        agent, reward = self._kinds
        self._agent = _load(agent)
        self._reward = _load(reward)
        self.reward_wants = self._reward.wants
        sys.setswitchinterval(max(self._switch_s, _SWITCH_S))

    async def run(self, job: AgentJob, bind: Bind) -> Outcome:
        async with self._free:
            return await self._do(self._agent, self._kinds[0], job.message(), job.timeout_s, bind, calling.encode)

    async def score(self, job: RewardJob, bind: Bind) -> Outcome:
        async with self._free_reward:
            return await self._do(
                self._reward, self._kinds[1], job.message(), job.timeout_s, bind, calling.encode_reward
            )

    async def close(self) -> None:
        self._threads.close()
        sys.setswitchinterval(self._switch_s)

    async def _do(
        self,
        function: calling.Function,
        kind: SlotKind,
        message: Mapping[str, Any],
        timeout_s: float,
        bind: Bind,
        encode: Callable[[Any], str],
    ) -> Outcome:
        url_id = self._endpoint.new_url_id()
        llm = {"base_url": self._endpoint.url(url_id), "api_key": self._endpoint.token, "model": kind.model}
        workdirs: list[str] = []

        def workdir() -> str:
            workdirs.append(tempfile.mkdtemp(prefix="lightningrun-"))
            return workdirs[-1]

        started = time.perf_counter()
        bind(url_id)
        try:
            async with timeout(timeout_s):
                names = available(message, kind.args, llm, workdir)
                result, error, bad = await self._caught(function, names, encode)
        except asyncio.TimeoutError:
            return Outcome("timeout", None, f"no answer within {timeout_s:g} s", time.perf_counter() - started)
        finally:
            self._endpoint.release(url_id)
            for path in workdirs:
                shutil.rmtree(path, ignore_errors=True)
        kind_of_end = "bad_output" if bad else "raised" if error else "ok"
        return Outcome(kind_of_end, json.loads(result), error, time.perf_counter() - started)

    async def _caught(
        self, function: calling.Function, names: Mapping[str, Any], encode: Callable[[Any], str]
    ) -> tuple[str, str, bool]:
        """(JSON text, error, whether the output was bad): an agent's SystemExit must not reach the runner's loop."""
        try:
            result = function(names) if function.is_async else await _in_thread(self._threads, function, names)
            if inspect.isawaitable(result):  # as a task, whose context dies with it
                result = await asyncio.ensure_future(result)
            return encode(result), "", False
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return "null", calling.explain(error), isinstance(error, calling.BadOutput)


def _load(kind: SlotKind) -> calling.Function:
    try:
        return calling.Function(kind.entrypoint)
    except Exception as error:
        raise UsageError(
            f"importing the {kind.role} failed: {calling.explain(error)}", where=kind.entrypoint
        ) from error


async def _in_thread(threads: Threads, function: calling.Function, names: Mapping[str, Any]) -> Any:
    """Call a sync function in a thread of its own: one that never returns blocks neither others nor exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result((result, error))

    def work() -> None:
        result: Any = None
        problem: BaseException | None = None
        try:
            result = function(names)
        except BaseException as error:
            problem = error
        try:
            loop.call_soon_threadsafe(settle, result, problem)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threads.start(work)
    result, error = await future
    if error is not None:
        raise error
    return result
