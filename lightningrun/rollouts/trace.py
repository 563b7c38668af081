"""The LLM calls of a rollout as a reward function reads them."""

from __future__ import annotations

from lightningrun.types import LLMCall, TraceCall


def trace_call(call: LLMCall) -> TraceCall:
    """``call`` with its question and its answer taken out of the bodies."""
    request = {key: value for key, value in call.request.items() if key != "messages"}
    choices = (call.response or {}).get("choices") or [{}]
    message = choices[0].get("message") or {"content": choices[0].get("text")}
    return TraceCall(
        role=call.role,
        model=call.model,
        agent=call.agent,
        messages=list(call.request.get("messages") or ()),
        answer=_text(message.get("content")),
        tool_calls=list(message.get("tool_calls") or ()),
        error=call.error,
        usage={"prompt_tokens": call.usage.prompt_tokens, "completion_tokens": call.usage.completion_tokens},
        cost_usd=call.cost_usd,
        started_at=call.started_at,
        duration_s=call.duration_s,
        cached=call.cached,
        request=request,
        response=None if call.response is None else dict(call.response),
    )


def _text(content: object) -> str:
    """Some providers answer in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
