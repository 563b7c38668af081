"""A rollout as an MLflow trace: one AGENT span, its LLM calls and tool calls below, the reward as feedback.

Traces are built from the journal with ids made from (run, sequence number) and written as whole records, which stores
some hundred a second; MLflow's decorators and their queue, made for live programs, store a few and lose bursts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow.entities import AssessmentSource, Feedback, Span, TraceInfo, TraceLocation, TraceState

from lightningrun.types import Json, LLMCall, Rollout, RolloutStatus, Usage

LIMIT = 40_000
"""Characters of one span's inputs or outputs; what is longer is cut, the run folder has it whole."""
PREVIEW = 1_000
_NS = 1_000_000_000


def trace_id(run: str, seq: int) -> str:
    return "tr-" + hashlib.sha256(f"{run}/{seq}".encode()).hexdigest()[:32]


def build(
    rollout: Rollout, calls: list[LLMCall], *, id: str, experiment_id: str, run_id: str, tags: Mapping[str, str]
) -> tuple[TraceInfo, list[Span]]:
    """The trace of one rollout: its info (feedback included) and its spans, root first."""
    failed = rollout.status is not RolloutStatus.SUCCEEDED
    question = _asked(calls)
    start = rollout.started_at or (calls[0].started_at if calls else 0.0)
    metadata = {"mlflow.sourceRun": run_id, "mlflow.trace.tokenUsage": json.dumps(_tokens(rollout.usage))}
    if rollout.cost_usd:
        metadata["mlflow.trace.cost"] = json.dumps({"total_cost": rollout.cost_usd})
    info = TraceInfo(
        trace_id=id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=int(start * 1000),
        state=TraceState.ERROR if failed else TraceState.OK,
        request_preview=question[:PREVIEW],
        response_preview=_text(rollout.output if rollout.output is not None else rollout.error)[:PREVIEW],
        client_request_id=rollout.key,
        execution_duration=int(rollout.duration_s * 1000),
        trace_metadata=metadata,
        tags={"mlflow.traceName": f"{rollout.stage}/{rollout.task_id}", **tags},
        assessments=_feedback(rollout, id, start),
    )
    attributes: dict[str, Json] = {
        "mlflow.spanType": "AGENT",
        "mlflow.spanInputs": {"task": rollout.task_id, "question": question},
        "mlflow.spanOutputs": _short(rollout.output),
        "lightningrun.status": rollout.status.value,
        "lightningrun.attempts": rollout.attempts,
    }
    spans = [_span(id, 1, None, "agent", start, rollout.duration_s, attributes, rollout.error if failed else "")]
    for number, call in enumerate(calls):
        spans += _call_spans(id, number, call, calls[number + 1] if number + 1 < len(calls) else None)
    return info, spans


def _call_spans(id: str, number: int, call: LLMCall, following: LLMCall | None) -> Iterator[Span]:
    attributes: dict[str, Json] = {
        "mlflow.spanType": "CHAT_MODEL",
        "mlflow.spanInputs": _short(dict(call.request)),
        "mlflow.spanOutputs": _short(call.response),
        "mlflow.message.format": "openai",
        "mlflow.chat.tokenUsage": _tokens(call.usage),
        "mlflow.llm.model": call.model,
        "lightningrun.role": call.role,
        "lightningrun.cached": call.cached,
    }
    if call.cost_usd is not None:
        attributes["mlflow.llm.cost"] = {"total_cost": call.cost_usd}
    span = 2 + 100 * number
    yield _span(id, span, 1, call.model or call.role, call.started_at, call.duration_s, attributes, call.error)
    if following is None:
        return
    # A tool ran in the agent between two calls: its arguments are in the first answer, its result in the next request.
    results = {
        message.get("tool_call_id"): message.get("content")
        for message in following.request.get("messages", [])
        if isinstance(message, Mapping) and message.get("role") == "tool"
    }
    began = call.started_at + call.duration_s
    for tool, wanted in enumerate(_tool_calls(call), 1):
        if wanted.get("id") in results:
            function = wanted.get("function") or {}
            facts = {
                "mlflow.spanType": "TOOL",
                "mlflow.spanInputs": _short(function.get("arguments")),
                "mlflow.spanOutputs": _short(results[wanted["id"]]),
            }
            name = str(function.get("name") or "tool")
            yield _span(id, span + tool, 1, name, began, max(0.0, following.started_at - began), facts)


def _tool_calls(call: LLMCall) -> list[Mapping[str, Any]]:
    try:
        wanted = (call.response or {})["choices"][0]["message"].get("tool_calls") or []
    except (KeyError, IndexError, TypeError, AttributeError):
        return []
    return [one for one in wanted[:98] if isinstance(one, Mapping)]


def _span(
    trace: str,
    number: int,
    parent: int | None,
    name: str,
    start: float,
    duration_s: float,
    attributes: Mapping[str, Json],
    error: str = "",
) -> Span:
    record: dict[str, Any] = {
        "trace_id": base64.b64encode(bytes.fromhex(trace.removeprefix("tr-"))).decode(),
        "span_id": _span_id(number),
        "parent_span_id": _span_id(parent) if parent else None,
        "name": name,
        "start_time_unix_nano": int(start * _NS),
        "end_time_unix_nano": int((start + duration_s) * _NS),
        "status": {"code": "STATUS_CODE_ERROR" if error else "STATUS_CODE_OK", "message": error[:PREVIEW]},
        "events": [],
        "attributes": {k: json.dumps(v) for k, v in {"mlflow.traceRequestId": trace, **attributes}.items()},
    }
    return Span.from_dict(record)


def _span_id(number: int) -> str:
    return base64.b64encode(number.to_bytes(8, "big")).decode()


def _feedback(rollout: Rollout, id: str, start: float) -> list[Feedback]:
    """The reward, or why there is none; then the reward's own metrics. Ids are made, so that a repeat overwrites."""
    now = int((start + rollout.duration_s) * 1000)
    source = AssessmentSource(source_type="CODE", source_id="reward")
    values: dict[str, float | None] = {"reward": rollout.score, **rollout.metrics}
    made = []
    for name, value in values.items():
        usable = isinstance(value, (int, float)) and math.isfinite(value)
        words = (rollout.feedback or rollout.error) if name == "reward" else None
        feedback = Feedback(
            name=name,
            value=float(value) if usable and value is not None else None,
            error=None if usable else f"{rollout.status.value}: {rollout.error or rollout.feedback}"[:PREVIEW],
            rationale=words[:LIMIT] if words else None,
            source=source,
            trace_id=id,
            create_time_ms=now,
            last_update_time_ms=now,
        )
        feedback.assessment_id = "a-" + hashlib.sha256(f"{id}/{name}".encode()).hexdigest()[:32]
        made.append(feedback)
    return made


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _asked(calls: list[LLMCall]) -> str:
    messages = calls[0].request.get("messages", []) if calls else []
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return _text(said[-1]) if said else ""


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Json) -> Json:
    """``value``, or its text cut short."""
    text = _text(value)
    return value if len(text) <= LIMIT else f"{text[:LIMIT]}… ({len(text) - LIMIT} more characters)"
