"""OpenTelemetry over HTTP: spans reach the rollout of their URL, in both encodings; all else is refused."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from lightningrun.rollouts.spans import MAX_CHARS, MAX_SPANS, Spans
from lightningrun.types import AgentSpan
from tests.gateway.conftest import House, Opens

SPAN: dict[str, Any] = {
    "traceId": "5b8efff798038103d269b633813fc60c",
    "spanId": "eee19b7ec3c1b174",
    "parentSpanId": "eee19b7ec3c1b173",
    "name": "look up",
    "startTimeUnixNano": "4102444800000000000",
    "endTimeUnixNano": "4102444801500000000",
    "kind": 2,
    "attributes": [
        {"key": "text", "value": {"stringValue": "x" * 5000}},
        {"key": "number", "value": {"intValue": "7"}},
        {"key": "share", "value": {"doubleValue": 0.5}},
        {"key": "list", "value": {"arrayValue": {"values": [{"stringValue": "a"}, {"boolValue": True}]}}},
        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"intValue": 1}}]}}},
        {"key": "none", "value": {}},
    ],
    "links": [{"traceId": "zz", "spanId": "zz"}],
    "status": {"code": 2},
    "events": [{"name": "exception", "attributes": [{"key": "exception.type", "value": {"stringValue": "KeyError"}},
                                                    {"key": "exception.message", "value": {"stringValue": "'x'"}}]}],
    "unknown": 1,
}  # fmt: skip


def body_of(*spans: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"scope": {"name": "lib"}, "spans": list(spans)}]}]}).encode()


def listening(h: House) -> Spans:
    spans = Spans(0.0)
    h.gateway.bind(h.url.split("/")[-2], h.session, spans)
    return spans


async def post(h: House, data: bytes, path: str = "traces", **headers: str) -> tuple[int, str, bytes]:
    sent = {**h.headers, "Content-Type": "application/json", **headers}
    async with aiohttp.ClientSession() as http, http.post(f"{h.url}/{path}", data=data, headers=sent) as answer:
        return answer.status, answer.content_type, await answer.read()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
async def test_the_sdk_s_own_exporter_is_understood(house: Opens, compression: Compression) -> None:
    async with house("ok") as h:
        spans = listening(h)
        exporter = OTLPSpanExporter(f"{h.url}/traces", headers=h.headers, compression=compression)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        def work() -> None:
            tracer = provider.get_tracer("my.framework")
            with tracer.start_as_current_span("outer", attributes={"n": 3, "words": ["a", "b"]}):
                try:
                    with tracer.start_as_current_span("inner", kind=trace.SpanKind.CLIENT):
                        raise ValueError("no such table")
                except ValueError:
                    pass

        await asyncio.to_thread(work)
        outer, inner = spans.to_json()
        assert (outer["name"], outer["parent"], outer["error"]) == ("outer", "", "")
        assert outer["attributes"] == {"n": 3, "words": '["a", "b"]'} and outer["scope"] == "my.framework"
        assert inner["parent"] == outer["id"] and inner["trace"] == outer["trace"]
        assert inner["error"] == "ValueError: no such table"
        assert outer["started_at"] <= inner["started_at"] and outer["duration_s"] >= inner["duration_s"] > 0


@pytest.mark.parametrize("packed", [False, True])
async def test_json_is_understood(house: Opens, packed: bool) -> None:
    async with house("ok") as h:
        spans = listening(h)
        data = gzip.compress(body_of(SPAN)) if packed else body_of(SPAN)
        assert await post(h, data, **({"Content-Encoding": "gzip"} if packed else {})) == (
            200, "application/json", b"{}",
        )  # fmt: skip
        (span,) = spans.to_json()
        assert AgentSpan(**span) == AgentSpan(
            "eee19b7ec3c1b174", "eee19b7ec3c1b173", "5b8efff798038103d269b633813fc60c", "look up", 4102444800.0, 1.5,
            "KeyError: 'x'", "lib",
            {"text": "x" * 4000, "number": 7, "share": 0.5, "list": '["a", true]', "map": '{"k": 1}', "none": None},
        )  # fmt: skip


BAD: Sequence[tuple[bytes, dict[str, str]]] = [
    (b"{", {}),
    (b"[]", {}),
    (b"7", {}),
    (b"\xff", {}),
    (b'{"resourceSpans": 7}', {}),
    (b'{"resourceSpans": [[]]}', {}),
    (body_of({**SPAN, "spanId": "not hex"}), {}),
    (body_of({**SPAN, "spanId": "eee1"}), {}),
    (body_of({**SPAN, "startTimeUnixNano": "soon"}), {}),
    (body_of({**SPAN, "attributes": 7}), {}),
    (b"[" * 50_000, {}),
    (b"not gzip", {"Content-Encoding": "gzip"}),
    (gzip.compress(b"x" * (20 << 20)), {"Content-Encoding": "gzip"}),
    (b"\x0a\xff\xff\xff", {"Content-Type": "application/x-protobuf"}),
    (body_of(SPAN), {"Content-Type": "application/x-protobuf"}),
]


async def test_malformed_bodies_are_refused_and_nothing_is_kept(
    house: Opens, capfd: pytest.CaptureFixture[str]
) -> None:
    async with house("ok") as h:
        spans = listening(h)
        for data, headers in BAD:
            status, kind, answer = await post(h, data, **headers)
            assert status == (413 if len(data) > 15_000 and "Content-Encoding" in headers else 400), data[:40]
            assert kind == headers.get("Content-Type", "application/json")
            assert b"the body" in answer, "in the encoding of the request: google.rpc.Status"
        assert spans.to_json() == [] and h.session.refs == [], "neither spans nor calls"
        assert (await post(h, body_of(SPAN)))[0] == 200, "and the gateway goes on"
    assert "Traceback" not in capfd.readouterr().err


async def test_a_rollout_keeps_so_many_spans_and_says_what_it_leaves_out(house: Opens) -> None:
    async with house("ok") as h:
        spans = listening(h)
        many = [{**SPAN, "spanId": f"{number:016x}"} for number in range(1, MAX_SPANS + 31)]
        _, _, answer = await post(h, body_of(*many))
        assert json.loads(answer)["partialSuccess"]["rejectedSpans"] == 30
        await post(h, body_of(*many[:5]))
        kept = spans.to_json()
        assert len(kept) == MAX_SPANS and kept[0]["attributes"] and not kept[-1]["attributes"]
        assert len(json.dumps(kept)) < MAX_CHARS + 300 * MAX_SPANS


async def test_what_is_of_an_earlier_rollout_or_of_none_is_not_kept(house: Opens) -> None:
    async with house("ok") as h:
        spans = Spans(5_000_000_000.0)
        h.gateway.bind(h.url.split("/")[-2], h.session, spans)
        assert json.loads((await post(h, body_of(SPAN)))[2])["partialSuccess"]["rejectedSpans"] == 1
        h.gateway.release(h.url.split("/")[-2])
        status, _, answer = await post(h, body_of(SPAN))
        assert status == 200 and json.loads(answer)["partialSuccess"]["rejectedSpans"] == 1
        protobuf = {"Content-Type": "application/x-protobuf"}
        _, _, answer = await post(h, b"", **protobuf)
        assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
        assert spans.to_json() == []


async def test_the_token_is_needed_and_metrics_and_logs_are_taken_and_forgotten(house: Opens) -> None:
    async with house("ok") as h:
        spans = listening(h)
        assert (await post(h, body_of(SPAN), Authorization="Bearer wrong"))[0] == 401
        assert [(await post(h, b"{}", path))[0] for path in ("metrics", "logs")] == [200, 200]
        assert spans.to_json() == [] and h.session.refs == []


async def test_a_call_knows_the_span_that_its_request_names(house: Opens) -> None:
    async with house("ok") as h:
        for sent in ("00-5b8efff798038103d269b633813fc60c-EEE19b7ec3c1b174-01", "nonsense", "00-a-b-c"):
            await h.client.chat.completions.create(
                model="policy", messages=[{"role": "user", "content": sent}], extra_headers={"traceparent": sent}
            )
        assert [h.service.read(ref).span for ref in h.session.refs] == ["eee19b7ec3c1b174", "", ""]
