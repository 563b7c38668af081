"""What every protocol of the gateway is: a request made a chat request, and the completion said in its own words.

All protocols meet in chat completions, so that any configured model answers any of them, and sampling, prompts bound to
the gateway, the cache and the record of calls are handled once, behind this line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

from aiohttp import web

from lightningrun.gateway.problems import Problem, wrong
from lightningrun.models.provider import Body, dumps
from lightningrun.types import Json

Ask = Callable[[Body], Awaitable[Body]]
"""Chat request -> completion."""
AskStream = Callable[[Body], AsyncGenerator[Body, None]]
"""Chat request -> chunks; to be closed by the caller."""
Memory = dict[str, Any]
"""What a protocol keeps for later requests of the same rollout."""
MAX_BODY_BYTES = 16 << 20
"""Of a request, unpacked."""


class Exchange(ABC):
    """One request of a protocol. Made from its body; raises Problem (400) if that is not one of the protocol."""

    protocol: ClassVar[str]

    def __init__(self, body: Body, memory: Memory) -> None:
        self.body = body
        self.memory = memory
        self.chat = self.parse(body)
        self.streams = bool(body.get("stream"))

    @abstractmethod
    def parse(self, body: Body) -> Body:
        """The chat request that says the same."""

    @abstractmethod
    async def answer(self, ask: Ask) -> Body:
        """The whole answer."""

    @abstractmethod
    def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        """The streamed answer. Gives nothing before the model does: until then a failure can still be a status."""

    @classmethod
    def error(cls, problem: Problem) -> Body:
        """The body of an error."""
        return {"error": problem.error}

    def failed(self, problem: Problem) -> bytes:
        """How a stream that has begun says that it failed."""
        return event(self.error(problem))


def event(data: Mapping[str, Json], name: str = "") -> bytes:
    """One server-sent event."""
    return b"%bdata: %b\n\n" % (b"event: %b\n" % name.encode() if name else b"", dumps(data))


async def received(request: web.BaseRequest) -> bytes:
    """The body, unpacked. Raises Problem: 413 if it is too large, 400 if it cannot be unpacked."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Problem(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", "too_large") from None
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # else aiohttp reads on, after our answer, and prints a traceback
        raise Problem(400, f"the body cannot be unpacked: {error}", "invalid_body") from None


def checked_messages(body: Body) -> list[Body]:
    """``messages`` of a request, at least one object."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise wrong("messages", "must be a list of objects, at least one", "invalid_messages")
    return messages


def picked(body: Body, names: Iterable[str]) -> Body:
    """Those fields of ``body`` that are set."""
    return {name: body[name] for name in names if body.get(name) is not None}


def whole(parts: list[Body]) -> Json:
    """A message's content from its parts: a bare string where one text is all there is."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


# fmt: off
PASSED = (
    "model", "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "logit_bias", "stop", "stop_token_ids", "user", "parallel_tool_calls",
    "chat_template_kwargs",
)
# fmt: on
"""Fields that mean the same in every protocol (or that clients add to any of them)."""
