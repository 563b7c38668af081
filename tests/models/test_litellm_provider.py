"""LiteLLM's own SDK against a real endpoint on loopback. One import of it costs seconds, hence one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import Missing, ModelError
from lightningrun.models.provider import RefusedRequest
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import Endpoint

KEY = "sk-canary-4242424242"
ASK = {"model": "policy", "messages": [{"role": "user", "content": "hello there"}]}


def service_at(tmp_path: Path, endpoint: Endpoint, **options: Any) -> ModelService:
    config = ModelConfig(
        provider="litellm", name="openai/some-model", base_url=endpoint.base_url, api_key_env="THE_KEY", **options
    )
    return ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={"THE_KEY": KEY})


async def test_answers_streams_and_drops_what_the_model_does_not_take(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        completion = await session.chat(ASK)
        assert completion["choices"][0]["message"]["content"] == "echo: hello there"
        assert session.usage.total_tokens == 15
        other = {**ASK, "messages": [{"role": "user", "content": "one two three"}]}
        chunks = [chunk async for chunk in session.stream(other)]
        assert len([chunk for chunk in chunks if chunk["choices"]]) >= 4
        call = service.read(session.refs[-1])
        assert call.response is not None
        assert call.response["choices"][0]["message"]["content"].strip() == "echo: one two three"
        assert call.usage.total_tokens == 15
        json.dumps(completion)
        await service.aclose()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("500", "http_500"), ("401", "auth"), ("404", "not_found"), ("400", "bad_request"), ("hang", "timeout")],
)
async def test_failures_are_typed(tmp_path: Path, mode: str, kind: str) -> None:
    async with Endpoint(mode) as endpoint:
        service = service_at(tmp_path, endpoint, retries=0, timeout_s=1.0)
        session = service.session(stage="s", owner="o")
        with pytest.raises(ModelError) as caught:
            await session.chat(ASK)
        assert caught.value.kind == kind
        assert isinstance(caught.value, RefusedRequest) == (kind == "bad_request")
        assert (session.fatal is not None) == (kind in ("auth", "not_found"))
        assert KEY not in str(caught.value)
        assert KEY not in (tmp_path / "calls.jsonl").read_text()
        await service.aclose()


async def test_retries_are_ours_alone(tmp_path: Path) -> None:
    async with Endpoint("503*2,ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        await session.chat(ASK)
        assert endpoint.calls == 3
        assert service.read(session.refs[0]).attempts == 3
        await service.aclose()


async def test_an_unknown_provider_is_fatal_and_says_how_names_look(tmp_path: Path) -> None:
    config = ModelConfig(provider="litellm", name="no-such-model-anywhere")
    service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})
    session = service.session(stage="s", owner="o")
    with pytest.raises(ModelError, match="<provider>/<model>"):
        await session.chat(ASK)
    assert session.fatal is not None
    await service.aclose()


def test_an_absent_key_is_missing_before_any_call(tmp_path: Path) -> None:
    config = ModelConfig(provider="litellm", name="openai/x", api_key_env="NOT_SET_ANYWHERE")
    with pytest.raises(Missing, match="NOT_SET_ANYWHERE"):
        ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})


def test_prices_and_the_service_leave_litellm_unimported() -> None:
    code = (
        "import sys; from lightningrun.models.prices import price_of; from lightningrun.models import build\n"
        "from lightningrun.recipe.model import ModelConfig\n"
        "config = ModelConfig(provider='litellm', name='openai/gpt-4.1-mini')\n"
        "assert price_of(config).prompt == 4e-07; build(config, {}, 'policy')\n"
        "assert 'litellm' not in sys.modules and 'openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
