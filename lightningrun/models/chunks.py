"""Streamed completions: chunks put together into one completion, and one completion taken apart into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightningrun.models.provider import Body

_HEAD = ("id", "created", "model", "system_fingerprint")
_KNOWN = frozenset({"index", "message", "delta", "finish_reason", "logprobs"})
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")


class Assembler:
    """Collects the chunks of one stream. ``done`` is the whole completion so far."""

    def __init__(self) -> None:
        self._head: Body = {}
        self._choices: dict[int, Body] = {}
        self._usage: Any = None

    @property
    def finished(self) -> bool:
        """Whether every choice seen has a finish reason (and there is one)."""
        return bool(self._choices) and all(choice["finish_reason"] for choice in self._choices.values())

    def add(self, chunk: Body) -> None:
        """Take one chunk in."""
        if not self._head:
            self._head = {key: chunk[key] for key in _HEAD if key in chunk}
        self._usage = chunk.get("usage") or self._usage
        for part in chunk.get("choices") or ():
            index = part.get("index") or 0
            message: Body = {"role": "assistant", "content": None}
            choice = self._choices.setdefault(index, {"index": index, "message": message, "finish_reason": None})
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
            if part.get("logprobs"):
                _merge_lists(choice.setdefault("logprobs", {}), part["logprobs"])
            _merge_delta(choice["message"], part.get("delta") or {})
            _merge_more(choice, part)

    def done(self) -> Body:
        choices = [self._choices[index] for index in sorted(self._choices)]
        completion = {**self._head, "object": "chat.completion", "choices": choices}
        return {**completion, "usage": self._usage} if self._usage else completion


def _merge_more(choice: Body, part: Body) -> None:
    """What else servers put into a choice: token ids, which come piece by piece, the stop sequence that was met, ..."""
    for key in part.keys() - _KNOWN:
        if isinstance(part[key], list):
            choice[key] = choice.get(key, []) + part[key]
        elif part[key] is not None:
            choice[key] = part[key]


def _merge_delta(message: Body, delta: Body) -> None:
    for key, value in delta.items():
        if value is None:
            continue
        if key in _TEXTS:
            message[key] = (message.get(key) or "") + value
        elif key == "tool_calls":
            for part in value:
                _merge_tool_call(message.setdefault("tool_calls", []), part)
        elif key == "function_call":
            _merge_function(message.setdefault("function_call", {}), value)
        else:
            message[key] = value


def _merge_tool_call(calls: list[Body], part: Body) -> None:
    index = part.get("index")
    index = len(calls) if index is None else index
    while len(calls) <= index:
        calls.append({"type": "function", "function": {}})
    call = calls[index]
    for key, value in part.items():
        if key == "function":
            _merge_function(call["function"], value or {})
        elif key != "index" and value is not None:
            call[key] = value


def _merge_function(function: Body, part: Body) -> None:
    if part.get("name"):
        function["name"] = part["name"]
    function["arguments"] = function.get("arguments", "") + (part.get("arguments") or "")


def _merge_lists(into: Body, part: Body) -> None:
    for key, value in part.items():
        if isinstance(value, list):
            into.setdefault(key, []).extend(value)


def split(completion: Body) -> Iterator[Body]:
    """The chunks that say what ``completion`` says: one with the message, one with the finish reasons, one with usage.

    For answers that were never streamed: from the call log, and from models written as functions.
    """
    head: Body = {key: completion[key] for key in _HEAD if key in completion}
    head["object"] = "chat.completion.chunk"
    said, ended = [], []
    for position, choice in enumerate(completion["choices"]):
        index = choice.get("index", position)
        delta = dict(choice["message"])
        if delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(delta["tool_calls"])]
        said.append({"index": index, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None})
        more = {key: choice[key] for key in choice.keys() - _KNOWN}
        ended.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason") or "stop", **more})
    yield {**head, "choices": said}
    yield {**head, "choices": ended}
    if completion.get("usage"):
        yield {**head, "choices": [], "usage": completion["usage"]}
