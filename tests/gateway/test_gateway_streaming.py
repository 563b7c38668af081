"""Streams: passed on as they come, captured whole, ended from either side."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from tests.gateway.conftest import Opens
from tests.gateway.test_gateway_chat import TOOL

LONG = [{"role": "user", "content": " ".join(f"w{n}" for n in range(30))}]


async def test_chunks_come_as_they_are_made_and_are_captured_assembled(house: Opens) -> None:
    async with house("slow_stream") as h:
        first, text = 0.0, ""
        stream = await h.client.chat.completions.create(model="policy", messages=LONG, stream=True)
        async for chunk in stream:
            first = first or time.monotonic()
            text += chunk.choices[0].delta.content or ""  # each chunk has a choice: nobody asked for usage
        assert time.monotonic() - first > 0.5, "made over 0.6 s: the first was there long before the last"
        call = h.service.read(h.session.refs[0])
        assert call.response is not None
        assert call.response["choices"][0]["message"] == {"role": "assistant", "content": text}
        assert call.response["choices"][0]["finish_reason"] == "stop"
        assert call.usage.total_tokens == 15, "usage is asked for upstream, whatever the client asked"
        assert call.request["stream"] is True


async def test_a_client_that_asks_for_usage_gets_it(house: Opens) -> None:
    async with house("ok") as h:
        stream = await h.client.chat.completions.create(
            model="policy", messages=LONG, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 15


async def test_tool_calls_are_assembled(house: Opens) -> None:
    async with house("tools") as h:
        stream = await h.client.chat.completions.create(
            model="policy",
            messages=LONG,  # type: ignore[arg-type]
            tools=[TOOL],  # type: ignore[list-item]
            stream=True,
            n=2,
        )
        assert len([chunk async for chunk in stream]) > 4
        response = h.service.read(h.session.refs[0]).response
        assert response is not None and len(response["choices"]) == 2
        for choice in response["choices"]:
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["tool_calls"] == [
                {"id": "call_1", "type": "function", "function": {"name": "run_sql", "arguments": '{"x": 1}'}}
            ]


async def test_a_logged_answer_is_streamed_again_without_asking(house: Opens) -> None:
    async with house("ok") as h:
        whole = await h.client.chat.completions.create(model="policy", messages=LONG)
        h.gateway.bind(h.url.split("/")[-2], h.service.session(stage="s", owner="another"))
        async with h.client.chat.completions.stream(model="policy", messages=LONG) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert h.endpoint.calls == 1


async def test_a_failure_before_the_first_chunk_is_a_status_and_is_retried(house: Opens) -> None:
    async with house("503", "ok") as h:
        stream = await h.client.chat.completions.create(model="policy", messages=LONG, stream=True)
        assert [chunk async for chunk in stream] and h.endpoint.calls == 2
    async with house("503", retries=0) as h:
        with pytest.raises(openai.InternalServerError):
            await h.client.chat.completions.create(model="policy", messages=LONG, stream=True, temperature=0.1)


@pytest.mark.parametrize("mode", ["cut", "error_chunk"])
async def test_a_failure_in_the_middle_raises_in_the_client(house: Opens, mode: str) -> None:
    async with house(mode) as h:
        stream = await h.client.chat.completions.create(model="policy", messages=LONG, stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]
        assert h.session.infra_error is not None
        assert h.service.read(h.session.refs[0]).response is None


async def test_a_client_that_hangs_up_midway_ends_the_call_upstream(house: Opens) -> None:
    async with house("slow_stream", "ok", concurrency=1) as h:
        stream = await h.client.chat.completions.create(model="policy", messages=LONG, stream=True)
        async for _ in stream:
            break
        await stream.close()
        answer = await asyncio.wait_for(h.client.chat.completions.create(model="policy", messages=LONG), 5)
        assert answer.choices[0].message.content
        call = h.service.read(h.session.refs[0])
        assert call.error == "client disconnected" and call.response is None
        for _ in range(50):
            if h.endpoint.disconnected:
                break
            await asyncio.sleep(0.02)
        assert h.endpoint.disconnected == 1, "the endpoint saw the connection close"
        assert h.endpoint.calls == 2


async def test_sixteen_streams_at_once_stay_apart(house: Opens) -> None:
    async with house("slow_stream") as h:

        async def one(number: int) -> str:
            messages = [{"role": "user", "content": f"number {number}"}]
            stream = await h.client.chat.completions.create(model="policy", messages=messages, stream=True)  # type: ignore[arg-type,call-overload]
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        texts = await asyncio.gather(*(one(number) for number in range(16)))
        assert [text.strip() for text in texts] == [f"echo: number {number}" for number in range(16)]
