"""The spans that an agent's framework exports while a rollout runs, as many as are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from lightningrun.types import AgentSpan, Json

MAX_SPANS = 500
MAX_CHARS = 500_000
"""Of the attributes of one rollout's spans."""


class Spans:
    """Of one attempt. ``since``: when it began (seconds since 1970); what had ended by then is of an earlier one."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._chars = 0
        self._kept: dict[str, AgentSpan] = {}

    def add(self, spans: Sequence[AgentSpan]) -> int:
        """Keep ``spans`` as far as there is room (the last ones without attributes); returns how many are not kept."""
        lost = 0
        for span in spans:
            if span.started_at + span.duration_s < self._since or len(self._kept) >= MAX_SPANS:
                lost += 1
            elif span.id not in self._kept:  # an exporter that was not answered in time sends again
                size = sum(len(name) + len(str(value)) for name, value in span.attributes.items())
                fits = self._chars + size <= MAX_CHARS
                self._chars += size if fits else 0
                self._kept[span.id] = span if fits else replace(span, attributes={})
        return lost

    def to_json(self) -> list[Json]:
        """In the order in which they began."""
        return [asdict(span) for span in sorted(self._kept.values(), key=lambda span: (span.started_at, span.id))]
