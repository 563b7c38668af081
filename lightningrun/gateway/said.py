"""What a completion says, part by part: for protocols that answer with a list of parts instead of one message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lightningrun.errors import ModelError
from lightningrun.models.chunks import split
from lightningrun.models.provider import Body, dumps
from lightningrun.types import Json

_TEXTS: tuple[tuple[Literal["reasoning", "text", "refusal"], str], ...] = (
    ("reasoning", "reasoning_content"),
    ("reasoning", "reasoning"),
    ("text", "content"),
    ("refusal", "refusal"),
)


@dataclass(eq=False)
class Part:
    """One part. ``text`` is a tool call's arguments (JSON as the model wrote it)."""

    kind: Literal["reasoning", "text", "refusal", "tool"]
    text: str = ""
    id: str = ""
    name: str = ""
    logprobs: list[Body] = field(default_factory=list)


class Said:
    """The first choice of a completion, from its chunks."""

    def __init__(self) -> None:
        self.head: Body = {}
        """The first chunk."""
        self.parts: list[Part] = []
        self.reason = ""
        self.stop: Json = None
        """The stop sequence met, where the model's server tells (vLLM does)."""
        self.usage: Body = {}
        self._tools: dict[int, Part] = {}

    @classmethod
    def of(cls, completion: Body) -> Said:
        """All that a whole completion says."""
        said = cls()
        for chunk in split(completion):
            for _ in said.add(chunk):
                pass
        return said

    def add(self, chunk: Body) -> Iterator[tuple[Part, str, list[Body]]]:
        """Take one chunk in; gives each part that it adds to, the text added and its log-probabilities.

        Raises ModelError if the model goes back to a part that it has left.
        """
        self.head = self.head or chunk
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue
            self.reason = choice.get("finish_reason") or self.reason
            self.stop = choice.get("stop_reason") or self.stop
            delta = choice.get("delta") or {}
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            for kind, key in _TEXTS:
                if text := plain(delta.get(key)):
                    if not self.parts or self.parts[-1].kind != kind:
                        self.parts.append(Part(kind))
                    yield self._grown(self.parts[-1], text, logprobs if kind == "text" else [])
            for position, call in enumerate(delta.get("tool_calls") or ()):
                function = call.get("function") or {}
                part = self._tool(call, position)
                part.name = part.name or function.get("name") or ""
                yield self._grown(part, plain(function.get("arguments")), [])

    def _tool(self, call: Body, position: int) -> Part:
        index = call.get("index")
        index = position if index is None else index
        part = self._tools.get(index)
        if part is None:
            called = call.get("id") or f"call_{self.head.get('id', '')}_{index}"
            part = self._tools[index] = Part("tool", id=called)
            self.parts.append(part)
        elif part is not self.parts[-1]:
            raise ModelError("streams several tool calls interleaved", kind="malformed")
        return part

    def _grown(self, part: Part, text: str, logprobs: list[Body]) -> tuple[Part, str, list[Body]]:
        part.text += text
        part.logprobs += logprobs
        return part, text, logprobs


def plain(content: Json) -> str:
    """A text, also where a home-made model says it in another way."""
    if isinstance(content, list):
        return "".join(plain(part.get("text") if isinstance(part, dict) else part) for part in content)
    return content if isinstance(content, str) else dumps(content).decode() if content else ""
