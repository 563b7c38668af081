"""The gateway: chat completions over HTTP on loopback, one URL per agent slot, each call given to a session.

aiohttp's low-level server is used, without its router and middlewares: the gateway has two routes, and what it adds to
a call is CPU time that every rollout pays.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lightningrun.errors import BudgetReached, LightningError, ModelError
from lightningrun.gateway import answers
from lightningrun.models.provider import Body, RefusedRequest

if TYPE_CHECKING:
    from lightningrun.models.service import ModelService
    from lightningrun.models.session import CallSession

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
_SHUTDOWN_S = 1.0


class Gateway:
    """Serves ``/r/<url id>/v1/...`` to agents that hold the token. An id answers only while a session is bound."""

    def __init__(self, service: ModelService) -> None:
        self.token = secrets.token_urlsafe(24)
        self._expected = f"Bearer {self.token}".encode()
        self._service = service
        self._sessions: dict[str, CallSession] = {}
        self._port = 0
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        server = web.Server(self._handle, request_factory=_request, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End what is under way and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def new_url_id(self) -> str:
        """A fresh id that cannot be guessed."""
        return secrets.token_urlsafe(9)

    def url(self, url_id: str) -> str:
        """The ``base_url`` for an OpenAI client."""
        return f"http://127.0.0.1:{self._port}/r/{url_id}/v1"

    def bind(self, url_id: str, session: CallSession) -> None:
        """From now on calls to this URL belong to ``session``."""
        self._sessions[url_id] = session

    def release(self, url_id: str) -> None:
        """From now on calls to this URL are refused."""
        self._sessions.pop(url_id, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._route(request)
        except answers.ClientError as error:
            return error.response()
        except RefusedRequest as error:
            return answers.refused(error, self._service.masked)
        except BudgetReached as error:
            return answers.error(429, str(error), "budget_reached", error_code="budget_reached")
        except ModelError as error:
            return answers.error(503, self._service.masked(str(error)), "model_error", error_code=error.kind)
        except LightningError as error:
            return answers.error(500, self._service.masked(str(error)), "server_error")
        except ConnectionError as error:  # the client hung up
            raise asyncio.CancelledError from error
        except Exception as error:
            _log.exception("the gateway failed")
            return answers.error(500, f"the gateway failed: {type(error).__name__}", "server_error")

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(sent, self._expected):
            raise answers.ClientError(
                401, "wrong or missing API key: use the one given to the agent", "invalid_api_key"
            )
        _, _, path = request.raw_path.partition("?")[0].partition("/r/")
        url_id, _, route = path.partition("/v1/")
        method = {"chat/completions": "POST", "models": "GET"}.get(route)
        if not url_id or method is None:
            raise answers.ClientError(404, f"no such path: {request.path}", "not_found")
        if request.method != method:
            raise answers.ClientError(405, f"{request.method} is not allowed here: use {method}", "method_not_allowed")
        if route == "models":
            return answers.models(self._service.roles)
        body = await _body(request)
        session = self._sessions.get(url_id)
        if session is None:
            raise answers.ClientError(409, "no rollout is running at this URL", "no_rollout")
        agent = request.headers.get("X-Agent-Name", "")[:100]
        if body.get("stream"):
            return await self._streamed(request, session, body, agent)
        return answers.completion(await session.chat(body, agent=agent))

    async def _streamed(
        self, request: web.BaseRequest, session: CallSession, body: Body, agent: str
    ) -> web.StreamResponse:
        options = body.get("stream_options")
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        async with contextlib.aclosing(session.stream(body, agent=agent)) as chunks:
            first = await chunks.__anext__()  # a failure so far is an HTTP status, not an event
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
            await response.prepare(request)
            try:
                await _send(response, first, wants_usage)
                async for chunk in chunks:
                    await _send(response, chunk, wants_usage)
                await response.write(b"data: [DONE]\n\n")
            except LightningError as error:
                await response.write(
                    answers.event({"error": {"message": self._service.masked(str(error)), "type": "model_error"}})
                )
            await response.write_eof()
            return response


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)


async def _body(request: web.BaseRequest) -> Body:
    try:
        body = answers.parse((await request.read()).decode())
    except web.HTTPRequestEntityTooLarge:
        raise answers.ClientError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", "too_large") from None
    except (ValueError, RecursionError) as error:
        raise answers.ClientError(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(body, dict):
        raise answers.ClientError(400, "the body is not a JSON object", "invalid_json")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise answers.ClientError(
            400, "messages must be a list of objects, at least one", "invalid_messages", "messages"
        )
    return body


async def _send(response: web.StreamResponse, chunk: Body, wants_usage: bool) -> None:
    if not wants_usage and not chunk.get("choices") and chunk.get("usage"):
        return  # asked for by us, not by the client, who may not expect a chunk without choices
    await response.write(answers.event(chunk))
