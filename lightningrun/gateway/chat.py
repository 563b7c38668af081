"""OpenAI's chat completions: handed on as they are, either way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from lightningrun.gateway.exchange import Ask, AskStream, Exchange, checked_messages, event
from lightningrun.models.provider import Body

DONE = b"data: [DONE]\n\n"


class Chat(Exchange):
    """``POST /v1/chat/completions``. Fields that we never heard of reach the model too."""

    protocol = "chat"

    def parse(self, body: Body) -> Body:
        checked_messages(body)
        return body

    async def answer(self, ask: Ask) -> Body:
        return await ask(self.chat)

    async def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        wants_usage = asks_for_usage(self.body)
        async with contextlib.aclosing(ask(self.chat)) as chunks:
            async for chunk in chunks:
                if wants_usage or chunk.get("choices") or not chunk.get("usage"):  # we asked for usage, perhaps alone
                    yield event(chunk)
        yield DONE


def asks_for_usage(body: Body) -> bool:
    """Whether the client of a stream expects a last chunk without choices."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))
