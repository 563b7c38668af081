"""OpenTelemetry's spans over HTTP (OTLP): what an agent's framework tells of a rollout, joined to it.

``POST .../v1/traces`` takes protobuf and JSON, compressed or not (aiohttp unpacks). Metrics and logs, which some
frameworks send along, are accepted and forgotten. Answers are those of the protocol, so that no exporter tries again:
what is not kept is a *partial success*; what cannot be read, 400 with a ``google.rpc.Status``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from aiohttp import web

from lightningrun.gateway.exchange import received
from lightningrun.gateway.problems import Problem
from lightningrun.types import AgentSpan, Json

TRACES = "traces"
ROUTES = frozenset({TRACES, "metrics", "logs"})
MAX_TEXT = 4_000
"""Characters of an attribute, a name or an error; what is longer is cut."""
_MAX_ATTRIBUTES = 64
_NS = 1_000_000_000
_JSON = "application/json"
_PROTOBUF = "application/x-protobuf"
_INVALID_ARGUMENT = 3
"""Of gRPC's codes."""


class SpanSink(Protocol):
    """Takes the spans of one rollout."""

    def add(self, spans: Sequence[AgentSpan]) -> int:
        """Returns how many of them it does not keep."""
        ...


async def export(request: web.BaseRequest, route: str, sink: SpanSink | None) -> web.Response:
    """Answer one export. Without a ``sink`` (no rollout runs at this URL any more) nothing is kept, which is said."""
    kind = _JSON if request.content_type == _JSON else _PROTOBUF
    lost = 0
    try:
        if request.method != "POST":
            raise Problem(405, f"{request.method} is not allowed here: use POST", None)
        body = await received(request)
        if route == TRACES:
            spans = await asyncio.to_thread(read, body, kind)
            lost = len(spans) if sink is None else sink.add(spans)
    except Problem as problem:
        return _answer(kind, status=problem.status, message=str(problem))
    return _answer(kind, lost=lost, message="not of a rollout that runs here, or more than are kept" if lost else "")


def caller(traceparent: str) -> str:
    """The id of the span that made a request, from its W3C ``traceparent`` header; "" if there is none in it."""
    parts = traceparent.split("-")
    return parts[2].lower() if len(parts) >= 4 and len(parts[2]) == 16 else ""


def read(body: bytes, kind: str) -> list[AgentSpan]:
    """The spans of an ``ExportTraceServiceRequest``. Raises Problem (400) if it is none."""
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    export = ExportTraceServiceRequest()
    try:
        if kind == _JSON:
            json_format.ParseDict(_with_plain_ids(json.loads(body)), export, ignore_unknown_fields=True)
        else:
            export.ParseFromString(body)
        return [_span(span, inner.scope.name) for outer in export.resource_spans for inner in outer.scope_spans
                for span in inner.spans]  # fmt: skip
    except (DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(400, f"the body is no {kind} of OTLP traces: {error}"[:500], None) from None


def _with_plain_ids(said: Any) -> Any:
    """OTLP writes ids in hexadecimal where protobuf's own JSON has base64. Raises ValueError, TypeError..."""
    import base64

    for span in (s for outer in said.get("resourceSpans", ()) for inner in outer.get("scopeSpans", ())
                 for s in inner.get("spans", ())):  # fmt: skip
        span.pop("links", None)
        for name in ("traceId", "spanId", "parentSpanId"):
            span[name] = base64.b64encode(bytes.fromhex(span.get(name) or "")).decode()
    return said


def _span(span: Any, scope: str) -> AgentSpan:
    if len(span.span_id) != 8:
        raise ValueError("a span's id has 8 bytes")
    raised = [dict(_flat(event.attributes)) for event in span.events if event.name == "exception"]
    problem = ""
    if span.status.code == 2:
        thrown = raised[-1] if raised else {}
        problem = span.status.message or f"{thrown.get('exception.type')}: {thrown.get('exception.message')}"
    return AgentSpan(
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        trace=span.trace_id.hex(),
        name=span.name[:MAX_TEXT],
        started_at=round(span.start_time_unix_nano / _NS, 6),
        duration_s=round(max(0, span.end_time_unix_nano - span.start_time_unix_nano) / _NS, 6),
        error=problem[:MAX_TEXT],
        scope=scope[:MAX_TEXT],
        attributes=dict(_flat(span.attributes)),
    )


def _flat(attributes: Iterable[Any]) -> Iterator[tuple[str, Json]]:
    for number, pair in enumerate(attributes):
        if number == _MAX_ATTRIBUTES:
            return
        value = _value(pair.value)
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False)
        yield pair.key[:MAX_TEXT], value[:MAX_TEXT] if isinstance(value, str) else value


def _value(value: Any) -> Json:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(inner) for inner in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None


def _answer(kind: str, message: str, lost: int = 0, status: int = 200) -> web.Response:
    """An ``ExportTraceServiceResponse`` that tells how many spans were lost, or a ``Status`` with what is wrong."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

    bad = status != 200
    if kind == _JSON:
        partial = {"partialSuccess": {"rejectedSpans": lost, "errorMessage": message}} if lost else {}
        body = json.dumps({"code": _INVALID_ARGUMENT, "message": message} if bad else partial).encode()
    else:
        # On the wire a Status is what a partial success is: a number in field 1, a text in field 2.
        part = messages.ExportTracePartialSuccess(
            rejected_spans=_INVALID_ARGUMENT if bad else lost, error_message=message
        )
        whole = messages.ExportTraceServiceResponse(partial_success=part if lost else None)
        body = (part if bad else whole).SerializeToString()
    return web.Response(body=body, status=status, content_type=kind)
