"""OpenAI's Responses API (what the OpenAI Agents SDK speaks by default), by chat completions.

Exact for text, images, function tools and their outputs, structured output, refusals and streaming. Responses are
kept for ``previous_response_id`` as long as the rollout lasts. Tools, conversations and prompts that live on OpenAI's
servers are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Iterator

from lightningrun.gateway.exchange import PASSED, Ask, AskStream, Exchange, event, picked
from lightningrun.gateway.problems import Problem, wrong
from lightningrun.gateway.response_items import content_of, item_of, messages_of
from lightningrun.gateway.said import Part, Said
from lightningrun.models.provider import Body, dumps
from lightningrun.types import Json

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED: Body = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}
"""Fields of the request that a response repeats, and what they are without one."""
_ELSEWHERE = ("conversation", "prompt", "background")
"""Fields whose meaning is on OpenAI's servers."""
_DELTAS = {
    "text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning": ("response.reasoning_text", "text"),
    "tool": ("response.function_call_arguments", "arguments"),
}
"""Kind of part -> the events that tell of it, and the field of the last of them that has it whole."""


class Responses(Exchange):
    """``POST /v1/responses``."""

    protocol = "responses"

    def parse(self, body: Body) -> Body:
        for name in _ELSEWHERE:
            if body.get(name):
                raise wrong(name, "cannot be used here: it lives on OpenAI's servers", "unsupported")
        self._history = [*self._previous(body), *messages_of(body.get("input") or [], self._items)]
        first = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
        chat: Body = {**picked(body, PASSED), "messages": first + self._history}
        if not chat["messages"]:
            raise wrong("input", "must not be empty", "invalid_input")
        if body.get("max_output_tokens") is not None:
            chat["max_tokens"] = body["max_output_tokens"]
        if body.get("tools"):
            chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body["tools"])]
        if body.get("tool_choice") is not None:
            chat["tool_choice"] = _tool_choice(body["tool_choice"])
        text, reasoning = body.get("text") or {}, body.get("reasoning") or {}
        if (form := text.get("format") or {}).get("type") == "json_schema":
            schema = picked(form, ("name", "description", "schema", "strict"))
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form.get("type") == "json_object":
            chat["response_format"] = {"type": "json_object"}
        chat.update(picked(text, ("verbosity",)))
        if reasoning.get("effort"):
            chat["reasoning_effort"] = reasoning["effort"]
        if body.get("top_logprobs") or "message.output_text.logprobs" in (body.get("include") or ()):
            chat.update({"logprobs": True, **picked(body, ("top_logprobs",))})
        return chat

    @property
    def _items(self) -> dict[str, Body]:
        """Items of this rollout's responses, by id."""
        items: dict[str, Body] = self.memory.setdefault("items", {})
        return items

    def _previous(self, body: Body) -> list[Body]:
        """The conversation up to the response that this one follows, without its instructions."""
        previous = body.get("previous_response_id")
        if not previous:
            return []
        known: dict[str, list[Body]] = self.memory.setdefault("responses", {})
        if previous not in known:
            raise Problem(
                400,
                f"previous_response_id names no response of this rollout that was stored: {previous!r}",
                "previous_response_not_found",
                param="previous_response_id",
            )
        return known[previous]

    async def answer(self, ask: Ask) -> Body:
        answer = _Answer(self, Said.of(await ask(self.chat)))
        for part in answer.said.parts:
            answer.begin(part)
        return answer.finished()

    async def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        answer = self._answer = _Answer(self, Said())
        async with contextlib.aclosing(ask(self.chat)) as chunks:
            async for chunk in chunks:
                if news := b"".join(answer.told(chunk)):
                    yield news
        yield b"".join(answer.end())

    def failed(self, problem: Problem) -> bytes:
        return self._answer.event("error", **problem.error, error=problem.error)  # the SDK looks for ``error``

    def remember(self, response: Body) -> None:
        """Keep a response for requests that follow it."""
        items = response["output"]
        self._items.update((item["id"], item) for item in items)
        known: dict[str, list[Body]] = self.memory.setdefault("responses", {})
        known[response["id"]] = [*self._history, *messages_of(items, {}, "output")]


class _Answer:
    """The response to one request while it is made."""

    def __init__(self, request: Responses, said: Said) -> None:
        self.said = said
        self._request = request
        self._told = 0
        self._items: list[tuple[Part, str]] = []
        self._created = int(time.time())
        self._id = ""

    def told(self, chunk: Body) -> Iterator[bytes]:
        """The events that a chunk gives rise to."""
        first = not self.said.head
        news = list(self.said.add(chunk))
        if first:
            yield self.event("response.created", response=self._response("in_progress", []))
            yield self.event("response.in_progress", response=self._response("in_progress", []))
        for part, text, logprobs in news:
            if not self._items or part is not self._items[-1][0]:
                yield from self._closed()
                yield from self._opened(part)
            if text:
                more = {"logprobs": logprobs} if part.kind == "text" else {}
                yield self._of_part(_DELTAS[part.kind][0] + ".delta", delta=text, **more)

    def end(self) -> Iterator[bytes]:
        """The events of the end."""
        yield from self._closed()
        response = self.finished()
        yield self.event(f"response.{response['status']}", response=response)

    def begin(self, part: Part) -> None:
        """A new item of the output."""
        self._items.append((part, f"{self.id}_{len(self._items)}"))

    def finished(self) -> Body:
        """The whole response, remembered unless the client does not want it stored."""
        cut = self.said.reason in _INCOMPLETE
        output = [item_of(part, item_id) for part, item_id in self._items]
        response = self._response("incomplete" if cut else "completed", output)
        if self._request.body.get("store") is not False:
            self._request.remember(response)
        return response

    @property
    def id(self) -> str:
        """The same for the same answer to the same question, so that a resumed rollout sees what it saw."""
        if not self._id:
            asked = dumps([self._request.chat, self.said.head.get("id")])
            self._id = hashlib.blake2b(asked, digest_size=16).hexdigest()
        return self._id

    def event(self, name: str, /, **data: Json) -> bytes:
        self._told += 1
        return event({**data, "type": name, "sequence_number": self._told - 1}, name)

    def _of_part(self, name: str, /, **data: Json) -> bytes:
        """An event about the newest item."""
        part, item_id = self._items[-1]
        place = {"item_id": item_of(part, item_id)["id"], "output_index": len(self._items) - 1}
        return self.event(name, **place, **({} if part.kind == "tool" else {"content_index": 0}), **data)

    def _opened(self, part: Part) -> Iterator[bytes]:
        self.begin(part)
        item = item_of(part, self._items[-1][1], "in_progress")
        yield self.event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        if part.kind != "tool":
            yield self._of_part("response.content_part.added", part=content_of(part, empty=True))

    def _closed(self) -> Iterator[bytes]:
        if not self._items:
            return
        part, item_id = self._items[-1]
        name, whole = _DELTAS[part.kind]
        more: Body = {"logprobs": part.logprobs} if part.kind == "text" else {}
        more.update({"name": part.name} if part.kind == "tool" else {})
        yield self._of_part(f"{name}.done", **{whole: part.text}, **more)
        if part.kind != "tool":
            yield self._of_part("response.content_part.done", part=content_of(part))
        item = item_of(part, item_id)
        yield self.event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _response(self, status: str, output: list[Body]) -> Body:
        body, head = self._request.body, self.said.head
        reason = _INCOMPLETE.get(self.said.reason)
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            "model": head.get("model") or body.get("model") or "",
            "output": output,
            "usage": None if status == "in_progress" else _usage(self.said.usage),
            **{name: body[name] if body.get(name) is not None else usual for name, usual in _ECHOED.items()},
        }


def _tool(tool: Body, where: str) -> Body:
    if tool.get("type") != "function":
        raise wrong(where, f"is the tool {tool.get('type')!r}, which only OpenAI's servers have: use functions")
    return {"type": "function", "function": picked(tool, ("name", "description", "parameters", "strict"))}


def _tool_choice(choice: Json) -> Json:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice.get("type") == "allowed_tools":
        tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in choice["tools"]]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}
    raise wrong("tool_choice", f"names a tool of type {choice.get('type')!r}, which only OpenAI's servers have")


def _usage(usage: Body) -> Body:
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + completion,
    }
