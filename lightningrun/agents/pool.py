"""Which pool runs a recipe's agent, and the pool of process slots."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.agents import command, interpreter
from lightningrun.agents.environment import agent_environment
from lightningrun.agents.fork_server import ForkServer
from lightningrun.agents.jobs import AgentJob, AgentPool, Bind, Endpoint, Outcome, RewardJob
from lightningrun.agents.slots import SlotGroup, SlotKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe

_AUTO_SLOTS = 8
"""Agents mostly wait for a model, so slots outnumber cores; measured best on two cores with a 1 ms endpoint."""
_EAGER_PER_CORE = 2
"""Agent slots made without a look at how fast they come free."""


def build(recipe: Recipe, endpoint: Endpoint, logs: Path, environ: Mapping[str, str] = os.environ) -> AgentPool:
    """The pool for ``recipe.agent`` and ``recipe.reward``. ``logs`` is an existing folder for what they print."""
    agent, reward = recipe.agent, recipe.reward
    workers = recipe.execution.workers
    size = max(_AUTO_SLOTS, 2 * (os.cpu_count() or 1)) if workers == "auto" else workers
    args: dict[str, Any] = dict(agent.args)
    if agent.command is not None:
        args = {"command": list(agent.command), "user_args": args}
    entrypoint = agent.entrypoint or command.ENTRYPOINT
    agents = SlotKind("agent", entrypoint, args, model_name(recipe, "policy"), agent.memory_mb)
    rewards = SlotKind("reward", reward.function, dict(reward.args), model_name(recipe, "judge"))
    if agent.isolation == "inline" and agent.command is None:
        from lightningrun.agents.inline import InlinePool

        return InlinePool(size, agents, rewards, endpoint)
    return ProcessPool(size, agents, rewards, endpoint, logs, agent_environment(environ, agent.env), agent.python)


def model_name(recipe: Recipe, role: str) -> str:
    """What an agent is told as model name: the provider's own name where agents may know it and it is unambiguous."""
    models = recipe.models
    role = role if role in models else next(iter(models), role)
    if role not in models or models[role].provider == "python":
        return role
    name = models[role].name
    return role if [model.name for model in models.values()].count(name) > 1 else name


class ProcessPool:
    """An ``AgentPool`` of forked slots: ``size`` for the agent, and as many for the reward function if it is slow.

    ``python``: the interpreter of the agent, if it has its own; its slots then have a fork server of theirs.
    """

    def __init__(
        self,
        size: int,
        agent: SlotKind,
        reward: SlotKind,
        endpoint: Endpoint,
        logs: Path,
        env: Mapping[str, str],
        python: str | None = None,
    ) -> None:
        self.size = size
        self.reward_wants: frozenset[str] = frozenset()
        logs = logs.resolve()
        if python is None:
            servers = [ForkServer(env, [agent.entrypoint, reward.entrypoint], logs)] * 2
        else:
            own = ForkServer(interpreter.environment(env, python), [agent.entrypoint], logs, python)
            servers = [own, ForkServer(env, [reward.entrypoint], logs)]
        self._servers = dict.fromkeys(servers)
        self._agents = SlotGroup(size, _EAGER_PER_CORE * (os.cpu_count() or 1), agent, servers[0], endpoint)
        self._rewards = SlotGroup(size, 1, reward, servers[1], endpoint)

    async def start(self) -> None:
        await self._agents.start()
        self.reward_wants = await self._rewards.start()

    async def run(self, job: AgentJob, bind: Bind) -> Outcome:
        return await self._agents.run(job.message(), job.timeout_s, bind)

    async def score(self, job: RewardJob, bind: Bind) -> Outcome:
        return await self._rewards.run(job.message(), job.timeout_s, bind)

    async def close(self) -> None:
        await asyncio.gather(*(server.close() for server in self._servers))
