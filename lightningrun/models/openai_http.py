"""Any OpenAI-compatible ``base_url``, spoken to over one aiohttp session with keep-alive.

The OpenAI SDK is left out on purpose: it takes 2 to 3 ms of CPU a call, this a fraction of one, and here a
rollout's price is the price of its calls.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
import yarl

from lightningrun.errors import Missing, ModelError, UsageError
from lightningrun.models.chunks import split
from lightningrun.models.provider import Body, RefusedRequest, checked, dumps, embedded, secret_of, short
from lightningrun.models.retries import retry_after_s

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig

_DEFAULT_URL = "https://api.openai.com/v1"
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_HIDDEN = b"[masked]"


class OpenAIHttp:
    """Chat completions over HTTP. See ``Provider``."""

    def __init__(self, config: ModelConfig, environ: Mapping[str, str], role: str) -> None:
        base = (config.base_url or _DEFAULT_URL).rstrip("/")
        self._url = _parsed(base + "/chat/completions", role)
        self._embeddings_url = _parsed(base + "/embeddings", role)
        self._where = f"models.{role}"
        self._key_env = config.api_key_env or ("" if config.base_url else "OPENAI_API_KEY")
        key = environ.get(self._key_env, "").strip() if self._key_env else ""
        if self._key_env and not key:
            raise Missing(
                f"the environment variable {self._key_env} is not set",
                where=self._where,
                hint="export it, or name another with api_key_env",
            )
        self.fingerprint = {"base_url": base}
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self.secret = secret_of(key)
        # aiohttp looks the proxy up anew for each request when asked to at all
        self._trust_env = any(environ.get(name) for name in _PROXIES)
        self._session: aiohttp.ClientSession | None = None

    def _post(self, url: yarl.URL, payload: bytes, timeout_s: float) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                trust_env=self._trust_env,
            )
        return self._session.post(
            url, data=payload, timeout=aiohttp.ClientTimeout(total=timeout_s), allow_redirects=False
        )

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        return checked(await self._answer(self._url, payload, timeout_s), self._where)

    async def embed(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        """The embeddings for ``body``. Raises as ``complete``."""
        try:
            answer = await self._answer(self._embeddings_url, payload, timeout_s)
        except ModelError as error:
            if error.status not in (404, 405, 501):
                raise
            said = f"this endpoint has no embeddings of that model: {error.message}"
            raise RefusedRequest(said, status=400, where=self._where) from error
        return embedded(answer, self._where)

    async def _answer(self, url: yarl.URL, payload: bytes, timeout_s: float) -> Any:
        try:
            async with self._post(url, payload, timeout_s) as response:
                raw = self._masked(await response.read())
                if response.status == 200:
                    return self._parsed_json(raw)
                raise self._refusal(response, raw)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._broken(error, timeout_s) from error

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        try:
            async with self._post(self._url, dumps(body), timeout_s) as response:
                if response.status != 200:
                    raise self._refusal(response, self._masked(await response.read()))
                if response.content_type in ("application/json", "text/html"):
                    completion = checked(self._parsed_json(self._masked(await response.read())), self._where)
                    for chunk in split(completion):
                        yield chunk
                    return
                async for data in _events(response.content):
                    if data == b"[DONE]":
                        return
                    yield self._checked_chunk(self._parsed_json(self._masked(data)))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise self._broken(error, timeout_s) from error

    def _checked_chunk(self, chunk: Any) -> Body:
        if isinstance(chunk, dict) and not chunk.get("error"):
            return chunk
        raise ModelError(
            f"ended its stream with an error: {short(chunk)}", kind="error_body", retryable=True, where=self._where
        )

    def _masked(self, raw: bytes) -> bytes:
        """An endpoint may echo the key it was sent; nothing behind this line may see it."""
        secret = self.secret.encode()
        return raw.replace(secret, _HIDDEN) if secret and secret in raw else raw

    def _parsed_json(self, raw: bytes) -> Any:
        try:
            return json.loads(raw)
        except ValueError:
            pass
        text = short(raw.decode("utf-8", "replace"), 120)
        if text.startswith("<"):
            raise ModelError(
                f"answered with HTML instead of JSON: {text}",
                kind="html",
                status=200,
                retryable=True,
                where=self._where,
                hint="does base_url end where the API begins (often /v1)?",
            )
        raise ModelError(
            f"answered with broken JSON: {text!r}", kind="broken_json", status=200, retryable=True, where=self._where
        )

    def _refusal(self, response: aiohttp.ClientResponse, raw: bytes) -> ModelError:
        status = response.status
        detail: Any = None
        try:
            detail = json.loads(raw)
        except ValueError:
            pass
        inner = detail.get("error") if isinstance(detail, dict) else None
        error = inner if isinstance(inner, dict) else {}
        said = short(detail if isinstance(detail, dict) else raw.decode("utf-8", "replace")) or response.reason or ""
        return refusal(
            status,
            said,
            where=self._where,
            key_env=self._key_env,
            detail=error,
            retry_after=retry_after_s(response.headers.get("Retry-After")),
        )

    def _broken(self, error: BaseException, timeout_s: float) -> ModelError:
        if isinstance(error, asyncio.TimeoutError):
            return ModelError(
                f"gave no whole answer within {timeout_s:.3g} s", kind="timeout", retryable=True, where=self._where
            )
        said = short(str(error)) or type(error).__name__
        return ModelError(
            f"the connection failed: {said}",
            kind="connection",
            retryable=True,
            where=self._where,
            hint=f"is the endpoint {self._url.origin()} up?",
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def refusal(
    status: int,
    said: str,
    *,
    where: str,
    key_env: str = "",
    detail: Mapping[str, Any] | None = None,
    retry_after: float | None = None,
) -> ModelError:
    """The typed error for an HTTP status that is not 200. ``said`` is the provider's message, ``detail`` its object."""
    message = f"answered HTTP {status}: {said}"
    if status in (400, 413, 422):
        return RefusedRequest(message, status=status, detail=detail or {"message": said}, where=where)
    if status in (401, 403):
        hint = (
            f"check the key in {key_env}" if key_env else "the endpoint wants a key: name its variable in api_key_env"
        )
        return ModelError(message, kind="auth", status=status, where=where, hint=hint)
    if status == 402 or (detail or {}).get("code") == "insufficient_quota":
        return ModelError(message, kind="quota", status=status, where=where, hint="the account has no credit left")
    if status == 404:
        return ModelError(message, kind="not_found", status=status, where=where, hint="check name and base_url")
    retryable = status in (408, 409, 425, 429) or status >= 500
    return ModelError(
        message, kind=f"http_{status}", status=status, retryable=retryable, retry_after_s=retry_after, where=where
    )


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of each server-sent event. A line may be of any length, unlike with ``readline``."""
    rest = b""
    async for block in content.iter_any():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _parsed(url: str, role: str) -> yarl.URL:
    try:
        parsed = yarl.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    except ValueError:
        pass
    raise UsageError(f"{url!r} is not an http(s) URL", where=f"models.{role}.base_url")
