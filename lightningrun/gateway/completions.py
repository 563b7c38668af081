"""OpenAI's legacy text completions, by chat completions: each prompt becomes what a user says.

The chat template of the model is thus applied to the prompt. Token ids and ``suffix`` are refused: chat completions
have nothing that says the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from lightningrun.gateway.chat import DONE, asks_for_usage
from lightningrun.gateway.exchange import PASSED, Ask, AskStream, Exchange, event, picked
from lightningrun.gateway.problems import wrong
from lightningrun.gateway.said import plain
from lightningrun.models.provider import Body
from lightningrun.types import Json

_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


class Completions(Exchange):
    """``POST /v1/completions``."""

    protocol = "completions"

    def parse(self, body: Body) -> Body:
        prompt = body.get("prompt")
        self._prompts: list[str] = [prompt] if isinstance(prompt, str) else prompt  # type: ignore[assignment]
        if (
            not isinstance(self._prompts, list)
            or not self._prompts
            or not all(isinstance(p, str) for p in self._prompts)
        ):
            raise wrong("prompt", "must be a text or a list of texts (prompts of token ids cannot be passed on)")
        self._answers = body.get("n") or 1
        if not isinstance(self._answers, int):
            raise wrong("n", "must be a number")
        for name, usual in (("suffix", None), ("best_of", self._answers)):
            if body.get(name) not in (None, "", usual):
                raise wrong(name, "cannot be passed on to a chat model", "unsupported")
        chat = picked(body, (*PASSED, "max_tokens", "n"))
        if body.get("logprobs") is not None:
            chat.update({"logprobs": True, "top_logprobs": body["logprobs"]})
        return chat

    def _chats(self) -> list[Body]:
        return [{**self.chat, "messages": [{"role": "user", "content": prompt}]} for prompt in self._prompts]

    async def answer(self, ask: Ask) -> Body:
        tasks = [asyncio.ensure_future(ask(chat)) for chat in self._chats()]
        try:
            completions = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        choices = []
        for number, completion in enumerate(completions):
            for position, choice in enumerate(completion["choices"]):
                text = plain(choice["message"].get("content"))
                choices.append(self._choice(number, choice, position, text, echo=True))
        return {**_head(completions[0]), "choices": choices, "usage": _sum([c.get("usage") for c in completions])}

    async def events(self, ask: AskStream) -> AsyncGenerator[bytes, None]:
        usages, last = [], {}
        for number, chat in enumerate(self._chats()):
            begun: set[int] = set()
            async with contextlib.aclosing(ask(chat)) as chunks:
                async for chunk in chunks:
                    last = chunk
                    usages.append(chunk.get("usage"))
                    choices = []
                    for position, choice in enumerate(chunk.get("choices") or ()):
                        index = choice.get("index", position)
                        text = plain((choice.get("delta") or {}).get("content"))
                        choices.append(self._choice(number, choice, position, text, echo=index not in begun))
                        begun.add(index)
                    if choices:
                        yield event({**_head(chunk), "choices": choices})
        if asks_for_usage(self.body):
            yield event({**_head(last), "choices": [], "usage": _sum(usages)})
        yield DONE

    def _choice(self, number: int, choice: Body, position: int, text: str, *, echo: bool) -> Body:
        """A choice for the ``number``-th prompt; ``echo``: it is the begin of the text."""
        prompt = self._prompts[number] if echo and self.body.get("echo") else ""
        return {
            "index": number * self._answers + choice.get("index", position),
            "text": prompt + text,
            "logprobs": _logprobs(choice.get("logprobs"), len(prompt)),
            "finish_reason": choice.get("finish_reason"),
        }


def _head(said: Body) -> Body:
    return {**picked(said, ("id", "created", "model", "system_fingerprint")), "object": "text_completion"}


def _sum(usages: list[Json]) -> Body:
    return {name: sum(usage.get(name) or 0 for usage in usages if usage) for name in _COUNTS}


def _logprobs(logprobs: Json, offset: int) -> Json:
    """In the shape of text completions: parallel lists instead of a list of tokens."""
    tokens = (logprobs or {}).get("content")
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token.get("top_logprobs") or ()} for token in tokens],
        "text_offset": offsets,
    }
