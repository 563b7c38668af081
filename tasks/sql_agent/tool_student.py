"""The simulated student of ``simulation`` where an agent offers it tools: it tries its query before it answers.

THIS IS A SIMULATION, as that is; what it knows of SQL and reads in its instructions is decided there. Here is only how
a model behaves that has tools: it calls the one that runs SQL, writes another query while that reports an error (two
more at most), and then replies with the query, by the agent's tool for final answers if it has one. A request without
such a tool is answered at once. A pure function of the request.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from tasks.sql_agent.simulation import student as answer_at_once
from tasks.sql_agent.tools import extract_sql

MAX_RETRIES = 2

_FAILED = re.compile(r"\b(?:error|exception|traceback|failed)\b", re.IGNORECASE)
_LABELLED = re.compile(
    r"^\W*(?:\w+ ){0,2}(?:question|task|request)\W*:\W*(?P<asked>\S.*)", re.IGNORECASE | re.MULTILINE
)


def student(request: dict[str, Any], **args: Any) -> dict[str, Any]:
    """Answer a chat-completions request: a call of a tool, or the query. ``args`` are accepted and unused."""
    messages = request.get("messages", [])
    tools = list(_offered(request))
    runner = next((tool for tool in tools if re.search("sql|query", tool["name"], re.IGNORECASE)), None)
    tried = list(_tried(messages, runner["name"])) if runner else []
    failed = [(sql, result) for sql, result in tried if _FAILED.search(result[:300])]
    if tried and (len(failed) > MAX_RETRIES or tried[-1] not in failed):
        return _closing(tried[-1][0], tools, request)
    reply = str(answer_at_once({**request, "messages": list(_conversation(messages, tools, failed))}))
    sql = extract_sql(reply)
    if not sql:
        return _message({"content": reply})
    return _calling(runner, sql, request) if runner else _closing(sql, tools, request, reply)


def question_of(text: str) -> str:
    """The question in what the user says: frameworks put words of their own around it."""
    labelled = _LABELLED.search(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return labelled["asked"].strip() if labelled else lines[-1] if lines else text


def _offered(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if request.get("tool_choice") != "none":
        for tool in request.get("tools") or ():
            if "function" in tool:
                yield tool["function"]


def _tried(messages: list[dict[str, Any]], name: str) -> Iterator[tuple[str, str]]:
    """(query, what the tool said) of each call so far."""
    results = {m.get("tool_call_id"): _text(m) for m in messages if m.get("role") == "tool"}
    for message in messages:
        for call in message.get("tool_calls") or ():
            if call["function"]["name"] == name and call["id"] in results:
                arguments = json.loads(call["function"]["arguments"] or "{}")
                yield str(next(iter(arguments.values()), "")), results[call["id"]]
    for message, result in pairwise(messages):  # or it is told of its calls in words: smolagents
        if message.get("role") == "assistant" and (said := _text(message).lstrip()).startswith("Calling tools:"):
            for call in ast.literal_eval(said[said.index("[") :]):
                if call["function"]["name"] == name:
                    yield str(next(iter(call["function"]["arguments"].values()), "")), _text(result)


def _conversation(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]], failed: list[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The same without tools: instructions, question, and each query that failed with what is wrong with it."""
    asked = ""
    for message in messages:
        if message.get("role") in ("system", "developer"):
            yield {"role": "system", "content": _text(message)}
        elif message.get("role") == "user" and not asked:
            asked = _text(message)
    if tools:
        yield {"role": "tool", "content": "\n".join(str(tool.get("description") or "") for tool in tools)}
    yield {"role": "user", "content": question_of(asked)}
    for sql, error in failed:
        yield {"role": "assistant", "content": sql}
        yield {"role": "user", "content": f"That query failed: {error}. Write a corrected query."}


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def _calling(tool: Mapping[str, Any], text: str, request: Mapping[str, Any]) -> dict[str, Any]:
    parameters = (tool.get("parameters") or {}).get("properties") or {"query": {}}
    arguments = json.dumps({next(iter(parameters)): text})
    digest = hashlib.sha256(json.dumps([request.get("messages"), arguments]).encode("utf-8", "replace")).hexdigest()
    function = {"name": tool["name"], "arguments": arguments}
    call = {"id": f"call_{digest[:24]}", "type": "function", "function": function}
    return _message({"content": None, "tool_calls": [call]}, "tool_calls")


def _closing(
    sql: str, tools: list[dict[str, Any]], request: Mapping[str, Any], reply: str | None = None
) -> dict[str, Any]:
    """The last word: the query, by a tool for final answers where the agent has one."""
    final = next((tool for tool in tools if tool["name"].startswith("final")), None)
    return _calling(final, sql, request) if final else _message({"content": reply or f"```sql\n{sql}\n```"})


def _message(message: dict[str, Any], finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return {"choices": [choice]}
