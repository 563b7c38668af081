"""Bodies that are almost requests: each is either understood or refused with a reason, whatever stands where."""

from __future__ import annotations

import copy
import json
from typing import Any

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lightningrun.gateway.problems import Problem
from lightningrun.gateway.server import PROTOCOLS, _exchange
from tests.gateway.conftest import Opens
from tests.gateway.test_gateway_messages import answering

IMAGE = {"type": "base64", "media_type": "image/png", "data": "AA"}
WHOLE: dict[str, Any] = {
    "chat/completions": {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream_options": {"a": 1}},
    "completions": {"model": "m", "prompt": ["a", "b"], "n": 2, "logprobs": 2, "best_of": 2, "echo": True, "stop": "x"},
    "embeddings": {"model": "m", "input": ["a"]},
    "messages": {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "t", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "t"},
        "thinking": {"type": "enabled"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "source": IMAGE}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "t", "input": {"a": 1}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "b"}]}],
            },
        ],
    },
    "responses": {
        "model": "m",
        "instructions": "i",
        "tools": [{"type": "function", "name": "t", "parameters": {}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "t"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs"],
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u"}],
            },
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "t", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "b"},
        ],
    },
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in ((*path, key), *places(item, (*path, key)))]


@pytest.mark.parametrize("route", WHOLE)
def test_a_body_with_anything_anywhere_is_understood_or_refused(route: str) -> None:
    assert _exchange(PROTOCOLS[route], WHOLE[route], {}).chat

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def check(data: Any) -> None:
        body = copy.deepcopy(WHOLE[route])
        *way, last = data.draw(st.sampled_from(places(body)))
        parent = body
        for key in way:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(JSON)
        else:
            del parent[last]
        try:
            assert isinstance(_exchange(PROTOCOLS[route], body, {}).chat, dict)
        except Problem as problem:
            assert problem.status == 400 and len(str(problem)) > 5

    check()


ODD: list[Any] = [
    {"content": ["a", {"text": "b"}, {"image": 1}]},
    {"content": 7},
    {"content": None, "tool_calls": [{"function": None}]},
    {"content": None, "tool_calls": None, "refusal": None},
    {"content": "x", "tool_calls": [{"id": 7, "function": {"name": 8, "arguments": {"not": "a string"}}}]},
]


@pytest.mark.parametrize("message", ODD, ids=[str(number) for number in range(len(ODD))])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_odd_answer_of_a_model_is_an_answer_or_an_error_but_never_silence(
    house: Opens, message: dict[str, Any], stream: bool
) -> None:
    async with house("ok", retries=0, reply=answering(message)) as h, aiohttp.ClientSession() as http:
        for route in ("completions", "messages", "responses"):
            body = {**WHOLE[route], "stream": stream}
            async with http.post(f"{h.url}/{route}", json=body, headers=h.headers) as answer:
                text = await answer.text()
            assert answer.status in (200, 500, 503) and text
            if answer.status != 200:
                assert json.loads(text)["error"]["message"] and "Traceback" not in text
        assert h.session.llm_calls >= 3
