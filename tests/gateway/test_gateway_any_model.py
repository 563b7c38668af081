"""Whatever the protocol asks, any configured model answers; and chat completions, to their last field."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from lightningrun.gateway.server import Gateway
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from tests.gateway.conftest import Opens
from tests.gateway.test_gateway_messages import answering
from tests.servers.openai_endpoint import Endpoint

MODEL = """
def echo(request):
    said = [message["content"] for message in request["messages"] if message["role"] == "user"][-1]
    return "echo: " + (said if isinstance(said, str) else said[0]["text"])
"""


@contextlib.asynccontextmanager
async def gateway_before(provider: str, tmp_path: Path) -> AsyncIterator[tuple[Gateway, str, ModelService]]:
    (tmp_path / "model.py").write_text(MODEL)
    async with Endpoint("ok") as endpoint:
        names = {"python": f"{tmp_path}/model.py:echo", "openai": "m", "litellm": "openai/m"}
        base_url = None if provider == "python" else endpoint.base_url
        key = "THE_KEY" if provider == "litellm" else None
        config = ModelConfig(provider=provider, name=names[provider], base_url=base_url, api_key_env=key)  # type: ignore[arg-type]
        service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={"THE_KEY": "sk-12345678"})
        gateway = Gateway(service)
        await gateway.start()
        gateway.bind("x", service.session(stage="s", owner="o"))
        try:
            yield gateway, gateway.url("x"), service
        finally:
            await gateway.stop()
            await service.aclose()


@pytest.mark.parametrize("provider", ["python", "openai", "litellm"])
async def test_any_model_answers_every_protocol_whole_and_streamed(provider: str, tmp_path: Path) -> None:
    hi: Any = [{"role": "user", "content": "hi"}]
    async with gateway_before(provider, tmp_path) as (gateway, url, _):
        key = gateway.token
        async with (
            openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client,
            anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as claude,
        ):
            said = [
                (await client.chat.completions.create(model="policy", messages=hi)).choices[0].message.content,
                (await client.completions.create(model="policy", prompt="hi")).choices[0].text,
                (await client.responses.create(model="policy", input="hi")).output_text,
                (await claude.messages.create(model="policy", max_tokens=9, messages=hi)).content[0].text,  # type: ignore[union-attr]
            ]
            hello: Any = [{"role": "user", "content": "hello"}]
            async with client.chat.completions.stream(model="policy", messages=hello) as chat:
                said.append((await chat.get_final_completion()).choices[0].message.content)
            texts = await client.completions.create(model="policy", prompt="hello", stream=True)
            said.append("".join([choice.text async for chunk in texts for choice in chunk.choices]))
            async with client.responses.stream(model="policy", input="hello") as response:
                said.append((await response.get_final_response()).output_text)
            async with claude.messages.stream(model="policy", max_tokens=9, messages=hello) as message:
                said.append(await message.get_final_text())
        assert [(text or "").strip() for text in said] == ["echo: hi"] * 4 + ["echo: hello"] * 4


async def test_a_model_without_embeddings_says_so(tmp_path: Path) -> None:
    async with (
        gateway_before("python", tmp_path) as (gateway, url, _),
        openai.AsyncOpenAI(base_url=url, api_key=gateway.token) as client,
    ):
        with pytest.raises(openai.BadRequestError, match=r"models\.policy: .*provider python has no embeddings"):
            await client.embeddings.create(model="policy", input="x")


async def test_litellm_embeds_too(tmp_path: Path) -> None:
    async with (
        gateway_before("litellm", tmp_path) as (gateway, url, _),
        openai.AsyncOpenAI(base_url=url, api_key=gateway.token) as client,
    ):
        answer = await client.embeddings.create(model="policy", input="abc", encoding_format="float")
        assert answer.data[0].embedding == [3.0, 0.5]


async def test_chat_is_handed_on_to_its_last_field(house: Opens) -> None:
    """Images, audio and files, tools called side by side, logprobs, n: nothing is read that need not be."""
    content: Any = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x.test/cat.png", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
        {"type": "home_made", "x": {"y": [1]}},
    ]
    calls = [{"id": n, "type": "function", "function": {"name": n, "arguments": "{}"}} for n in ("one", "two")]
    token = {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    reply = answering({"content": None, "tool_calls": calls}, "tool_calls", logprobs={"content": [token]})
    async with house("ok", reply=reply) as h:
        request: Any = {
            "model": "policy",
            "messages": [{"role": "user", "content": content, "name": "me"}],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "parallel_tool_calls": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        }
        whole = await h.client.chat.completions.create(**request)
        sent = {**h.endpoint.requests[0], "model": "policy"}
        assert sent == request
        request["model"] = "judge"
        async with h.client.chat.completions.stream(**request) as stream:
            streamed = await stream.get_final_completion()
        for answer in (whole, streamed):
            assert len(answer.choices) == 2
            for choice in answer.choices:
                assert [call.id for call in choice.message.tool_calls or ()] == ["one", "two"]
                assert choice.logprobs and choice.logprobs.content and choice.logprobs.content[0].logprob == -0.5
