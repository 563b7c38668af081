"""The embedded engine as a rollout server of verl: tokens in, tokens out, new weights after each step.

This file imports nothing of verl: the process it runs in is ready in a third of the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from lightningrun.models.local import checkpoint
from lightningrun.models.local.decoder import Decoder
from lightningrun.models.local.engine import LocalEngine
from lightningrun.models.local.sampling import Sampling


@dataclass(slots=True)
class Tokens:
    """verl's ``TokenOutput``, by its fields."""

    token_ids: list[int]
    log_probs: list[float]
    stop_reason: str = "completed"
    num_preempted: int = 0
    routed_experts: None = None
    extra_fields: dict[str, Any] = field(default_factory=dict)


class EngineServer:
    """One replica; verl calls its methods by name."""

    def __init__(self, folder: str, context: int, response_length: int) -> None:
        self._engine = LocalEngine(Path(folder), device="cpu", dtype="float32", context=context)
        with torch.device("meta"):
            self._names = frozenset(Decoder(checkpoint.read_shape(Path(folder))).state_dict())
        self._longest = response_length
        self._steps: int | None = None
        self._seeds = count()

    async def launch(self) -> None: ...

    async def generate(
        self, request_id: str = "", *, prompt_ids: list[int], sampling_params: Mapping[str, Any], **_: Any
    ) -> Tokens:
        """One completion. ``sampling_params`` as verl's agent loops give them; a ``seed`` decides it."""
        room = self._engine.context - len(prompt_ids)
        wanted = sampling_params.get("max_tokens") or self._longest
        sampling = Sampling(
            temperature=float(sampling_params.get("temperature", 1.0)),
            top_p=float(sampling_params.get("top_p", 1.0)),
            top_k=max(0, int(sampling_params.get("top_k", 0))),
            max_tokens=max(1, min(wanted, room)),
            stop_ids=tuple(sampling_params.get("stop_token_ids") or ()),
            seed=sampling_params.get("seed", next(self._seeds)),
        )
        (completion,) = await self._engine.generate(list(prompt_ids), sampling)
        return Tokens(completion.ids, completion.logprobs, extra_fields={"global_steps": self._steps})

    async def update_weights(self, named: Mapping[str, Any], global_steps: int | None) -> None:
        """Answer with these weights (arrays by Hugging Face's names) from now on."""
        state = {name: torch.tensor(array) for name, array in named.items() if name in self._names}
        await asyncio.wrap_future(self._engine.update_weights(state, f"step-{global_steps}"))
        if global_steps is not None:
            self._steps = global_steps

    # Nothing to make room for, to interrupt or to look at.

    async def wake_up(self, *_: Any, **__: Any) -> None: ...
    async def sleep(self, *_: Any, **__: Any) -> None: ...
    async def clear_kv_cache(self) -> None: ...
    async def release_kv_cache(self) -> None: ...
    async def resume_kv_cache(self) -> None: ...
    async def resume_generation(self) -> None: ...
    async def abort_all_requests(self, **_: Any) -> None: ...
    async def start_profile(self, **_: Any) -> None: ...
    async def stop_profile(self) -> None: ...
