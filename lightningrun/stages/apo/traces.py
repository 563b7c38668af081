"""Rollouts written down for the coach: what was asked, what the agent said and saw, and what the reward said.

Everything here came from the agent, its tools and the data. It is quoted between markers that it cannot forge, and
cut in the middle when long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from lightningrun.types import Json, LLMCall, Rollout, Task

CHARS_PER_TOKEN = 4
_MARKER = re.compile(r"<(/?)\s*(failure|current_prompt|critique)\b", re.IGNORECASE)


def neutralised(text: str) -> str:
    """``text`` in which our own markers, if somebody put them there, no longer read as markers."""
    return _MARKER.sub(r"(\1\2", text)


def shortened(text: str, tokens: int) -> str:
    """At most about so many tokens: the beginning and the end, with the middle cut out and said to be."""
    limit = tokens * CHARS_PER_TOKEN
    if len(text) <= limit:
        return text
    half = max(0, limit // 2)
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[len(text) - half :]}"


def describe_failure(
    rollout: Rollout, task: Task, calls: Sequence[LLMCall], prompts: Mapping[str, str], max_tokens: int
) -> str:
    """One failed rollout as text: the trace is cut to ``max_tokens``, the feedback to a quarter of that."""
    trace = _transcript(calls, prompts) or f"input: {_text(_shown_fields(task))}"
    if rollout.output is not None:
        trace += f"\n[final answer]\n{_text(rollout.output)}"
    feedback = rollout.feedback or rollout.error or "the answer was wrong"
    score = "none" if rollout.score is None else f"{rollout.score:g}"
    return (
        f"{shortened(neutralised(trace), max_tokens)}\n"
        f"[score] {score}{_metrics(rollout)}\n"
        f"[feedback] {shortened(neutralised(feedback), max(1, max_tokens // 4))}"
    )


def _metrics(rollout: Rollout) -> str:
    """What the score is made of, if the reward says so: the coach sees which part failed."""
    parts = ", ".join(f"{name} {value:g}" for name, value in sorted(rollout.metrics.items()))
    return f" ({parts})" if parts else ""


def _transcript(calls: Sequence[LLMCall], prompts: Mapping[str, str]) -> str:
    """The messages of all calls in order, each once: later calls of a conversation repeat the earlier ones. Where
    there are several agents, each change of who asks is said."""
    lines: list[str] = []
    conversations: dict[str, list[str]] = {}
    agents = {call.agent for call in calls}
    several = any(agents) and (len(agents) > 1 or len(prompts) > 1)
    asks: str | None = None
    for call in calls:
        if several and call.agent != asks:
            asks = call.agent
            lines.append(f"[agent {asks!r} asks]" if asks else "[an unnamed agent asks]")
        told = conversations.get(call.agent, [])
        messages = [message_text(message, prompts) for message in call.request.get("messages") or []]
        common = 0
        while common < min(len(told), len(messages)) and told[common] == messages[common]:
            common += 1
        lines += messages[common:]
        answer = _answer(call, prompts)
        lines.append(answer)
        conversations[call.agent] = [*messages, answer]
    return "\n".join(lines)


def _answer(call: LLMCall, prompts: Mapping[str, str]) -> str:
    choices = (call.response or {}).get("choices") or []
    if not choices:
        return f"[no answer] {call.error}"
    return message_text({"role": "assistant", **(choices[0].get("message") or {})}, prompts)


def message_text(message: Mapping[str, Json], prompts: Mapping[str, str]) -> str:
    """One message as lines of a transcript; a prompt of ``prompts`` that stands in it whole is only named."""
    role = message.get("role", "?")
    text = content_of(message.get("content"))
    for name, prompt in prompts.items():
        if text.strip() and text.strip() == prompt.strip():
            # Of several prompts not all need stand above: some are not optimised, or not in this proposal.
            return f"[{role}] (the prompt {name!r}{' as it stands above' if len(prompts) == 1 else ''})"
    calls = "".join(
        f"\n[calls tool] {(call.get('function') or {}).get('name')}({(call.get('function') or {}).get('arguments')})"
        for call in message.get("tool_calls") or []
    )
    return f"[{role}] {text}{calls}"


def content_of(content: Json) -> str:
    """The text of a message's content, be it a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"({part.get('type')})")) for part in content if isinstance(part, dict))
    return ""


def _shown_fields(task: Task) -> dict[str, Json]:
    """Without calls to quote, only the row's id is safe to show: other fields may hold the gold answer."""
    return {"id": task.id}


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
