"""The policy while it is trained: sampled as the stage wants, its weights replaced after each step."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator

from lightningrun.errors import UsageError
from lightningrun.models.local.provider import LocalProvider
from lightningrun.models.provider import Body, Provider
from lightningrun.models.service import ModelService
from lightningrun.types import Json


class Sampler:
    """``inner`` with a sampling of our own in every request; the request that is recorded shows it."""

    secret = ""

    def __init__(self, inner: Provider, temperature: float, max_tokens: int | None) -> None:
        self._inner = inner
        self._sampling: Body = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
        if max_tokens is not None:
            self._sampling["max_tokens"] = max_tokens

    @property
    def fingerprint(self) -> Json:
        return [self._inner.fingerprint, self._sampling]

    def _put(self, body: Body) -> None:
        if "max_tokens" in self._sampling:
            body.pop("max_completion_tokens", None)
        body.update(self._sampling)

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        self._put(body)
        return await self._inner.complete(body, payload, timeout_s)

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        self._put(body)
        async for chunk in self._inner.stream(body, timeout_s):
            yield chunk

    async def aclose(self) -> None: ...


def local_provider(service: ModelService, role: str) -> LocalProvider:
    """What answers for ``role``. Raises UsageError if its weights are not ours to train."""
    provider = service.role_for(role, role).provider
    if not isinstance(provider, LocalProvider):
        raise UsageError(f"models.{role} cannot be trained: only provider local can", where=f"models.{role}.provider")
    return provider


def engine_cpu_s() -> float:
    """Processor time of the engine's thread so far; 0.0 where the system does not tell."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    alive = [thread for thread in threading.enumerate() if thread.name == "local-engine" and thread.ident]
    return sum(time.clock_gettime(clock(thread.ident)) for thread in alive) if clock else 0.0
