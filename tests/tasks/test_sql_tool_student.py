"""The simulated student with tools: it tries, corrects and answers, in whatever protocol it is asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from lightningrun.gateway.server import Gateway
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from tasks.sql_agent.reward import execution_match
from tasks.sql_agent.simulation import student as without_tools
from tasks.sql_agent.tool_student import question_of, student
from tasks.sql_agent.tools import extract_sql, query_database

ROW = {"question": "How many players are from Australia?"}
GOLD = "SELECT COUNT(*) FROM top_batsmen WHERE country_name = 'Australia'"
SYSTEM = "Write one SQLite query. When the question asks how many, use COUNT(*). Reply with the query only."
TABLE = "Run one query on CREATE TABLE top_batsmen (player_name, country_name, odi_runs, t20_runs, test_runs, debut)."
PARAMETERS = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}


def tool(name: str, parameters: dict[str, Any] = PARAMETERS) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": TABLE, "parameters": parameters}}


def request(*more: dict[str, Any], tools: tuple[str, ...] = ("run_sql",), **fields: Any) -> dict[str, Any]:
    opening = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ROW["question"]}]
    offered = {"tools": [tool(name) for name in tools]} if tools else {}
    return {"messages": [*opening, *more], "seed": 3, **offered, **fields}


def said(asked: dict[str, Any]) -> dict[str, Any]:
    (choice,) = student(asked)["choices"]
    return dict(choice["message"])


def query_of(message: dict[str, Any], name: str = "run_sql") -> str:
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == name
    return str(json.loads(call["function"]["arguments"])["query"])


def test_it_tries_its_query_and_answers_with_it() -> None:
    called = said(request())
    query = query_of(called)
    assert query == GOLD and called == said(request()), "the same request gets the same reply"
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": query_database(query)}
    closing = said(request(called, result))
    assert not closing.get("tool_calls") and extract_sql(closing["content"]) == GOLD


def test_it_corrects_what_fails_twice_and_then_gives_up() -> None:
    so_far: list[dict[str, Any]] = []
    for number in range(3):
        called = said(request(*so_far))
        query_of(called)
        so_far += [
            called,
            {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": f"error {number}"},
        ]
    ids = [message["tool_calls"][0]["id"] for message in so_far[::2]]
    assert len(set(ids)) == 3
    assert extract_sql(said(request(*so_far))["content"])


def test_a_tool_for_final_answers_is_used_and_none_is_forced() -> None:
    called = said(request(tools=("run_sql", "final_answer")))
    result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": query_database(GOLD)}
    assert query_of(said(request(called, result, tools=("run_sql", "final_answer"))), "final_answer") == GOLD
    assert "tool_calls" not in said(request(tool_choice="none"))


def test_calls_and_results_told_in_words_are_known_as_such() -> None:
    """As smolagents tells them."""
    tools = ("run_sql", "final_answer")
    called = [{"id": "1", "type": "function", "function": {"name": "run_sql", "arguments": {"query": GOLD}}}]
    so_far = {"role": "assistant", "content": [{"type": "text", "text": f"\nCalling tools:\n{called}"}]}
    seen = {"role": "user", "content": [{"type": "text", "text": f"Observation:\n{query_database(GOLD)}"}]}
    assert query_of(said(request(so_far, seen, tools=tools)), "final_answer") == GOLD
    seen = {"role": "user", "content": "Observation:\nerror: no such column: name"}
    query_of(said(request(so_far, seen, tools=tools)))


def test_without_tools_it_is_the_student_that_answers_at_once() -> None:
    asked = request(tools=())
    assert said(asked)["content"] == without_tools(asked)


@pytest.mark.parametrize(
    "text",
    [
        "How many players are from Australia?",
        "\nCurrent Task: How many players are from Australia?\n\nThis is the expected criteria: one query\n",
        "You can call tools.\nNew task:\nHow many players are from Australia?",
        "Question: How many players are from Australia?\nAnswer with SQL.",
    ],
)
def test_the_question_is_found_among_words_of_a_framework(text: str) -> None:
    assert question_of(text) == ROW["question"]


@contextlib.asynccontextmanager
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    config = ModelConfig(provider="python", name="tasks.sql_agent.tool_student:student", temperature=0.0)
    service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})
    opened = Gateway(service)
    await opened.start()
    opened.bind("x", service.session(stage="s", owner="o"))
    try:
        yield opened.url("x"), opened.token
    finally:
        await opened.stop()
        await service.aclose()


async def test_it_calls_its_tool_by_chat_responses_and_messages(tmp_path: Path) -> None:
    """The whole loop in each protocol by the vendor's own SDK: a call, its result, the answer."""
    async with (
        gateway(tmp_path) as (url, key),
        openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0) as claude,
    ):
        answers = [await by_chat(gpt), await by_responses(gpt), await by_messages(claude)]
    assert [extract_sql(answer) for answer in answers] == [GOLD] * 3
    gold = execution_match({"sql": GOLD}, answers[0].strip("`").removeprefix("sql"))
    assert gold["score"] == 1.0


async def by_chat(client: openai.AsyncOpenAI) -> str:
    messages: Any = request()["messages"]
    tools: Any = [tool("run_sql")]
    first = (await client.chat.completions.create(model="policy", messages=messages, tools=tools)).choices[0].message
    assert first.tool_calls is not None
    (call,) = first.tool_calls
    result = query_database(json.loads(call.function.arguments)["query"])  # type: ignore[union-attr]
    told = [
        *messages,
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    last = await client.chat.completions.create(model="policy", messages=told, tools=tools)
    return last.choices[0].message.content or ""


async def by_responses(client: openai.AsyncOpenAI) -> str:
    tools: Any = [{"type": "function", "name": "run_sql", "description": TABLE, "parameters": PARAMETERS}]
    first = await client.responses.create(model="policy", instructions=SYSTEM, input=ROW["question"], tools=tools)
    (call,) = first.output
    assert call.type == "function_call"
    result = query_database(json.loads(call.arguments)["query"])
    told: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": result}]
    last = await client.responses.create(
        model="policy", instructions=SYSTEM, input=told, tools=tools, previous_response_id=first.id
    )
    return last.output_text


async def by_messages(client: anthropic.AsyncAnthropic) -> str:
    asked: Any = [{"role": "user", "content": ROW["question"]}]
    tools: Any = [{"name": "run_sql", "description": TABLE, "input_schema": PARAMETERS}]
    fixed: Any = {"model": "policy", "max_tokens": 500, "system": SYSTEM, "tools": tools}
    first = await client.messages.create(messages=asked, **fixed)
    (call,) = (block for block in first.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": query_database(str(call.input["query"]))}
    told: Any = [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = await client.messages.create(messages=told, **fixed)
    return "".join(block.text for block in last.content if block.type == "text")
