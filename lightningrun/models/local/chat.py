"""Chat-completions requests as the engine takes them, and its completions as chat answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrun.models.local.engine import Completion
from lightningrun.models.local.sampling import Sampling
from lightningrun.models.local.tokenizer import ChatTokenizer
from lightningrun.models.provider import Body, RefusedRequest

_CALL = "<tool_call>"
_CALLS = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_NOT_DONE = ("frequency_penalty", "presence_penalty", "logit_bias", "functions", "audio")
_MOST_COMPLETIONS = 128
_MOST_TOPS = 20


def refuse(message: str, param: str = "") -> RefusedRequest:
    """The error of an endpoint that is asked for what it cannot do (400)."""
    detail = {"message": message, "type": "invalid_request_error", "param": param or None, "code": None}
    return RefusedRequest(message, status=400, detail=detail)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, understood."""

    messages: list[Body]
    tools: list[Body] | None
    sampling: Sampling
    n: int
    logprobs: bool

    @classmethod
    def of(cls, body: Body) -> Asked:
        """Raises RefusedRequest for what is malformed or not done here: nothing that was asked is left out silently."""
        for name in _NOT_DONE:
            if body.get(name):
                raise refuse(f"'{name}' is not supported by provider local", name)
        if (form := body.get("response_format")) and (not isinstance(form, dict) or form.get("type") != "text"):
            raise refuse("'response_format' is not supported by provider local", "response_format")
        choice = body.get("tool_choice")
        if choice not in (None, "none", "auto"):
            raise refuse("'tool_choice' other than auto and none is not supported by provider local", "tool_choice")
        tools = body.get("tools")
        if tools is not None and (not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)):
            raise refuse("'tools' must be a list of objects", "tools")
        logprobs = _value(body, "logprobs", bool, lambda _: True, "true or false", False)
        longest = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        sampling = Sampling(
            temperature=_value(body, "temperature", float, lambda v: 0 <= v < 1e6, "a number of 0 or more", 1.0),
            top_p=_value(body, "top_p", float, lambda v: 0 < v <= 1, "a number over 0, up to 1", 1.0),
            top_k=max(0, _value(body, "top_k", int, lambda v: v >= -1, "a whole number", 0)),
            max_tokens=_value(body, longest, int, lambda v: v >= 1, "a whole number of 1 or more", None),
            stop=_stops(body.get("stop")),
            stop_ids=_stop_ids(body.get("stop_token_ids")),
            seed=_value(body, "seed", int, lambda _: True, "a whole number", 0),
            top_logprobs=_value(
                body, "top_logprobs", int, lambda v: 0 <= v <= _MOST_TOPS, f"from 0 to {_MOST_TOPS}", 0
            ),
        )
        most = f"from 1 to {_MOST_COMPLETIONS}"
        return cls(
            messages=template_messages(body.get("messages")),
            tools=tools if tools and choice != "none" else None,
            sampling=sampling,
            n=_value(body, "n", int, lambda v: 1 <= v <= _MOST_COMPLETIONS, most, 1),
            logprobs=logprobs,
        )


def _value(body: Body, name: str, kind: type, fits: Callable[[Any], bool], wanted: str, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not fits(value):
        raise refuse(f"'{name}' must be {wanted}", name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise refuse("'stop' must be a text or a list of texts", "stop")
    return tuple(stops)


def _stop_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value or [], list) or not all(type(token) is int for token in value or []):
        raise refuse("'stop_token_ids' must be a list of token ids", "stop_token_ids")
    return tuple(value or ())


def template_messages(messages: Any) -> list[Body]:
    """``messages`` as chat templates expect them: text joined from its parts, arguments of tool calls as objects."""
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise refuse("'messages' must be a list of one message or more", "messages")
    return [_template_message(message) for message in messages]


def _template_message(message: Body) -> Body:
    role = message.get("role")
    if not isinstance(role, str):
        raise refuse("a message has no 'role'", "messages")
    plain = {**message, "role": "system" if role == "developer" else role, "content": _text(message.get("content"))}
    calls = message.get("tool_calls")
    if calls:
        try:
            plain["tool_calls"] = [_template_call(call) for call in calls]
        except (TypeError, KeyError, AttributeError) as error:
            raise refuse(f"a message has odd 'tool_calls': {error}", "messages") from error
    else:
        plain.pop("tool_calls", None)
    return plain


def _text(content: Any) -> str:
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise refuse("a message holds a part that is not text", "messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, (str, type(None))):
        raise refuse("a message's 'content' must be text", "messages")
    return content or ""


def _template_call(call: Mapping[str, Any]) -> Body:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            pass  # what a model wrote badly is shown to it as it wrote it
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def message_of(tokenizer: ChatTokenizer, completion: Completion, with_tools: bool) -> tuple[Body, str]:
    """The assistant's message, and the finish reason."""
    text = spoken(tokenizer, completion)
    calls = _tool_calls(text, completion) if with_tools and _CALL in text else []
    if calls:
        said = text[: text.index(_CALL)]
        return {"role": "assistant", "content": said or None, "tool_calls": calls}, "tool_calls"
    return {"role": "assistant", "content": text}, completion.finish


def spoken(tokenizer: ChatTokenizer, completion: Completion) -> str:
    """The text of a completion without what ended it."""
    if completion.stop:
        text = tokenizer.decode(completion.ids)
        return text[: text.index(completion.stop)] if completion.stop in text else text
    return tokenizer.decode(completion.ids[:-1] if completion.finish == "stop" else completion.ids)


def _tool_calls(text: str, completion: Completion) -> list[Body]:
    """Calls in the form ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; none if one is malformed."""
    calls: list[Body] = []
    for number, written in enumerate(_CALLS.findall(text)):
        try:
            call = json.loads(written)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
        if not isinstance(name, str) or not isinstance(arguments, (dict, str)):
            return []
        function = {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
        calls.append({"id": f"call_{_name(completion.ids, number)}", "type": "function", "function": function})
    return calls


def _name(ids: Sequence[int], number: int) -> str:
    return hashlib.sha256(repr((ids, number)).encode()).hexdigest()[:24]


def answer_id(prompt: Sequence[int], sampling: Sampling) -> str:
    return f"chatcmpl-{_name((*prompt, sampling.seed), 0)}"


def logprob_entry(tokenizer: ChatTokenizer, token: int, logprob: float, tops: Sequence[tuple[int, float]]) -> Body:
    """One element of ``logprobs.content``."""
    top = [_entry(tokenizer, other, value) for other, value in tops]
    return {**_entry(tokenizer, token, logprob), "top_logprobs": top}


def _entry(tokenizer: ChatTokenizer, token: int, logprob: float) -> Body:
    text = tokenizer.decode([token], skip_special=False)
    whole = "\ufffd" not in text  # else the token is a part of a character
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


class Holder:
    """Streams text, but nothing that may turn out to be a stop text or the beginning of a tool call."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = marks
        self._pending = ""
        self._shut = False

    def add(self, text: str) -> str:
        """What of the text so far may be shown now."""
        self._pending += text
        if self._shut:
            return ""
        found = [place for mark in self._marks if (place := self._pending.find(mark)) >= 0]
        if found:
            self._shut = True
            free = min(found)
        else:
            free = len(self._pending) - max((self._overlap(mark) for mark in self._marks), default=0)
        shown, self._pending = self._pending[:free], self._pending[free:]
        return shown

    def _overlap(self, mark: str) -> int:
        """The longest end of what is pending that begins ``mark``."""
        most = min(len(mark) - 1, len(self._pending))
        return next((size for size in range(most, 0, -1) if self._pending.endswith(mark[:size])), 0)


def marks_of(asked: Asked) -> tuple[str, ...]:
    return (*asked.sampling.stop, *([_CALL] if asked.tools else []))
