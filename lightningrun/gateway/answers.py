"""What the gateway says: completions, events and errors in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lightningrun.models.provider import dumps
from lightningrun.types import Json

if TYPE_CHECKING:
    from lightningrun.models.provider import RefusedRequest
    from lightningrun.models.role import Role

_NO_RETRY = {"x-should-retry": "false"}
"""Tells OpenAI's clients not to try again: the gateway has done so already."""


class ClientError(Exception):
    """The request is wrong; ``code`` is OpenAI's ``error.code``."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def response(self) -> web.Response:
        return error(self.status, str(self), "invalid_request_error", error_code=self.code, param=self.param)


def error(
    status: int, message: str, error_type: str, *, error_code: str | None = None, param: str | None = None
) -> web.Response:
    """An error as OpenAI's clients expect it."""
    detail = {"message": message, "type": error_type, "param": param, "code": error_code}
    return _json({"error": detail}, status, _NO_RETRY)


def refused(refusal: RefusedRequest, masked: Callable[[str], str]) -> web.Response:
    """The provider's own answer to a request that it found wrong."""
    detail = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": None}
    return web.Response(
        body=masked(json.dumps({"error": {**detail, **refusal.detail}})).encode("utf-8", "backslashreplace"),
        status=refusal.status,
        content_type="application/json",
        headers=_NO_RETRY,
    )


def completion(body: Mapping[str, Json]) -> web.Response:
    return _json(body, 200)


def models(roles: Mapping[str, Role]) -> web.Response:
    """The names that an agent may ask for: roles, and the model names behind them."""
    names: Iterable[str] = dict.fromkeys([*roles, *(role.config.name for role in roles.values())])
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "lightningrun"} for name in names]
    return _json({"object": "list", "data": data}, 200)


def event(data: Mapping[str, Json]) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(data) + b"\n\n"


def _json(data: Mapping[str, Json], status: int, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=dumps(data), status=status, content_type="application/json", headers=headers)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


parse = json.JSONDecoder(parse_constant=_refuse_constant).decode
