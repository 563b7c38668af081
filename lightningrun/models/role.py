"""One entry of the recipe's ``models:``, ready to be called: its provider, price, slots, and the bodies it sends."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from lightningrun.files import digest
from lightningrun.models.prices import Price, price_of
from lightningrun.models.provider import Body, Provider
from lightningrun.types import Json

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig


class Role:
    """One entry of the recipe's ``models:``, ready to be called."""

    def __init__(self, name: str, config: ModelConfig, provider: Provider, seed: int) -> None:
        self.name = name
        self.where = f"models.{name}"
        self.config = config
        self.provider = provider
        self.price: Price | None = price_of(config)
        self.slots = asyncio.Semaphore(config.max_batch if config.provider == "local" else config.concurrency)
        self.seed = seed
        self._fingerprint: Json = None
        self._salt = b""
        sampling = {"temperature": config.temperature, "top_p": config.top_p}
        self._overrides = {key: value for key, value in sampling.items() if value is not None}

    def body(self, asked: Body) -> Body:
        """The body as it will be sent: the recipe's model name, sampling and extra fields win over the caller's."""
        config = self.config
        body = {**asked, "model": config.name, **self._overrides}
        body.pop("stream", None)
        body.pop("stream_options", None)
        own = config.provider == "openai" and config.base_url is None  # takes the newer name alone
        newer = own or "max_completion_tokens" in body
        longest = config.max_tokens or body.get("max_tokens")
        if longest is not None and (own or config.max_tokens):
            body.pop("max_tokens", None)
            body["max_completion_tokens" if newer else "max_tokens"] = longest
        body.update(config.extra)
        return body

    def digest(self, payload: bytes) -> str:
        """What makes two requests of one owner equal: the model, as it is now, and the body."""
        if not self._salt or self.provider.fingerprint != self._fingerprint:
            self._fingerprint = self.provider.fingerprint
            identity = [self.config.provider, self.config.name, self._fingerprint, self.seed]
            self._salt = digest(identity).encode()
        return hashlib.sha256(self._salt + payload).hexdigest()[:32]

    def bound_usd(self, body: Body, payload: bytes) -> float:
        """The most that the call can cost."""
        if self.price is None:
            return 0.0
        longest = body.get("max_completion_tokens") or body.get("max_tokens")
        answers = body.get("n")
        longest = longest if isinstance(longest, int) else self.price.max_completion_tokens
        return self.price.bound(len(payload), longest * answers if isinstance(answers, int) else longest)
