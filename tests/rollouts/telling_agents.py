"""Agents that tell of themselves by OpenTelemetry, as a framework's instrumentation does. None imports lightningrun."""

from __future__ import annotations

import json
import os
import urllib.request

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("a.framework")


def ask(text, system, says_who=False):
    body = {"model": "policy", "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    if says_who:
        inject(headers)
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def graph(question, says_who=False):
    """Writer, tool, checker: spans as OpenInference names them."""
    with tracer.start_as_current_span("graph", attributes={"openinference.span.kind": "CHAIN"}):
        with (
            tracer.start_as_current_span("writer", attributes={"openinference.span.kind": "AGENT"}),
            tracer.start_as_current_span("model", attributes={"openinference.span.kind": "LLM"}),
        ):
            query = ask(question, "You are the writer.", says_who)
        with tracer.start_as_current_span("run_sql", attributes={"gen_ai.operation.name": "execute_tool"}) as span:
            span.set_attribute("input.value", query)
            span.set_attribute("output.value", os.environ.get("A_SECRET", "no secret"))
        with tracer.start_as_current_span("checker", attributes={"openinference.span.kind": "AGENT"}):
            return ask(query, "You are the checker.", says_who)


def hanging(question):
    with tracer.start_as_current_span("first"):
        ask(question, "You are the writer.")
    import time

    time.sleep(60)


def variables(question):
    ask(question, "You are the writer.")
    return sorted(name for name in os.environ if name.startswith("OTEL_"))


def no_variables(output):
    """A reward: its own tools' telemetry is none of ours."""
    return float(bool(output) and not any(name.startswith("OTEL_") for name in os.environ))


def main():
    """As a command: its SDK flushes when the process ends."""
    print(json.dumps(graph(json.loads(os.environ["LIGHTNINGRUN_TASK"])["question"])))


if __name__ == "__main__":
    main()
