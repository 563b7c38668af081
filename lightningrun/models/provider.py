"""What every provider is, and the checks that every provider's answer goes through."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from lightningrun.errors import ModelError
from lightningrun.types import Json, Usage

Body = dict[str, Json]
"""A chat-completions request or answer, or one chunk of a streamed answer."""

SAMPLED = "_sampled"
"""Where a provider that knows them puts the ids and log-probabilities of an answer; see ``LLMCall.sampled``."""

BYTES_PER_TOKEN = 4
"""What a token is taken to be where nobody counted: close for English text, too few tokens for other scripts."""


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def secret_of(key: str) -> str:
    """``key`` if it must be hidden. ``EMPTY``, ``dummy`` and the like are words that answers may well contain."""
    return key if len(key) >= 8 else ""


class Provider(Protocol):
    """What answers chat requests. Raises ``ModelError`` (nothing else) and ends within ``timeout_s``, body included."""

    @property
    def fingerprint(self) -> Json:
        """What, beside the request, decides the answer now: part of the cache key."""

    secret: str
    """The key it holds, to be kept out of everything written or answered; may be empty."""

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        """The chat completion for ``body``; ``payload`` is the same as JSON text, encoded once for all uses."""

    def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        """The chunks of a streamed completion, each as soon as it is there."""

    async def aclose(self) -> None: ...


class RefusedRequest(ModelError):
    """The provider refused what the caller asked for (400, 413, 422): the caller's fault, not the infrastructure's.

    ``detail`` is the provider's error object, which the caller gets to see as it is.
    """

    def __init__(self, message: str, *, status: int, detail: Mapping[str, Json] | None = None, where: str = "") -> None:
        super().__init__(message, kind="bad_request", status=status, where=where)
        self.detail = dict(detail or {})


def dumps(body: Json) -> bytes:
    """JSON as it is sent: key order kept, because a model sees the order of a tool's parameters."""
    return _encode(body).encode("utf-8", "backslashreplace")


def checked(completion: Any, where: str) -> Body:
    """``completion`` if it is a chat completion with at least one choice; raises ModelError otherwise."""
    if not isinstance(completion, dict):
        raise ModelError(
            f"answered with {type(completion).__name__} instead of a chat completion",
            kind="not_an_object",
            retryable=True,
            where=where,
        )
    choices = completion.get("choices")
    if isinstance(choices, list) and choices:
        if all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
            return completion
        raise ModelError("answered with a choice that has no message", kind="no_choices", retryable=True, where=where)
    if isinstance(error := completion.get("error"), (dict, str)) and error:
        raise ModelError(f"answered with an error: {short(error)}", kind="error_body", retryable=True, where=where)
    raise ModelError("answered without choices", kind="no_choices", retryable=True, where=where)


def embedded(answer: Any, where: str) -> Body:
    """``answer`` if it is a list of embeddings; raises ModelError otherwise."""
    if isinstance(answer, dict) and isinstance(answer.get("data"), list) and answer["data"]:
        return answer
    raise ModelError(f"answered without embeddings: {short(answer)}", kind="no_embeddings", retryable=True, where=where)


def short(value: Json, limit: int = 300) -> str:
    """An error's text on one line, the message picked out of the usual shapes."""
    if isinstance(value, dict):
        inner = value.get("error", value)
        value = inner.get("message") or inner if isinstance(inner, dict) else inner
    text = " ".join((value if isinstance(value, str) else json.dumps(value, default=str)).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def tokens_of(text: str) -> int:
    """Tokens in ``text`` at ``BYTES_PER_TOKEN``, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def usage_of(completion: Body | None, payload: bytes) -> Usage:
    """Tokens as the provider counted them; estimated from the text where it did not."""
    usage = (completion or {}).get("usage")
    if isinstance(usage, dict):
        none = None if (completion or {}).get("choices") else 0  # embeddings have nothing to complete
        counted = usage.get("prompt_tokens"), usage.get("completion_tokens", none)
        if all(isinstance(count, int) for count in counted):
            return Usage(*counted)  # type: ignore[arg-type]
    written = sum(tokens_of(dumps(choice.get("message")).decode()) for choice in (completion or {}).get("choices", ()))
    return Usage(-(-len(payload) // BYTES_PER_TOKEN), written)
