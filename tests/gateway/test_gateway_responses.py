"""What an agent with OpenAI's Responses API, or the OpenAI Agents SDK, sees, whatever model answers it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai
import pydantic
import pytest

from lightningrun.models.ledger import Limits
from tests.gateway.conftest import House, Opens
from tests.gateway.test_gateway_messages import answering

TOOL: Any = {"type": "function", "name": "run_sql", "parameters": {"type": "object", "properties": {}}, "strict": False}
LONG = " ".join(f"w{n}" for n in range(30))


async def test_a_response_is_answered_and_captured_as_the_chat_it_became(house: Opens) -> None:
    async with house("ok") as h:
        answer = await h.client.responses.create(
            model="policy",
            instructions="Be brief.",
            input="hi",
            temperature=0.5,
            max_output_tokens=64,
            metadata={"a": "b"},
            reasoning={"effort": "low"},
        )
        assert answer.output_text == "echo: hi" and answer.status == "completed" and answer.error is None
        assert answer.instructions == "Be brief." and answer.metadata == {"a": "b"} and answer.model == "real-model"
        assert answer.usage is not None and (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 5)
        call = h.service.read(h.session.refs[0])
        assert (call.protocol, call.path) == ("responses", "/v1/responses")
        assert call.request == {
            "model": "real-model",
            "temperature": 0.5,
            "max_tokens": 64,
            "reasoning_effort": "low",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        }


async def test_tools_their_outputs_images_and_reasoning_become_what_chat_has_for_them(house: Opens) -> None:
    image: Any = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "look"}, image]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I call."}]},
        {"type": "function_call", "call_id": "a", "name": "run_sql", "arguments": '{"x": 1}', "id": "fc_1"},
        {"type": "function_call", "call_id": "b", "name": "run_sql", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "one"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "developer", "content": "go on"},
    ]
    async with house("tools") as h:
        answer = await h.client.responses.create(
            model="policy",
            input=items,
            tools=[TOOL],
            tool_choice={"type": "function", "name": "run_sql"},
            parallel_tool_calls=False,
            include=["reasoning.encrypted_content"],
        )
        called = answer.output[0]
        assert called.type == "function_call" and (called.name, called.arguments, called.call_id) == (
            "run_sql",
            '{"x": 1}',
            "call_1",
        )
        sent = h.endpoint.requests[0]
        assert sent["tool_choice"] == {"type": "function", "function": {"name": "run_sql"}}
        assert sent["parallel_tool_calls"] is False and "logprobs" not in sent
        function = {key: TOOL[key] for key in ("name", "parameters", "strict")}
        assert sent["tools"] == [{"type": "function", "function": function}]
        calls = [
            {"id": "a", "type": "function", "function": {"name": "run_sql", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "run_sql", "arguments": "{}"}},
        ]
        picture = {"type": "image_url", "image_url": {"url": image["image_url"], "detail": "low"}}
        assert sent["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
            {"role": "assistant", "content": "I call.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "tool", "tool_call_id": "b", "content": "two"},
            {"role": "developer", "content": "go on"},
        ]


async def test_structured_output_is_parsed_by_the_sdk(house: Opens) -> None:
    class Point(pydantic.BaseModel):
        x: int

    async with house("ok", reply='{"x": 4}') as h:
        parsed = await h.client.responses.parse(model="policy", input="a point", text_format=Point)
        assert parsed.output_parsed == Point(x=4)
        form = h.endpoint.requests[0]["response_format"]
        assert form["type"] == "json_schema" and form["json_schema"]["strict"] is True
        assert form["json_schema"]["name"] == "Point" and "x" in form["json_schema"]["schema"]["properties"]
        await h.client.responses.create(model="policy", input="json!", text={"format": {"type": "json_object"}})
        assert h.endpoint.requests[1]["response_format"] == {"type": "json_object"}


async def test_a_streamed_response_tells_every_event_in_order(house: Opens) -> None:
    async with house("slow_stream") as h:
        stream = await h.client.responses.create(model="policy", input=LONG, stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        deltas = kinds.count("response.output_text.delta")
        assert deltas > 20
        assert kinds == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * deltas,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        done: Any = events[-1]
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert done.response.output_text == text and text.strip() == f"echo: {LONG}"
        assert done.response.usage.total_tokens == 15 and done.response.id == events[0].response.id  # type: ignore[union-attr]


async def test_streamed_reasoning_refusal_text_and_tools_are_items_of_their_own(house: Opens) -> None:
    def call(name: str) -> dict[str, Any]:
        return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": f'{{"q": "{name}"}}'}}

    message = {"reasoning_content": "hm", "content": "I call two.", "tool_calls": [call("one"), call("two")]}
    async with house("ok", reply=answering(message, "tool_calls")) as h:
        async with h.client.responses.stream(model="policy", input="hi", tools=[TOOL]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        whole = await h.client.responses.create(model="judge", input="hi", tools=[TOOL])
        for answer in (final, whole):
            assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
            assert answer.output[0].content[0].text == "hm"  # type: ignore[union-attr,index]
            assert answer.output_text.strip() == "I call two."
            assert [item.arguments for item in answer.output[2:]] == ['{"q": "one"}', '{"q": "two"}']  # type: ignore[union-attr]
        assert (
            kinds.count("response.output_item.done") == 4 and kinds.count("response.function_call_arguments.done") == 2
        )
        assert kinds.count("response.reasoning_text.done") == 1 and kinds[-1] == "response.completed"

    async with house("ok", reply=answering({"content": None, "refusal": "No."})) as h:
        async with h.client.responses.stream(model="policy", input="hi") as stream:
            assert "response.refusal.delta" in [event.type async for event in stream]
            refused: Any = (await stream.get_final_response()).output[0]
        assert refused.content[0].type == "refusal" and refused.content[0].refusal == "No."


async def test_an_answer_that_was_cut_is_incomplete(house: Opens) -> None:
    async with house("ok", reply=answering({"content": "so far"}, "length")) as h:
        whole = await h.client.responses.create(model="policy", input="hi")
        stream = await h.client.responses.create(model="judge", input="hi", stream=True)
        last: Any = [event async for event in stream][-1]
        assert last.type == "response.incomplete"
        for answer in (whole, last.response):
            assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"


async def test_log_probabilities_are_asked_for_and_handed_on(house: Opens) -> None:
    token = {"token": "yes", "logprob": -0.5, "bytes": [121], "top_logprobs": []}
    said = answering({"content": "yes"}, logprobs={"content": [token], "refusal": None})
    async with house("ok", reply=said) as h:
        answer: Any = await h.client.responses.create(
            model="policy", input="hi", include=["message.output_text.logprobs"], top_logprobs=2
        )
        assert answer.output[0].content[0].logprobs[0].logprob == -0.5
        assert h.endpoint.requests[0]["logprobs"] is True and h.endpoint.requests[0]["top_logprobs"] == 2


async def test_a_conversation_goes_on_from_a_stored_response_within_its_rollout(house: Opens) -> None:
    async with house("tools", "ok") as h:
        first = await h.client.responses.create(model="policy", instructions="One.", input="hi", tools=[TOOL])
        output: Any = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
        second = await h.client.responses.create(
            model="policy", instructions="Two.", input=[output], previous_response_id=first.id, tools=[TOOL]
        )
        sent = h.endpoint.requests[1]["messages"]
        assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
        assert sent[0]["content"] == "Two.", "instructions are of one request"
        third = await h.client.responses.create(
            model="policy", input="and?", previous_response_id=second.id, store=False, stream=True
        )
        last: Any = [event async for event in third][-1]
        assert [message["role"] for message in h.endpoint.requests[2]["messages"]][-3:] == ["tool", "assistant", "user"]
        with pytest.raises(openai.BadRequestError, match="stored"):
            await h.client.responses.create(model="policy", input="x", previous_response_id=last.response.id)
        item: Any = {"type": "item_reference", "id": first.output[0].id}
        await h.client.responses.create(model="policy", input=[item, output])
        assert h.endpoint.requests[3]["messages"][0]["tool_calls"][0]["id"] == "call_1"
        h.gateway.bind(h.url.split("/")[-2], h.service.session(stage="s", owner="another"))
        with pytest.raises(openai.BadRequestError, match="of this rollout"):
            await h.client.responses.create(model="policy", input="x", previous_response_id=second.id)


async def test_a_repeated_conversation_is_answered_from_the_log(house: Opens) -> None:
    """What a resumed rollout does: the same questions, in a session that knows nothing yet."""
    async with house("ok") as h:

        async def talk() -> list[str]:
            first = await h.client.responses.create(model="policy", input="hi")
            second = await h.client.responses.create(model="policy", input="more", previous_response_id=first.id)
            return [first.id, second.id]

        before = await talk()
        h.gateway.bind(h.url.split("/")[-2], h.service.session(stage="s", owner="o"))
        assert await talk() == before and h.endpoint.calls == 2


async def test_errors_are_openais_and_end_a_stream(house: Opens) -> None:
    async with house("503", "400", "cut", retries=0, limits=Limits(max_llm_calls=9)) as h:
        with pytest.raises(openai.InternalServerError):
            await h.client.responses.create(model="policy", input="a")
        with pytest.raises(openai.BadRequestError, match="scripted 400"):
            await h.client.responses.create(model="policy", input="b")
        stream = await h.client.responses.create(model="policy", input=LONG, stream=True)
        seen = []
        with pytest.raises(openai.APIError, match="stream ended"):
            async for event in stream:
                seen.append(event.type)
        assert seen[0] == "response.created" and "response.completed" not in seen
        assert h.endpoint.calls == 3


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call"}]}, "name"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"input": "x", "tools": 7}, "int"),
        ({"input": "x", "text": "json"}, "str"),
        ({"input": "x", "previous_response_id": "resp_0"}, "previous_response_id"),
        ({"input": "x", "previous_response_id": ["resp_0"]}, "list"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_what_is_wrong(
    house: Opens, body: dict[str, Any], names: str
) -> None:
    async with house("ok") as h, aiohttp.ClientSession() as http:
        async with http.post(h.url + "/responses", json=body, headers=h.headers) as answer:
            detail = (await answer.json())["error"]
        assert answer.status == 400 and names in detail["message"] and detail["code"], detail
        assert h.service.read(h.session.refs[0]).protocol == "responses" and h.endpoint.calls == 0


def _agent(h: House) -> Any:
    import agents

    agents.set_tracing_disabled(True)

    @agents.function_tool
    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    model = agents.OpenAIResponsesModel(model="policy", openai_client=h.client)
    return agents.Agent(name="adder", instructions="Add with the tool.", model=model, tools=[add])


def _adds(request: dict[str, Any]) -> dict[str, Any]:
    """A model that calls the tool ``add``, and says what the tool said."""
    results = [message["content"] for message in request["messages"] if message["role"] == "tool"]
    if results:
        return {"message": {"role": "assistant", "content": f"It is {results[-1]}."}, "finish_reason": "stop"}
    function = {"name": "add", "arguments": json.dumps({"a": 40, "b": 2})}
    calls = [{"id": "call_add", "type": "function", "function": function}]
    return {"message": {"role": "assistant", "content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}


async def test_an_agent_of_the_agents_sdk_uses_its_tool(house: Opens) -> None:
    import agents

    async with house("ok", reply=_adds) as h:
        result = await agents.Runner.run(_agent(h), "What is 40 + 2?")
        assert result.final_output == "It is 42."
        assert [h.service.read(ref).protocol for ref in h.session.refs] == ["responses"] * 2
        roles = [message["role"] for message in h.endpoint.requests[1]["messages"]]
        assert roles == ["system", "user", "assistant", "tool"]

        h.gateway.bind(h.url.split("/")[-2], h.service.session(stage="s", owner="streamed"))
        streamed = agents.Runner.run_streamed(_agent(h), "What is 40 + 2?, then")
        kinds = [event.type async for event in streamed.stream_events()]
        assert streamed.final_output.strip() == "It is 42." and "raw_response_event" in kinds
