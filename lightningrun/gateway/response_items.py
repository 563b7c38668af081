"""The items of OpenAI's Responses API: what a client sends of them as chat messages, what a model says as items."""

from __future__ import annotations

from collections.abc import Mapping

from lightningrun.gateway.exchange import picked, whole
from lightningrun.gateway.problems import wrong
from lightningrun.gateway.said import Part
from lightningrun.models.provider import Body
from lightningrun.types import Json

_ROLES = ("user", "assistant", "system", "developer")


def messages_of(items: Json, known: Mapping[str, Body], where: str = "input") -> list[Body]:
    """The chat messages that say what ``items`` say; ``known`` are items that may be referred to by their ids.

    What one answer of a model was, a message and the calls after it, becomes one message again. Reasoning is left out:
    chat completions take none.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise wrong(where, "must be a string or a list of items")
    messages: list[Body] = []
    for index, item in enumerate(items):
        place = f"{where}[{index}]"
        if item.get("type") == "item_reference":
            if item.get("id") not in known:
                raise wrong(f"{place}.id", f"names no item of this rollout: {item.get('id')!r}", "item_not_found")
            item = known[item["id"]]
        kind = item.get("type") or "message"
        if kind == "message":
            messages.append(_message(item, place))
        elif kind == "function_call":
            called = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
            if called is None:
                messages.append(called := {"role": "assistant", "content": None})
            function = {"name": item["name"], "arguments": item["arguments"]}
            called.setdefault("tool_calls", []).append(
                {"id": item["call_id"], "type": "function", "function": function}
            )
        elif kind == "function_call_output":
            content = _content(item["output"], f"{place}.output")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        elif kind != "reasoning":
            raise wrong(place, f"is an item of type {kind!r}, which only OpenAI's servers have")
    return messages


def _message(item: Body, where: str) -> Body:
    if item.get("role") not in _ROLES:
        raise wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    return {"role": item["role"], "content": _content(item.get("content"), f"{where}.content")}


def _content(content: Json, where: str) -> Json:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(where, "must be a string or a list of parts")
    return whole([_part(part, f"{where}[{index}]") for index, part in enumerate(content)]) if content else ""


def _part(part: Body, where: str) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part["text"]}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    if kind == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"], **picked(part, ("detail",))}}
    if kind == "input_file" and (part.get("file_data") or part.get("file_id")):
        return {"type": "file", "file": picked(part, ("file_data", "file_id", "filename"))}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise wrong(where, f"is a part of type {kind!r} that cannot be passed on")


def item_of(part: Part, item_id: str, status: str = "completed") -> Body:
    """A part of a completion as an output item; while ``in_progress`` it is empty."""
    done = status != "in_progress"
    if part.kind == "tool":
        call = {"call_id": part.id, "name": part.name, "arguments": part.text if done else ""}
        return {"id": f"fc_{item_id}", "type": "function_call", "status": status, **call}
    content = [content_of(part)] if done else []
    if part.kind == "reasoning":
        return {"id": f"rs_{item_id}", "type": "reasoning", "status": status, "summary": [], "content": content}
    return {"id": f"msg_{item_id}", "type": "message", "role": "assistant", "status": status, "content": content}


def content_of(part: Part, *, empty: bool = False) -> Body:
    """The one part of content that a message or a reasoning item has."""
    text = "" if empty else part.text
    if part.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    if part.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [] if empty else part.logprobs}
