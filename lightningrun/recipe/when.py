"""``when:`` of a stage: always, never, gpu, or a comparison on an earlier stage's metric."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightningrun.errors import UsageError

_COMPARISON = re.compile(
    r"(?P<stage>[A-Za-z0-9][\w-]*)\.(?P<metric>[\w@.:/-]+)\s*(?P<op><=|>=|==|!=|<|>)\s*"
    r"(?P<bound>true|false|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class When:
    """A parsed condition. ``stage`` and ``metric`` are None where no other stage is read."""

    text: str
    stage: str | None = None
    metric: str | None = None
    op: str = ""
    bound: float | bool = 0.0

    def decide(self, metrics: Mapping[str, Mapping[str, Any]], has_gpu: bool) -> tuple[bool, str]:
        """Whether the stage runs, and why in words. ``metrics``: stage id -> its metrics.

        Raises UsageError if the stage read has no such metric: a mistyped name must not pass for a decision.
        """
        if self.stage is None or self.metric is None:
            if self.text == "gpu":
                return has_gpu, "a GPU is present" if has_gpu else "when: gpu, and there is none"
            return self.text == "always", f"when: {self.text}"
        known = metrics.get(self.stage)
        if known is None:
            return False, f"when: {self.text}, and {self.stage} has no result"
        if self.metric not in known:
            close = difflib.get_close_matches(self.metric, list(known), 1)
            hint = f"did you mean '{self.stage}.{close[0]}'?" if close else f"it has {', '.join(sorted(known))}"
            raise UsageError(f"when: {self.text}: stage '{self.stage}' has no metric '{self.metric}'", hint=hint)
        value = known[self.metric]
        if not isinstance(value, (int, float)):
            return False, f"when: {self.text}, and {self.stage}.{self.metric} is {value}"
        met = _OPERATORS[self.op](value, self.bound)
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.6g}"
        return met, f"when: {self.text}, and {self.stage}.{self.metric} is {shown}"


def parse(text: str) -> When:
    """Raises ValueError, fit to be shown, if ``text`` is no condition."""
    text = text.strip()
    if text in ("always", "never", "gpu"):
        return When(text)
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text[:80]}' is not always, never, gpu or a comparison such as baseline.reward < 0.95")
    bound = found["bound"]
    value: float | bool = bound == "true" if bound in ("true", "false") else float(bound)
    return When(text, found["stage"], found["metric"], found["op"], value)
