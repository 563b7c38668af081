"""The one gate through which every score passes.

What a reward function returned is a ``Reward`` or a ``RewardProblem``; a problem is counted and shown and excluded from
means. It never becomes a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightningrun.types import Json, Reward

_KEYS = ("score", "feedback", "metrics")
_ACCEPTED = "return a number, or {score, feedback, metrics}"


@dataclass(frozen=True, slots=True)
class RewardProblem:
    """Why what a reward function returned is not a score."""

    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class RewardGate:
    """``low`` and ``high`` are the declared range, ends included; without one any finite score passes."""

    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, declared: tuple[float, float] | None) -> RewardGate:
        return cls() if declared is None else cls(*declared)

    def check(self, raw: Json) -> Reward | RewardProblem:
        """``raw`` is a number, a ``Reward``, or a mapping with ``score`` and perhaps ``feedback`` and ``metrics``."""
        if isinstance(raw, Reward):
            raw = {"score": raw.score, "feedback": raw.feedback, "metrics": raw.metrics}
        if not isinstance(raw, Mapping):
            raw = {"score": raw}
        unknown = [str(key) for key in raw if key not in _KEYS]
        if unknown:
            return RewardProblem(f"the reward has unknown keys {', '.join(map(repr, unknown))}: {_ACCEPTED}")
        if "score" not in raw:
            return RewardProblem(f"the reward has no 'score': {_ACCEPTED}")
        score = _number(raw["score"])
        if isinstance(score, str):
            return RewardProblem(f"the score is {score}: {_ACCEPTED}")
        if not self.low <= score <= self.high:
            return RewardProblem(f"the score {score:g} is outside the declared range [{self.low:g}, {self.high:g}]")
        feedback = raw.get("feedback")
        if not isinstance(feedback, str | None):
            return RewardProblem(f"the feedback is a {type(feedback).__name__}, not text")
        metrics = self._metrics(raw.get("metrics"))
        return metrics if isinstance(metrics, RewardProblem) else Reward(score, feedback or "", metrics)

    @staticmethod
    def _metrics(raw: Any) -> dict[str, float] | RewardProblem:
        if not isinstance(raw, Mapping | None):
            return RewardProblem(f"the metrics are a {type(raw).__name__}, not a mapping of name to number")
        metrics: dict[str, float] = {}
        for name, value in (raw or {}).items():
            number = float(value) if isinstance(value, bool) else _number(value)
            if isinstance(number, str):
                return RewardProblem(f"the metric {name!r} is {number}")
            metrics[str(name)] = number
        return metrics


def _number(value: Any) -> float | str:
    """``value`` as a finite float, or what it is instead."""
    if isinstance(value, bool):
        return f"the bool {value}; write float({value})"
    if not isinstance(value, int | float):
        return "None" if value is None else f"a {type(value).__name__} ({str(value)[:80]!r})"
    try:
        number = float(value)
    except OverflowError:
        return "an integer too large for a float"
    if not math.isfinite(number):
        return "not finite" if not math.isnan(number) else "NaN"
    return number
