"""An agent with one tool, in the plain OpenAI SDK: the model calls the calculator until it can answer.

It knows nothing of lightningrun; any OpenAI-compatible endpoint that knows tools will do.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from httpx import create_ssl_context
from openai import DefaultHttpxClient, OpenAI

from tasks.calculator.arithmetic import CalculatorError, calculate

MAX_TURNS = 8
TOOL = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate numbers, + - * / and brackets.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}

_CERTIFICATES = create_ssl_context()  # read once: 20 ms
_kept = threading.local()


def answer(question: str, prompts: dict[str, str], llm: dict[str, Any]) -> dict[str, Any]:
    """Answer one problem.

    Args:
        question: in words or as an expression.
        prompts: ``system`` is the system prompt.
        llm: ``base_url``, ``api_key`` and ``model`` of the endpoint.

    Returns:
        ``answer`` (the model's last words; empty if it was still calling after 8 turns) and ``calls`` of the tool.
    """
    client = _client(llm["base_url"], llm["api_key"])
    messages: list[Any] = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]
    calls = 0
    for _ in range(MAX_TURNS):
        response = client.chat.completions.create(model=llm["model"], messages=messages, tools=[TOOL])
        message = response.choices[0].message
        if not message.tool_calls:
            return {"answer": (message.content or "").strip(), "calls": calls}
        messages.append(message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True))
        for call in message.tool_calls:
            calls += 1
            result = use(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return {"answer": "", "calls": calls}


def use(name: str, arguments: str) -> str:
    """What a tool call gives: a number, or ``error: ...`` for the model to read. Never raises."""
    if name != "calculator":
        return f"error: there is no tool {name!r}, only 'calculator'"
    try:
        expression = json.loads(arguments)["expression"]
        return calculate(expression)
    except CalculatorError as error:
        return f"error: {error}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return 'error: arguments must be JSON like {"expression": "2 * 3"}'


def gold(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a careful solver, from the question on: one tool call for each step, then the number."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": task["question"]}]
    for number, step in enumerate(task["steps"], 1):
        call = tool_call(f"call_{number}", step)
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": calculate(step)})
    return [*messages, {"role": "assistant", "content": task["answer"]}]


def tool_call(call_id: str, expression: str) -> dict[str, Any]:
    """A call of the calculator, as a chat message holds it."""
    function = {"name": "calculator", "arguments": json.dumps({"expression": expression})}
    return {"id": call_id, "type": "function", "function": function}


def _client(base_url: str, api_key: str) -> OpenAI:
    """A thread's own, kept with its connections: to make both anew costs 30 ms of processor.

    One that hundreds of threads share looks through all its connections for every question.
    """
    if not hasattr(_kept, "client"):
        connections = DefaultHttpxClient(verify=_CERTIFICATES)
        _kept.client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0, http_client=connections)
    client: OpenAI = _kept.client
    client.base_url, client.api_key = base_url, api_key
    return client
