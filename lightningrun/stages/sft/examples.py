"""What is imitated: chats as token ids, and which of the tokens the policy is to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightningrun.errors import UsageError
from lightningrun.models.local.chat import template_messages
from lightningrun.models.local.tokenizer import ChatTokenizer
from lightningrun.models.provider import Body, RefusedRequest
from lightningrun.types import LLMCall, Rollout

SAYS = ("role", "content", "tool_calls")


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation. ``own`` are the indices of the messages that the policy said, where ``None`` means all of the
    assistant's."""

    messages: list[Body]
    tools: list[Body] | None = None
    own: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a chat and, for each, whether it is learned."""

    ids: list[int]
    learn: list[bool]


def chats_of(
    rollouts: Iterable[Rollout], read: Callable[[int], LLMCall], min_reward: float, roles: Collection[str],
    agents: Collection[str] = (),
) -> Iterator[Chat]:  # fmt: skip
    """The conversations of the rollouts that earned at least ``min_reward``, each once.

    A call whose messages go on from an earlier call and its answer stands for that one too. ``agents`` empty: all.
    """
    for rollout in rollouts:
        if not rollout.status.scored or rollout.score is None or rollout.score < min_reward - 1e-9:
            continue
        calls = [read(ref) for ref in rollout.call_refs]
        calls = [
            call for call in calls
            if call.response is not None and call.role in roles and call.protocol != "embeddings"
            and (not agents or call.agent in agents)
        ]  # fmt: skip
        yield from _longest(calls)


def _longest(calls: Sequence[LLMCall]) -> Iterator[Chat]:
    told = [[_said(message) for message in _messages(call)] for call in calls]
    answers = {json.dumps(spoken[-1], sort_keys=True) for spoken in told}
    for index, (call, spoken) in enumerate(zip(calls, told, strict=True)):
        if any(other[: len(spoken)] == spoken for place, other in enumerate(told) if place > index):
            continue
        own = frozenset(
            place
            for place, message in enumerate(spoken)
            if message["role"] == "assistant" and json.dumps(message, sort_keys=True) in answers
        )
        yield Chat(_messages(call), call.request.get("tools") or None, own)


def _messages(call: LLMCall) -> list[Body]:
    assert call.response is not None
    answer = (call.response.get("choices") or [{}])[0].get("message") or {}
    return [*(call.request.get("messages") or []), {"role": "assistant", **answer}]


def _said(message: Body) -> Body:
    """A message by what it says: answers come back to a model with fields added or left out."""
    return {key: message.get(key) or "" for key in SAYS}


def rewritten(chats: Iterable[Chat], named: str) -> Iterator[Chat]:
    """The chats with what ``module:function`` makes of the policy's texts. Raises UsageError if that is no text."""
    rewrite = _named(named, "rewrite")
    for chat in chats:
        messages = []
        for index, message in enumerate(chat.messages):
            text = message.get("content")
            own = message.get("role") == "assistant" and (chat.own is None or index in chat.own)
            if own and isinstance(text, str) and text:
                said = rewrite(text)
                if not isinstance(said, str) or not said:
                    raise UsageError(f"{named} made {said!r} of the answer {text[:200]!r}", where="rewrite")
                message = {**message, "content": said}
            messages.append(message)
        yield replace(chat, messages=messages)


def read_chats(path: Path) -> Iterator[Chat]:
    """The chats of a JSONL file, ``{"messages": [...], "tools": [...]}`` a line. Raises UsageError with file:line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the chats cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}:1"
        try:
            row = json.loads(line)
            messages, tools = row["messages"], row.get("tools")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"not a chat: {error!r}", where=where, hint='a line is {"messages": [...]}') from error
        roles = [one.get("role") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
        if "assistant" not in roles:
            raise UsageError("a chat without a message of the assistant", where=where)
        yield Chat(messages, tools)


def encode(chats: Iterable[Chat], tokenizer: ChatTokenizer, context: int) -> tuple[list[Example], int]:
    """The chats as examples, and how many were left out because they are longer than ``context`` tokens."""
    examples, too_long = [], 0
    for chat in chats:
        try:
            messages = template_messages(chat.messages)
        except RefusedRequest as error:
            raise UsageError(f"a demonstration cannot be written down: {error}") from error
        ids, learn = tokenizer.encode_assistant_masked(messages, chat.tools)
        if chat.own is not None:
            learn = _only(learn, [index in chat.own for index, m in enumerate(messages) if m["role"] == "assistant"])
        if len(ids) > context:
            too_long += 1
        elif any(learn[1:]):
            examples.append(Example(ids, learn))
    return examples, too_long


def _only(learn: Sequence[bool], wanted: Sequence[bool]) -> list[bool]:
    """``learn`` without the turns that are not wanted: each turn is one run of learned tokens."""
    kept: list[bool] = []
    turn, inside = -1, False
    for learned in learn:
        turn += learned and not inside
        inside = learned
        kept.append(learned and wanted[turn])
    return kept


def texts_of(chats: Iterable[Chat], instructions: bool = True) -> Iterator[str]:
    """All that is said in the chats, for a tokenizer to be trained on; system messages and tools: ``instructions``."""
    for chat in chats:
        for message in template_messages(chat.messages):
            if message["role"] == "system" and not instructions:
                continue
            yield str(message["content"])
            yield from (json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or [])
        for tool in (chat.tools or []) if instructions else []:
            yield json.dumps(tool, ensure_ascii=False)


def words(named: str) -> list[str]:
    """What ``module:function`` gives as whole words. Raises UsageError."""
    given = _named(named, "init.whole_words")()
    if not isinstance(given, (list, tuple)) or not all(isinstance(word, str) for word in given):
        raise UsageError(f"{named} must give a list of words", where="init.whole_words")
    return list(given)


def _named(named: str, where: str) -> Callable[..., Any]:
    from lightningrun.agents.calling import load

    try:
        return load(named)
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise UsageError(f"{named} cannot be loaded: {error}", where=where) from error
