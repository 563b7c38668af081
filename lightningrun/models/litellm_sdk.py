"""Any LiteLLM name (``anthropic/...``, ``gemini/...``, ``ollama/...``), by LiteLLM's SDK.

LiteLLM takes seconds of CPU to import: it is imported at the first call, in a thread, and told before that to read its
bundled price table instead of asking the network.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Any

from lightningrun.errors import Missing, ModelError
from lightningrun.models.openai_http import refusal
from lightningrun.models.provider import Body, checked, embedded, secret_of, short
from lightningrun.models.retries import retry_after_s

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig


class LiteLLM:
    """Chat completions by ``litellm.acompletion``. See ``Provider``."""

    def __init__(self, config: ModelConfig, environ: Mapping[str, str], role: str) -> None:
        self._where = f"models.{role}"
        if importlib.util.find_spec("litellm") is None:
            raise Missing("litellm is not installed", where=self._where, hint="pip install litellm")
        self._key_env = config.api_key_env or ""
        key = environ.get(self._key_env, "").strip() if self._key_env else ""
        if self._key_env and not key:
            raise Missing(f"the environment variable {self._key_env} is not set", where=self._where, hint="export it")
        self._options: Body = {"num_retries": 0, "max_retries": 0, "drop_params": True}
        if key:
            self._options["api_key"] = key
        self.secret = secret_of(key)
        if config.base_url:
            self._options["api_base"] = config.base_url  # embeddings know it by no other name
        self.fingerprint = {"base_url": config.base_url}
        self._litellm: Any = None

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        completion = await self._asked("acompletion", body, timeout_s)
        return checked(completion.model_dump(mode="json"), self._where)

    async def embed(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        """The embeddings for ``body``. Raises as ``complete``."""
        answer = await self._asked("aembedding", body, timeout_s)
        return embedded(answer.model_dump(mode="json"), self._where)

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        end = asyncio.get_running_loop().time() + timeout_s
        chunks = await self._asked("acompletion", body, timeout_s)
        try:
            while True:
                left = end - asyncio.get_running_loop().time()
                try:
                    chunk = await asyncio.wait_for(chunks.__anext__(), max(left, 0.001))
                except StopAsyncIteration:
                    return
                except Exception as error:
                    raise self._typed(error, timeout_s) from error
                yield chunk.model_dump(mode="json", exclude_none=True)
        finally:
            await chunks.aclose()

    async def _asked(self, function: str, body: Body, timeout_s: float) -> Any:
        if self._litellm is None:
            self._litellm = await asyncio.to_thread(_imported)
        try:
            call = getattr(self._litellm, function)(**body, **self._options, timeout=timeout_s)
            return await asyncio.wait_for(call, timeout_s)
        except Exception as error:
            raise self._typed(error, timeout_s) from error

    def _typed(self, error: Exception, timeout_s: float) -> ModelError:
        """LiteLLM derives its errors from OpenAI's: the status says what happened, whichever the provider."""
        said = short(str(getattr(error, "message", "") or error) or type(error).__name__)
        said = said.replace(self.secret, "[masked]") if self.secret else said
        names = {base.__name__ for base in type(error).__mro__}
        if isinstance(error, asyncio.TimeoutError) or "APITimeoutError" in names:
            return ModelError(
                f"gave no whole answer within {timeout_s:.3g} s", kind="timeout", retryable=True, where=self._where
            )
        if "LiteLLMUnknownProvider" in names or "LLM Provider NOT provided" in said:
            hint = "LiteLLM names are <provider>/<model>, as in anthropic/claude-sonnet-4-5"
            return ModelError(said, kind="not_found", where=f"{self._where}.name", hint=hint)
        if "APIConnectionError" in names:
            return ModelError(f"the connection failed: {said}", kind="connection", retryable=True, where=self._where)
        status = getattr(error, "status_code", None)
        if not isinstance(status, int):
            return ModelError(f"{type(error).__name__}: {said}", kind="litellm", where=self._where)
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        return refusal(
            status,
            said,
            where=self._where,
            key_env=self._key_env,
            detail={"message": said, "code": getattr(error, "code", None)},
            retry_after=retry_after_s(headers.get("retry-after")),
        )

    async def aclose(self) -> None:
        if self._litellm is not None:
            await self._litellm.close_litellm_async_clients()


def _imported() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm
