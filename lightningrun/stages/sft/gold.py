"""A model that knows the answers: with it in the policy's place, the agent itself writes the demonstrations.

So each demonstration is what the agent really sends, in its own words, tools and turns, with the answer that the row
calls for.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from lightningrun.agents.calling import load
from lightningrun.errors import UsageError
from lightningrun.models.chunks import split
from lightningrun.models.provider import Body, RefusedRequest
from lightningrun.types import Json, Task


class GoldModel:
    """A provider that answers the i-th call of a rollout with the i-th assistant message of its row's gold.

    ``tasks`` are the rows by the key of their rollout, which comes as ``user`` of the request.
    """

    wants_owner = True
    secret = ""

    def __init__(self, gold: Callable[[Task], list[Body]], tasks: Mapping[str, Task], fingerprint: Json) -> None:
        self.fingerprint = fingerprint
        self._gold = gold
        self._tasks = tasks
        self._begun: dict[str, int] = {}

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        owner = str(body["user"])
        task = self._tasks[owner]
        answers = self._gold(task)
        # What the agent has heard so far says which of its calls this is; a first call may come with examples.
        heard = sum(message.get("role") == "assistant" for message in body.get("messages") or [])
        turn = heard - self._begun.setdefault(owner, heard)
        if turn >= len(answers):
            raise RefusedRequest(
                f"row {task.id!r}: the agent calls more often than its gold has answers ({len(answers)})", status=400
            )
        message = {"role": "assistant", "content": None, **answers[turn]}
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        return {
            "id": f"gold-{task.id}-{turn}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "gold",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        for chunk in split(await self.complete(body, b"", timeout_s)):
            yield chunk

    async def aclose(self) -> None: ...


def gold_answers(named: str, where: str) -> Callable[[Task], list[Body]]:
    """How a row becomes assistant messages. ``named`` is a field of the rows, or ``module:function`` of a row, which
    may give the whole conversation: what others say in it is left out.

    Raises UsageError, at once or for a row that has no such field or whose messages are none.
    """
    function: Callable[..., Any] | None = load(named) if ":" in named else None
    by_name = function is not None and "task" not in inspect.signature(function).parameters

    def answers(task: Task) -> list[Body]:
        if function is None:
            if named not in task.fields:
                raise UsageError(f"row {task.id!r} has no field {named!r}", where=where)
            value = task.fields[named]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return [{"role": "assistant", "content": text}]
        wanted = {n: task.fields[n] for n in inspect.signature(function).parameters if n in task.fields}
        messages = function(**wanted) if by_name else function(task=dict(task.fields))
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            raise UsageError(f"{named} must return the row's messages, a list of mappings", where=where)
        answers = [message for message in messages if message.get("role", "assistant") == "assistant"]
        if not answers:
            raise UsageError(f"{named} returned no message of the assistant for row {task.id!r}", where=where)
        return answers

    return answers
