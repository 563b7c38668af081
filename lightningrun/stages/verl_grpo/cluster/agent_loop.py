"""verl's agent loop for agents that run elsewhere: it asks the stage for a rollout, and samples what the stage asks.

The stage runs the agent as ever, through our gateway; each request to the policy comes back here as token ids and goes
to verl's rollout servers. One line to the stage for each of verl's agent loop workers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from lightningrun.stages.verl_grpo.cluster.losses import SHARES
from lightningrun.stages.verl_grpo.cluster.wire import LONGEST, Line, Message

_lines: dict[asyncio.AbstractEventLoop, asyncio.Task[Line]] = {}


class Sequence(AgentLoopOutput):
    """A sequence of a rollout: what each of its tokens weighs in the loss, and what was earned where."""

    shares: list[float]
    rewards: list[float]
    """verl knows one reward for a rollout, and puts it at the end of each of its sequences."""

    def as_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().as_dict()
        fields[SHARES] = torch.tensor(fields.pop("shares"), dtype=torch.float32)
        fields["rm_scores"] = torch.tensor(fields.pop("rewards"), dtype=torch.float32)
        return fields


class GatewayAgentLoop(AgentLoopBase):
    """Named in the run's agent loop config; ``socket`` is where the stage listens."""

    def __init__(self, *args: Any, socket: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self._socket = socket

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[Sequence]:  # type: ignore[override]
        """The sequences of one rollout, none if it is left out. ``sampling_params`` are the stage's own."""
        line = await self._line()
        step = int(row["global_steps"])
        told = await line.ask(
            {**row["extra_info"], "uid": str(row["uid"]), "session": int(row["session_id"]), "step": step}
        )
        extra = {"reward_extra_info": {}, "min_global_steps": told["weights"], "max_global_steps": told["weights"]}
        return [
            Sequence(
                prompt_ids=one["prompt"],
                response_ids=one["response"],
                response_mask=one["mask"],
                response_logprobs=one["logprobs"],
                shares=one["shares"],
                rewards=one["rewards"],
                reward_score=told["reward"],
                num_turns=told["turns"],
                metrics=AgentLoopMetrics(),
                extra_fields=dict(extra),
            )
            for one in told["sequences"]
        ]

    async def _line(self) -> Line:
        loop = asyncio.get_running_loop()
        if loop not in _lines:
            _lines[loop] = loop.create_task(self._connected())
        return await asyncio.shield(_lines[loop])

    async def _connected(self) -> Line:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=LONGEST)
        line = Line(reader, writer, self._generate)
        self._serving = asyncio.create_task(line.serve())
        return line

    async def _generate(self, asked: Message) -> Message:
        output = await self.server_manager.generate(
            request_id=asked["request"], prompt_ids=asked["prompt"], sampling_params={**asked["sampling"]}
        )
        return {"ids": list(output.token_ids), "logprobs": list(output.log_probs or ())}
