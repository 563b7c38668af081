"""The gateway: several protocols over HTTP on loopback, one URL per agent slot, each call given to a session.

aiohttp's low-level server is used, without its router and middlewares: the gateway has few routes, and what it adds to
a call is CPU time that every rollout pays.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lightningrun.errors import LightningError
from lightningrun.gateway.chat import Chat
from lightningrun.gateway.completions import Completions
from lightningrun.gateway.embeddings import Embeddings
from lightningrun.gateway.exchange import MAX_BODY_BYTES, Exchange, Memory, received
from lightningrun.gateway.messages import Messages
from lightningrun.gateway.otlp import ROUTES, SpanSink, caller, export
from lightningrun.gateway.problems import Problem
from lightningrun.gateway.responses import Responses
from lightningrun.models.provider import Body, dumps
from lightningrun.types import Json

if TYPE_CHECKING:
    from lightningrun.models.role import Role
    from lightningrun.models.service import ModelService
    from lightningrun.models.session import CallSession

_log = logging.getLogger(__name__)

_SHUTDOWN_S = 1.0
_COUNT = "messages/count_tokens"
PROTOCOLS: dict[str, type[Exchange]] = {
    "chat/completions": Chat,
    "completions": Completions,
    "responses": Responses,
    "messages": Messages,
    _COUNT: Messages,
    "embeddings": Embeddings,
}
"""Path behind ``/v1/`` -> what speaks it."""
_NO_RETRY = {"x-should-retry": "false"}
"""Tells the vendors' clients not to try again: the gateway has done so already."""
_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


@dataclass(slots=True)
class _Bound:
    """Whom a URL belongs to at present."""

    session: CallSession
    spans: SpanSink | None = None
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a request is for."""

    url_id: str
    route: str

    @classmethod
    def of(cls, request: web.BaseRequest) -> _Target:
        _, _, path = request.raw_path.partition("?")[0].partition("/r/")
        url_id, _, route = path.partition("/v1/")
        return cls(url_id, route.removeprefix("v1/"))  # Anthropic's clients add /v1 to a base_url that may have it

    @property
    def protocol(self) -> type[Exchange]:
        return PROTOCOLS.get(self.route, Chat)


class Gateway:
    """Serves ``/r/<url id>/v1/...`` to agents that hold the token. An id answers only while a session is bound."""

    def __init__(self, service: ModelService) -> None:
        self.token = secrets.token_urlsafe(24)
        self._expected = self.token.encode()
        self._service = service
        self._bound: dict[str, _Bound] = {}
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
        """The ``base_url`` for an OpenAI client; Anthropic's takes it without the ``/v1``, or with it."""
        return f"http://127.0.0.1:{self._port}/r/{url_id}/v1"

    def bind(self, url_id: str, session: CallSession, spans: SpanSink | None = None) -> None:
        """From now on calls to this URL belong to ``session``, and spans exported to it to ``spans``."""
        self._bound[url_id] = _Bound(session, spans)

    def release(self, url_id: str) -> None:
        """From now on calls to this URL are refused."""
        self._bound.pop(url_id, None)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        target = _Target.of(request)
        try:
            return await self._routed(request, target)
        except ConnectionError as error:  # the client hung up
            raise asyncio.CancelledError from error
        except Exception as error:
            problem = _problem(error)
        return _json(target.protocol.error(problem), problem.status, _NO_RETRY, self._service.masked)

    async def _routed(self, request: web.BaseRequest, target: _Target) -> web.StreamResponse:
        self._check_token(request)
        if target.url_id and (target.route == "models" or target.route.startswith("models/")):
            _check_method(request, "GET")
            return _json(_models(self._service.roles, target.route.partition("/")[2]))
        if not target.url_id or not target.route:
            raise Problem(404, f"no such path: {request.path}", "not_found")
        bound = self._bound.get(target.url_id)
        if target.route in ROUTES:
            return await export(request, target.route, bound.spans if bound else None)
        if bound is None:
            raise Problem(409, "no rollout is running at this URL", "no_rollout")
        agent = request.headers.get("X-Agent-Name", "")[:100]
        said = {"agent": agent, "protocol": target.protocol.protocol, "path": f"/v1/{target.route}"}
        if "traceparent" in request.headers:
            said["span"] = caller(request.headers["traceparent"])
        body: Body = {}
        try:
            if target.route not in PROTOCOLS:
                raise Problem(404, f"no such path: {request.path}", "not_found")
            _check_method(request, "POST")
            body = await _body(request)
            exchange = _exchange(target.protocol, body, bound.memory)
        except Problem as problem:
            bound.session.refuse(f"refused by the gateway: {problem}", body, **said)
            raise
        if target.route == _COUNT and isinstance(exchange, Messages):
            return _json(exchange.count())
        if exchange.streams:
            return await self._streamed(request, exchange, bound.session, said)
        return _json(await exchange.answer(lambda chat: bound.session.chat(chat, **said)))

    def _check_token(self, request: web.BaseRequest) -> None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key", "")
        if not hmac.compare_digest(sent.encode("utf-8", "replace"), self._expected):
            raise Problem(401, "wrong or missing API key: use the one given to the agent", "invalid_api_key")

    async def _streamed(
        self, request: web.BaseRequest, exchange: Exchange, session: CallSession, said: Mapping[str, str]
    ) -> web.StreamResponse:
        async with contextlib.aclosing(exchange.events(lambda chat: session.stream(chat, **said))) as events:
            first = await events.__anext__()  # a failure so far is an HTTP status, not an event
            response = web.StreamResponse(headers=_STREAM)
            await response.prepare(request)
            try:
                await response.write(first)
                async for event in events:
                    await response.write(event)
            except ConnectionError:
                raise
            except Exception as error:
                text = exchange.failed(_problem(error)).decode("utf-8", "replace")
                await response.write(self._service.masked(text).encode("utf-8", "backslashreplace"))
            await response.write_eof()
            return response


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, LightningError):
        return Problem.of(error)
    _log.error("the gateway failed", exc_info=error)
    return Problem(500, f"the gateway failed: {type(error).__name__}", None, kind="server_error")


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)


def _check_method(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        raise Problem(405, f"{request.method} is not allowed here: use {method}", "method_not_allowed")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_parse = json.JSONDecoder(parse_constant=_refuse_constant).decode


async def _body(request: web.BaseRequest) -> Body:
    try:
        body = _parse((await received(request)).decode())
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}", "invalid_json") from None
    if not isinstance(body, dict):
        raise Problem(400, "the body is not a JSON object", "invalid_json")
    return body


def _exchange(protocol: type[Exchange], body: Body, memory: Memory) -> Exchange:
    try:
        return protocol(body, memory)
    except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
        said = f"the body is not a request of {protocol.protocol}: {type(error).__name__}: {error}"
        raise Problem(400, said, "invalid_body") from error


def _models(roles: Mapping[str, Role], wanted: str) -> Body:
    """The names that an agent may ask for: roles, and the model names behind them. In both vendors' words."""
    names = list(dict.fromkeys([*roles, *(role.config.name for role in roles.values())]))
    models = {
        name: {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "lightningrun",
            "type": "model",
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
        }
        for name in names
    }
    if not wanted:
        ends = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return {"object": "list", "data": list(models.values()), **ends}
    if wanted not in models:
        raise Problem(404, f"the recipe has no model {wanted!r}: it has {', '.join(names)}", "model_not_found")
    return models[wanted]


def _json(
    data: Mapping[str, Json],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    masked: Callable[[str], str] | None = None,
) -> web.Response:
    body = dumps(data)
    if masked:
        body = masked(body.decode("utf-8", "replace")).encode("utf-8", "backslashreplace")
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
