"""How verl starts ``server.EngineServer`` and hands it new weights. For machines without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica

from lightningrun.stages.verl_grpo.cluster.server import EngineServer


def _name(replica: int) -> str:
    return f"lightningrun_rollout_{replica}"


class EngineReplica(RolloutReplica):
    """Launched by the trainer's process."""

    async def launch_servers(self) -> None:
        config = self.config
        context = config.max_model_len or config.prompt_length + config.response_length
        server: Any = (
            ray.remote(EngineServer)
            .options(name=_name(self.replica_rank), num_cpus=0, max_concurrency=self.max_concurrency)
            .remote(self.model_config.path, context, config.response_length)
        )
        await server.launch.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = f"127.0.0.1:0-{self.replica_rank}"


class EngineAdapter(BaseRollout):
    """Lives in the worker that trains."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self._rank = int(os.environ.get("RANK", "0")) if replica_rank < 0 else replica_rank
        self._server: Any = None

    async def resume(self, tags: list[str]) -> None: ...
    async def release(self) -> None: ...

    @torch.no_grad()
    async def update_weights(
        self, weights: Iterable[tuple[str, Tensor]], wire_format: str = "named_tensors", **options: Any
    ) -> None:
        """Copy ``weights`` to the server; done when it answers with them."""
        if options.get("peft_config") is not None:
            raise ValueError("this rollout server takes whole weights: set actor_rollout_ref.model.lora.merge")
        named = {name: weight.detach().float().cpu().numpy().copy() for name, weight in weights}
        self._server = self._server or ray.get_actor(_name(self._rank))
        await self._server.update_weights.remote(named, options.get("global_steps"))
