"""OpenAI's embeddings: handed on to a model that has them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from lightningrun.gateway.exchange import Ask, AskStream, Exchange
from lightningrun.gateway.problems import wrong
from lightningrun.models.provider import Body


class Embeddings(Exchange):
    """``POST /v1/embeddings``. The service sees by ``protocol`` that this is no chat."""

    protocol = "embeddings"

    def parse(self, body: Body) -> Body:
        if not isinstance(body.get("input"), (str, list)) or not body["input"]:
            raise wrong("input", "must be a text or a list, not empty")
        if body.get("stream"):
            raise wrong("stream", "is not for embeddings")
        return body

    async def answer(self, ask: Ask) -> Body:
        return await ask(self.chat)

    def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError
