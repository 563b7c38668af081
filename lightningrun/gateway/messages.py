"""Anthropic's Messages API, by chat completions.

Exact for text, images, tools and their results, stop reasons and streaming. Not carried over, for chat completions
have no place for them: cache control, citations, ``is_error`` of a tool result, earlier thinking. Tools that run on
Anthropic's servers are refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

from lightningrun.gateway.exchange import (
    PASSED,
    Ask,
    AskStream,
    Exchange,
    Memory,
    checked_messages,
    event,
    picked,
    whole,
)
from lightningrun.gateway.problems import Problem, wrong
from lightningrun.gateway.said import Part, Said
from lightningrun.models.provider import Body, dumps, tokens_of
from lightningrun.types import Json

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Messages(Exchange):
    """``POST /v1/messages``."""

    protocol = "messages"

    def __init__(self, body: Body, memory: Memory) -> None:
        super().__init__(body, memory)
        thinking = body.get("thinking")
        self._shows_thinking = isinstance(thinking, dict) and thinking.get("type") not in (None, "disabled")

    def parse(self, body: Body) -> Body:
        chat: Body = {**picked(body, PASSED), "messages": []}
        if body.get("system"):
            chat["messages"].append({"role": "system", "content": _content(body["system"], "system")})
        for index, message in enumerate(checked_messages(body)):
            chat["messages"] += _chat_messages(message, f"messages[{index}]")
        if body.get("max_tokens") is not None:
            chat["max_tokens"] = body["max_tokens"]
        if body.get("stop_sequences"):
            chat["stop"] = body["stop_sequences"]
        if body.get("tools"):
            chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body["tools"])]
        if choice := body.get("tool_choice"):
            named = {"type": "function", "function": {"name": choice.get("name")}}
            chat["tool_choice"] = named if choice.get("type") == "tool" else _TOOL_CHOICES[choice["type"]]
            if choice.get("disable_parallel_tool_use"):
                chat["parallel_tool_calls"] = False
        form = (body.get("output_config") or {}).get("format") or body.get("output_format")
        if form:
            schema = {"name": "output", "schema": form["schema"], "strict": True}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        return chat

    def count(self) -> Body:
        """The answer of ``count_tokens``: an estimate from the length, as for every model that does not count."""
        return {"input_tokens": tokens_of(dumps(self.chat).decode())}

    async def answer(self, ask: Ask) -> Body:
        said = Said.of(await ask(self.chat))
        content = [self._block(part, part.text) for part in said.parts if self._shown(part)]
        return {**self._message(said), "content": content, **self._end(said), "usage": _usage(said)}

    async def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        said, block, index = Said(), None, -1
        async with contextlib.aclosing(ask(self.chat)) as chunks:
            async for chunk in chunks:
                news: list[Body] = (
                    [] if said.head else [{"type": "message_start", "message": self._message(chunk=chunk)}]
                )
                for part, text, _ in said.add(chunk):
                    if not self._shown(part):
                        continue
                    if part is not block:
                        news += _closed(index)
                        block, index = part, index + 1
                        start = self._block(part, "")
                        news.append({"type": "content_block_start", "index": index, "content_block": start})
                    if text:
                        news.append({"type": "content_block_delta", "index": index, "delta": _delta(part, text)})
                if news:
                    yield _events(news)
        end = {"type": "message_delta", "delta": self._end(said), "usage": _usage(said)}
        yield _events([*_closed(index), end, {"type": "message_stop"}])

    def _shown(self, part: Part) -> bool:
        """Thinking that nobody asked for would surprise a client that reads the first block."""
        return part.kind != "reasoning" or self._shows_thinking

    def _message(self, said: Said | None = None, chunk: Body | None = None) -> Body:
        head = said.head if said else chunk or {}
        return {
            "id": f"msg_{head.get('id') or 'unknown'}",
            "type": "message",
            "role": "assistant",
            "model": head.get("model") or self.body.get("model") or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def _end(self, said: Said) -> Body:
        stopped = said.stop if said.stop in (self.body.get("stop_sequences") or ()) else None
        reason = "stop_sequence" if stopped else _STOP_REASONS.get(said.reason, "end_turn")
        if reason == "end_turn" and any(part.kind == "tool" for part in said.parts):
            reason = "tool_use"  # a tool that the client forced ends with "stop"
        return {"stop_reason": reason, "stop_sequence": stopped}

    def _block(self, part: Part, text: str) -> Body:
        if part.kind == "tool":
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": _arguments(text)}
        if part.kind == "reasoning":
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": text}

    @classmethod
    def error(cls, problem: Problem) -> Body:
        status = problem.status
        kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": problem.error["message"]}}

    def failed(self, problem: Problem) -> bytes:
        return event(self.error(problem), "error")


def _chat_messages(message: Body, where: str) -> list[Body]:
    """One message of Anthropic's: results of tools become messages of their own, before what the user says beside."""
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise wrong(f"{where}.role", "must be user or assistant")
    content = message.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise wrong(f"{where}.content", "must be a string or a list of blocks")
    results, calls, rest = [], [], []
    for index, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            said = _content(block.get("content") or "", f"{where}.content[{index}].content")
            results.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": said})
        elif block.get("type") == "tool_use":
            function = {"name": block["name"], "arguments": json.dumps(block.get("input") or {}, ensure_ascii=False)}
            calls.append({"id": block["id"], "type": "function", "function": function})
        elif block.get("type") not in ("thinking", "redacted_thinking"):
            rest.append(_part(block, f"{where}.content[{index}]"))
    if calls:
        return [*results, {"role": role, "content": whole(rest) if rest else None, "tool_calls": calls}]
    return [*results, {"role": role, "content": whole(rest)}] if rest or not results else results


def _content(content: Json, where: str) -> Json:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of blocks")
    return whole([_part(block, f"{where}[{index}]") for index, block in enumerate(content)])


def _part(block: Body, where: str) -> Body:
    """One block as a part of a chat message's content."""
    kind, source = block.get("type"), block.get("source") or {}
    if kind == "text":
        if not isinstance(block.get("text"), str):
            raise wrong(f"{where}.text", "must be a string")
        return {"type": "text", "text": block["text"]}
    if kind == "image" and source.get("type") in ("base64", "url"):
        return {"type": "image_url", "image_url": {"url": _url(source)}}
    if kind == "document" and source.get("type") == "text":
        return {"type": "text", "text": source["data"]}
    if kind == "document" and source.get("type") == "base64":
        return {"type": "file", "file": {"filename": block.get("title") or "document.pdf", "file_data": _url(source)}}
    raise wrong(where, f"is a block of type {kind!r} ({source.get('type') or 'no'} source), which cannot be passed on")


def _url(source: Body) -> str:
    return source["url"] if source["type"] == "url" else f"data:{source['media_type']};base64,{source['data']}"


def _tool(tool: Body, where: str) -> Body:
    if tool.get("type", "custom") not in ("custom", None) or "input_schema" not in tool:
        raise wrong(where, f"is the tool {tool.get('type')!r}, which only Anthropic's servers have")
    function = {**picked(tool, ("name", "description", "strict")), "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _arguments(text: str) -> Any:
    """A tool's input must be an object: anything else is wrapped, as Anthropic's documentation advises."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": text}


def _usage(said: Said) -> Body:
    prompt = said.usage.get("prompt_tokens") or 0
    cached = (said.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": said.usage.get("completion_tokens") or 0,
    }


def _closed(index: int) -> list[Body]:
    return [{"type": "content_block_stop", "index": index}] if index >= 0 else []


def _delta(part: Part, text: str) -> Body:
    if part.kind == "tool":
        return {"type": "input_json_delta", "partial_json": text}
    if part.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _events(news: list[Body]) -> bytes:
    return b"".join(event(data, data["type"]) for data in news)
