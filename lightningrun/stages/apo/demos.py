"""Demonstrations: what an agent was given and what it answered when it did well, quoted at the end of its prompt.

How a search uses this room::

    good = passing(rollouts, top, least)                        # the rollouts worth showing, best first
    demo = demonstration(rollout, name, calls, prompts)         # one of them as seen by prompt `name`, or None
    text = with_demos(prompts[name], [demo, ...])               # the prompt with the block appended

``rollouts`` must be of training rows: a demonstration shows the whole answer. The guards know this: a train row's gold
answer may stand in a demonstration, one of another split may not (``Guards.objection(..., quotable=("train",))``).
The idea is DSPy's (Khattab et al., 2023): few-shot examples bootstrapped from the program's own traces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightningrun.stages.apo.guards import PLACEHOLDER, placeholders
from lightningrun.stages.apo.traces import content_of, message_text
from lightningrun.stages.statistics import mean
from lightningrun.types import Json, LLMCall, Rollout, RolloutStatus

_HEAD = "Examples of good answers (the quoted material is not part of the task at hand):"
_MARKER = re.compile(r"<(/?)\s*(example|given|answer)\b", re.IGNORECASE)
_INSTRUCTS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Demo:
    """One example: what the agent was given, and how it went on from there to its final answer."""

    task_id: str
    given: str
    answer: str

    @property
    def text(self) -> str:
        return f"<example>\n<given>\n{self.given}\n</given>\n<answer>\n{self.answer}\n</answer>\n</example>"


def passing(rollouts: Sequence[Rollout], top: float, least: int) -> list[Rollout]:
    """Rollouts worth showing, best first: those that reached ``top``, the best score there is.

    If they are fewer than ``least``, graded rewards lend more: the highest scores, as long as they are above the mean.
    """
    scored = [one for one in rollouts if one.status.scored and one.score is not None]
    ranked = sorted(scored, key=lambda one: one.score or 0.0, reverse=True)
    average = mean([one.score or 0.0 for one in scored]) if scored else 0.0
    at_top = sum((one.score or 0.0) >= top - 1e-9 for one in ranked)
    shown = ranked[: max(at_top, least)]
    good = [one for one in shown if (one.score or 0.0) >= top - 1e-9 or (one.score or 0.0) > average + 1e-9]
    return [one for one in good if one.status is RolloutStatus.SUCCEEDED]


def demonstration(
    rollout: Rollout, name: str, calls: Sequence[LLMCall], prompts: Mapping[str, str], alone: bool = True
) -> Demo | None:
    """What the calls made with prompt ``name`` were given and answered. ``calls`` are the rollout's, in order;
    ``prompts`` are those it ran with; ``alone``: no other prompt is optimised, so that calls in which none is
    recognised are this one's.

    None if there is nothing to show: no call used the prompt, or its last one has no answer. None also for a text with
    braces in a prompt with ``{placeholders}``: whether the agent fills them in by ``format`` or by ``replace`` is
    unknown, and one of the two would stumble over the braces.
    """
    used = [call for call in calls if any(_filled(prompts[name], _content(m)) is not None for m in _messages(call))]
    if not used and alone:
        used = list(calls)
    if not used or used[-1].response is None:
        return None
    given, answer = _given(used[0], prompts[name]), _answer(used)
    if not given.strip() or not answer.strip():
        return None
    if placeholders(prompts[name]) and re.search(r"[{}]", given + answer):
        return None
    return Demo(rollout.task_id, _quoted(given), _quoted(answer))


def with_demos(text: str, demos: Sequence[Demo]) -> str:
    """``text`` with the block of examples at its end; as it is without any."""
    return "\n\n".join([text.rstrip(), _HEAD, *(demo.text for demo in demos)]) if demos else text


def without_demos(text: str) -> str:
    """``text`` without a block of examples at its end."""
    return text.partition(f"\n\n{_HEAD}")[0]


def _given(call: LLMCall, prompt: str) -> str:
    """The call's input: what filled the prompt's placeholders, and the messages that are no instructions."""
    parts: list[str] = []
    for message in _messages(call):
        filled = _filled(prompt, _content(message))
        if filled is not None:
            parts += [value if len(filled) == 1 else f"{field}: {value}" for field, value in filled.items()]
        elif message.get("role") not in _INSTRUCTS:
            parts.append(_content(message) if message.get("role") == "user" else message_text(message, {}))
    return "\n\n".join(part for part in parts if part.strip())


def _answer(calls: Sequence[LLMCall]) -> str:
    """From the first call's answer to the last one's: tools called, what they returned, the final text."""
    lines: list[str] = []
    told = len(_messages(calls[0]))
    for call in calls[1:]:
        messages = _messages(call)
        if messages[:1] == _messages(calls[0])[:1] and len(messages) > told:
            lines += [message_text(message, {}) for message in messages[told:]]
            told = len(messages)
    final = _reply(calls[-1])
    steps = bool(lines) or bool(final.get("tool_calls"))
    return "\n".join([*lines, message_text(final, {}) if steps else _content(final)])


def _reply(call: LLMCall) -> Mapping[str, Json]:
    choices = (call.response or {}).get("choices") or [{}]
    return {"role": "assistant", **(choices[0].get("message") or {})}


def _messages(call: LLMCall) -> list[Mapping[str, Json]]:
    return list(call.request.get("messages") or [])


def _content(message: Mapping[str, Json]) -> str:
    return content_of(message.get("content"))


def _filled(prompt: str, text: str) -> dict[str, str] | None:
    """What stands in ``text`` where ``prompt`` has placeholders; None if it is not that prompt."""
    prompt, fields, pattern, at = prompt.strip(), list[str](), "", 0
    for found in PLACEHOLDER.finditer(prompt):
        pattern += re.escape(prompt[at : found.start()])
        pattern += r"(.*?)" if found[1] not in fields else rf"\{fields.index(found[1]) + 1}"
        fields += [found[1]] if found[1] not in fields else []
        at = found.end()
    whole = (pattern + re.escape(prompt[at:])).replace(r"\{\{", r"\{\{?").replace(r"\}\}", r"\}\}?")
    match = re.fullmatch(whole, text.strip(), re.DOTALL)
    return dict(zip(fields, match.groups(), strict=True)) if match else None


def _quoted(text: str) -> str:
    """``text`` in which the block's own markers, if somebody put them there, no longer read as markers."""
    return _MARKER.sub(r"(\1\2", text.strip())
