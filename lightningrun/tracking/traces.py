"""A rollout as an MLflow trace: its tree as spans with tokens, cost and latency, the reward as feedback.

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

from lightningrun.tracking.rollout_tree import Node
from lightningrun.types import Json, Rollout, RolloutStatus, Usage

LIMIT = 40_000
"""Characters of one span's inputs or outputs; what is longer is cut, the run folder has it whole."""
PREVIEW = 1_000
_TYPES = {
    "agent": "AGENT", "llm": "LLM", "tool": "TOOL", "retriever": "RETRIEVER", "embedding": "EMBEDDING", "step": "CHAIN",
}  # fmt: skip
_NS = 1_000_000_000


def trace_id(run: str, seq: int) -> str:
    return "tr-" + hashlib.sha256(f"{run}/{seq}".encode()).hexdigest()[:32]


def build(
    rollout: Rollout, root: Node, *, id: str, experiment_id: str, run_id: str, tags: Mapping[str, str]
) -> tuple[TraceInfo, list[Span]]:
    """The trace of one rollout from its tree: its info (feedback included) and its spans, root first."""
    failed = rollout.status is not RolloutStatus.SUCCEEDED
    metadata = {"mlflow.sourceRun": run_id, "mlflow.trace.tokenUsage": json.dumps(_tokens(rollout.usage))}
    if rollout.cost_usd:
        metadata["mlflow.trace.cost"] = json.dumps({"total_cost": rollout.cost_usd})
    info = TraceInfo(
        trace_id=id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=int(root.start * 1000),
        state=TraceState.ERROR if failed else TraceState.OK,
        request_preview=_text(root.asked["question"])[:PREVIEW],
        response_preview=_text(rollout.output if rollout.output is not None else rollout.error)[:PREVIEW],
        client_request_id=rollout.key,
        execution_duration=int(rollout.duration_s * 1000),
        trace_metadata=metadata,
        tags={"mlflow.traceName": f"{rollout.stage}/{rollout.task_id}", **tags},
        assessments=_feedback(rollout, id, root.start),
    )
    about = {
        "lightningrun.status": rollout.status.value,
        "lightningrun.reward": rollout.score,
        "lightningrun.attempts": rollout.attempts,
        **({"lightningrun.agents": dict(rollout.agents)} if len(rollout.agents) > 1 else {}),
    }
    return info, list(_spans(id, root, about))


def _spans(id: str, root: Node, about: Mapping[str, Json]) -> Iterator[Span]:
    """Ids of ours are made from the trace's, so that a repeat overwrites; the framework's spans keep theirs."""
    ids: dict[Node, bytes] = {}
    parents = {child: node for _, node in root.walk() for child in node.children}
    for number, (_, node) in enumerate(root.walk(), start=1):
        ids[node] = bytes.fromhex(node.span.id) if node.span is not None else _id(id, number)
        parent = ids[parents[node]] if node is not root else None
        yield _span(id, ids[node], parent, node, about if node is root else {})


def _id(trace: str, number: int) -> bytes:
    return hashlib.sha256(f"{trace}/{number}".encode()).digest()[:8]


def _attributes(node: Node) -> dict[str, Json]:
    told = node.span.attributes if node.span is not None else {}
    found: dict[str, Json] = {name: value for name, value in told.items() if not name.startswith("mlflow.")}
    found["mlflow.spanType"] = _TYPES[node.kind] if node.call is None else "CHAT_MODEL"
    found["mlflow.spanInputs"] = _short(node.asked)
    found["mlflow.spanOutputs"] = _short(node.said)
    found["lightningrun.latency_s"] = node.duration_s
    if (call := node.call) is not None:
        found |= {
            "mlflow.message.format": "openai",
            "mlflow.chat.tokenUsage": _tokens(call.usage),
            "mlflow.llm.model": call.model,
            "lightningrun.role": call.role,
            "lightningrun.agent": call.agent,
            "lightningrun.attempts": call.attempts,
            "lightningrun.cached": call.cached,
        }
        if call.cost_usd is not None:
            found["mlflow.llm.cost"] = {"total_cost": call.cost_usd}
        if node.reward is not None:
            found["lightningrun.step_reward"] = node.reward
    elif node.kind == "agent":  # not under a name that MLflow adds up
        found |= {"lightningrun.tokens": node.usage.total_tokens, "lightningrun.cost_usd": node.cost_usd}
    return found


def _span(trace: str, id: bytes, parent: bytes | None, node: Node, about: Mapping[str, Json]) -> Span:
    attributes = {"mlflow.traceRequestId": trace, **_attributes(node), **about}
    record: dict[str, Any] = {
        "trace_id": base64.b64encode(bytes.fromhex(trace.removeprefix("tr-"))).decode(),
        "span_id": base64.b64encode(id).decode(),
        "parent_span_id": base64.b64encode(parent).decode() if parent else None,
        "name": node.name,
        "start_time_unix_nano": int(node.start * _NS),
        "end_time_unix_nano": int(node.end * _NS),
        "status": {"code": "STATUS_CODE_ERROR" if node.error else "STATUS_CODE_OK", "message": node.error[:PREVIEW]},
        "events": [],
        "attributes": {name: json.dumps(value) for name, value in attributes.items()},
    }
    return Span.from_dict(record)


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


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(value: Json) -> Json:
    """``value``, or its text cut short."""
    text = _text(value)
    return value if len(text) <= LIMIT else f"{text[:LIMIT]}… ({len(text) - LIMIT} more characters)"
