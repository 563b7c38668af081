"""The embedded engine behind every protocol: what is recorded is what was sampled, streamed or not, in any words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

pytest.importorskip("torch")

from lightningrun.gateway.server import Gateway
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from lightningrun.types import LLMCall
from tests.models.local_checkpoints import saved

USER: Any = [{"role": "user", "content": "who scored 12?"}]
OPTIONS: Any = {"model": "policy", "max_tokens": 16}


async def said(protocol: str, stream: bool, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> str | None:
    if protocol == "chat" and stream:
        chunks = await client.chat.completions.create(messages=USER, stream=True, **OPTIONS)
        return "".join([choice.delta.content or "" async for chunk in chunks for choice in chunk.choices])
    if protocol == "chat":
        return (await client.chat.completions.create(messages=USER, **OPTIONS)).choices[0].message.content
    if protocol == "completions" and stream:
        texts = await client.completions.create(prompt="who scored 12?", stream=True, **OPTIONS)
        return "".join([choice.text async for chunk in texts for choice in chunk.choices])
    if protocol == "completions":
        return (await client.completions.create(prompt="who scored 12?", **OPTIONS)).choices[0].text
    if protocol == "responses" and stream:
        events = await client.responses.create(
            model="policy", input="who scored 12?", max_output_tokens=16, stream=True
        )
        return [event async for event in events][-1].response.output_text  # type: ignore[union-attr]
    if protocol == "responses":
        answer = await client.responses.create(model="policy", input="who scored 12?", max_output_tokens=16)
        return answer.output_text
    if stream:
        async with claude.messages.stream(messages=USER, **OPTIONS) as message:
            return await message.get_final_text()
    return (await claude.messages.create(messages=USER, **OPTIONS)).content[0].text  # type: ignore[union-attr]


async def test_what_was_sampled_is_recorded_bit_for_bit_in_every_protocol(tmp_path: Path) -> None:
    config = ModelConfig(provider="local", name=str(saved(tmp_path / "model")), temperature=0.7)
    seen: list[tuple[str | None, LLMCall]] = []
    for protocol in ("chat", "completions", "responses", "messages"):
        for stream in (False, True):
            service = ModelService({"policy": config}, tmp_path / f"{protocol}-{stream}.jsonl", environ={})
            gateway = Gateway(service)
            await gateway.start()
            session = service.session(stage="s", owner="o")
            gateway.bind("x", session)
            url, key = gateway.url("x"), gateway.token
            async with (
                openai.AsyncOpenAI(base_url=url, api_key=key) as client,
                anthropic.AsyncAnthropic(base_url=url, api_key=key) as claude,
            ):
                text = await said(protocol, stream, client, claude)
            call = service.read(session.refs[0])
            assert call.protocol == protocol
            seen.append((text, call))
            await gateway.stop()
            await service.aclose()
    text, first = seen[0]
    assert text and first.sampled and first.sampled["choices"][0]["ids"] and first.sampled["prompt_ids"]
    for other, call in seen[1:]:
        assert (other, call.sampled) == (text, first.sampled), call.protocol
