"""A gateway before a scripted endpoint, as a run sets it up."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from lightningrun.gateway.server import Gateway
from lightningrun.models.ledger import Limits
from lightningrun.models.service import ModelService
from lightningrun.models.session import CallSession
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import Endpoint

KEY = "sk-canary-4242424242"


@dataclass
class House:
    endpoint: Endpoint
    service: ModelService
    gateway: Gateway
    session: CallSession
    url: str
    client: openai.AsyncOpenAI
    log: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.gateway.token}"}


Opens = Callable[..., contextlib.AbstractAsyncContextManager[House]]


@pytest.fixture
def house(tmp_path: Path) -> Opens:
    """``async with house("503*2,ok", retries=2) as h:`` with a real OpenAI client as ``h.client``."""

    @contextlib.asynccontextmanager
    async def opened(
        *script: str, limits: Limits | None = None, reply: Any = None, **options: Any
    ) -> AsyncIterator[House]:
        async with Endpoint(*script, reply=reply) as endpoint:
            config = ModelConfig(
                provider="openai", name="real-model", base_url=endpoint.base_url, api_key_env="THE_KEY", **options
            )
            models = {"policy": config, "judge": config.model_copy(update={"name": "judge-model"})}
            log = tmp_path / "calls.jsonl"
            service = ModelService(models, log, environ={"THE_KEY": KEY}, limits=limits or Limits())
            gateway = Gateway(service)
            await gateway.start()
            session = service.session(stage="s", owner="o")
            url_id = gateway.new_url_id()
            gateway.bind(url_id, session)
            client = openai.AsyncOpenAI(base_url=gateway.url(url_id), api_key=gateway.token, timeout=20)
            try:
                yield House(endpoint, service, gateway, session, gateway.url(url_id), client, log)
            finally:
                await client.close()
                await gateway.stop()
                await service.aclose()

    return opened
