"""What an agent with Anthropic's own SDK sees, whatever model answers it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import pytest

from lightningrun.models.ledger import Limits
from tests.gateway.conftest import House, Opens

HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": "run_sql", "description": "Runs it.", "input_schema": {"type": "object", "properties": {}}}
LONG: list[Any] = [{"role": "user", "content": " ".join(f"w{n}" for n in range(30))}]


@contextlib.asynccontextmanager
async def claude(h: House, *, versioned: bool = False) -> AsyncIterator[anthropic.AsyncAnthropic]:
    url = h.url if versioned else h.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=url, api_key=h.gateway.token, timeout=20) as client:
        yield client


def answering(message: dict[str, Any], reason: str = "stop", **more: Any) -> Any:
    """A scripted reply with this message: the endpoint takes dicts as whole choices."""
    return lambda request: {"message": {"role": "assistant", **message}, "finish_reason": reason, **more}


async def test_a_message_is_answered_and_captured_as_the_chat_it_became(house: Opens) -> None:
    async with house("ok") as h, claude(h) as client:
        answer = await client.messages.create(
            model="policy",
            max_tokens=64,
            system="Be brief.",
            messages=HI,
            extra_body={"temperature": 0.5},
            stop_sequences=["END"],
            extra_headers={"X-Agent-Name": "writer"},
        )
        assert answer.content[0].type == "text" and answer.content[0].text == "echo: hi"
        assert (answer.role, answer.stop_reason, answer.model) == ("assistant", "end_turn", "real-model")
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 5)
        call = h.service.read(h.session.refs[0])
        assert (call.protocol, call.path, call.agent) == ("messages", "/v1/messages", "writer")
        assert call.request == {
            "model": "real-model",
            "temperature": 0.5,
            "max_tokens": 64,
            "stop": ["END"],
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        }


async def test_a_bearer_token_and_a_base_url_with_v1_work_too(house: Opens) -> None:
    async with house("ok") as h, claude(h, versioned=True) as client:
        assert (await client.messages.create(model="policy", max_tokens=9, messages=HI)).stop_reason == "end_turn"
        bearer = anthropic.AsyncAnthropic(base_url=h.url, auth_token=h.gateway.token, api_key=None)
        assert (await bearer.messages.create(model="policy", max_tokens=9, messages=HI)).stop_reason == "end_turn"
        assert [h.service.read(ref).path for ref in h.session.refs] == ["/v1/messages"] * 2


async def test_tools_their_results_and_images_become_what_chat_has_for_them(house: Opens) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    async with house("tools") as h, claude(h) as client:
        answer = await client.messages.create(
            model="policy",
            max_tokens=64,
            system=[{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
            tools=[TOOL],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "look"}, image]},  # type: ignore[list-item]
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "text", "text": "I call."},
                        {"type": "tool_use", "id": "a", "name": "run_sql", "input": {"x": 1}},
                        {"type": "tool_use", "id": "b", "name": "run_sql", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": "one"},
                        {"type": "tool_result", "tool_use_id": "b", "content": [image], "is_error": True},  # type: ignore[typeddict-item]
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
        )
        used = answer.content[0]
        assert used.type == "tool_use" and (used.name, used.input, answer.stop_reason) == (
            "run_sql",
            {"x": 1},
            "tool_use",
        )
        sent = h.endpoint.requests[0]
        function = {"name": "run_sql", "description": "Runs it.", "parameters": TOOL["input_schema"]}
        assert sent["tools"] == [{"type": "function", "function": function}]
        assert sent["tool_choice"] == "required" and sent["parallel_tool_calls"] is False
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        call = {"type": "function", "function": {"name": "run_sql", "arguments": '{"x": 1}'}}
        assert sent["messages"] == [
            {"role": "system", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
            {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
            {
                "role": "assistant",
                "content": "I call.",
                "tool_calls": [
                    {"id": "a", **call},
                    {"id": "b", **call, "function": {"name": "run_sql", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "tool", "tool_call_id": "b", "content": [picture]},
            {"role": "user", "content": "go on"},
        ]


async def test_a_streamed_message_is_put_together_by_the_sdk(house: Opens) -> None:
    async with house("slow_stream") as h, claude(h) as client:
        async with client.messages.stream(model="policy", max_tokens=64, messages=LONG) as stream:
            texts = [text async for text in stream.text_stream]
            message = await stream.get_final_message()
        assert len(texts) > 20 and "".join(texts).strip() == "echo: " + LONG[0]["content"]
        assert message.content[0].text == "".join(texts)  # type: ignore[union-attr]
        assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 10, 5)
        call = h.service.read(h.session.refs[0])
        assert call.response is not None and call.usage.total_tokens == 15


async def test_streamed_tools_thinking_and_text_come_as_blocks_one_after_another(house: Opens) -> None:
    def calls(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": name, "arguments": '{"q": "' + name + '"}'}}

    message = {"reasoning_content": "hm", "content": "I call two.", "tool_calls": [calls("one"), calls("two")]}
    async with house("ok", reply=answering(message, "tool_calls")) as h, claude(h) as client:
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        async with client.messages.stream(
            model="policy", max_tokens=2048, messages=HI, tools=[TOOL], thinking=thinking
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        blocks = [block.model_dump() for block in final.content]
        assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "tool_use"]
        assert blocks[0]["thinking"] == "hm" and blocks[1]["text"].strip() == "I call two."
        assert [(block["id"], block["input"]) for block in blocks[2:]] == [("one", {"q": "one"}), ("two", {"q": "two"})]
        assert final.stop_reason == "tool_use"
        edges = [kind for kind in kinds if kind.startswith("content_block_st")]
        assert edges == ["content_block_start", "content_block_stop"] * 4
        quiet = await client.messages.create(model="policy", max_tokens=9, messages=HI, tools=[TOOL])
        assert [block.type for block in quiet.content] == ["text", "tool_use", "tool_use"], "nobody asked for thinking"


@pytest.mark.parametrize(
    ("reason", "extra", "expected"),
    [
        ("length", {}, ("max_tokens", None)),
        ("content_filter", {}, ("refusal", None)),
        ("stop", {"stop_reason": "END"}, ("stop_sequence", "END")),
    ],
)
async def test_why_a_message_ended(house: Opens, reason: str, extra: dict[str, str], expected: tuple[str, str]) -> None:
    async with house("ok", reply=answering({"content": "so far"}, reason, **extra)) as h, claude(h) as client:
        whole = await client.messages.create(model="policy", max_tokens=9, messages=HI, stop_sequences=["END"])
        assert (whole.stop_reason, whole.stop_sequence) == expected
        async with client.messages.stream(model="judge", max_tokens=9, messages=HI, stop_sequences=["END"]) as stream:
            final = await stream.get_final_message()
        assert (final.stop_reason, final.stop_sequence) == expected


async def test_structured_output_is_asked_for_as_a_json_schema(house: Opens) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}
    async with house("ok") as h, claude(h) as client:
        config: Any = {"format": {"type": "json_schema", "schema": schema}}
        await client.messages.create(model="policy", max_tokens=9, messages=HI, extra_body={"output_config": config})
        assert h.endpoint.requests[0]["response_format"]["json_schema"]["schema"] == schema


async def test_arguments_that_are_no_json_are_wrapped(house: Opens) -> None:
    function = {"name": "run_sql", "arguments": "{oops"}
    message = {"content": None, "tool_calls": [{"type": "function", "function": function}]}
    async with house("ok", reply=answering(message, "stop")) as h, claude(h) as client:
        answer = await client.messages.create(model="policy", max_tokens=9, messages=HI, tools=[TOOL])
        used = answer.content[0]
        assert used.type == "tool_use" and used.input == {"INVALID_JSON": "{oops"} and used.id
        assert answer.stop_reason == "tool_use"


async def test_errors_have_anthropics_shape(house: Opens) -> None:
    async with house("503", "400", "ok", retries=0, limits=Limits(max_llm_calls=3)) as h, claude(h) as client:
        with pytest.raises(anthropic.InternalServerError) as down:
            await client.messages.create(model="policy", max_tokens=9, messages=HI)
        assert down.value.body["type"] == "error" and down.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        with pytest.raises(anthropic.BadRequestError, match="scripted 400"):
            await client.messages.create(model="policy", max_tokens=9, messages=HI)
        await client.messages.create(model="policy", max_tokens=9, messages=HI)
        with pytest.raises(anthropic.RateLimitError, match="budget"):
            await client.messages.create(model="judge", max_tokens=9, messages=LONG)
        assert h.endpoint.calls == 3, "nothing was tried again"
        with pytest.raises(anthropic.AuthenticationError):
            await client.with_options(api_key="wrong").messages.create(model="policy", max_tokens=9, messages=HI)


@pytest.mark.parametrize("mode", ["cut", "error_chunk"])
async def test_a_failure_in_the_middle_of_a_stream_raises_in_the_client(house: Opens, mode: str) -> None:
    async with house(mode) as h, claude(h) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(model="policy", max_tokens=64, messages=LONG) as stream:
                await stream.get_final_message()
        assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        assert h.session.infra_error is not None


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": HI, "system": 7}, "system"),
        ({"messages": HI, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"messages": HI, "tools": "all"}, "messages"),
        ({"messages": HI, "tool_choice": {"type": "perhaps"}}, "perhaps"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_what_is_wrong(
    house: Opens, body: dict[str, Any], names: str
) -> None:
    async with house("ok") as h, aiohttp.ClientSession() as http:
        headers = {"x-api-key": h.gateway.token}
        async with http.post(h.url + "/messages", json=body, headers=headers) as answer:
            said = await answer.json()
        assert answer.status == 400 and said["type"] == "error" and answer.headers["x-should-retry"] == "false"
        assert said["error"]["type"] == "invalid_request_error" and names in said["error"]["message"]
        call = h.service.read(h.session.refs[0])
        assert said["error"]["message"] in call.error and call.protocol == "messages" and h.endpoint.calls == 0


async def test_tokens_are_counted_and_models_listed(house: Opens) -> None:
    async with house("ok") as h, claude(h) as client:
        counted = [(await client.messages.count_tokens(model="policy", messages=it)).input_tokens for it in (HI, LONG)]
        assert 0 < counted[0] < counted[1] and h.endpoint.calls == 0 and h.session.refs == []
        assert [model.id async for model in client.models.list()][:2] == ["policy", "judge"]
        assert (await client.models.retrieve("judge")).id == "judge"
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("gpt-9")
