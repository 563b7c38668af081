"""The one gate through which every score passes.

What a reward function returned is a ``Reward`` or a ``RewardProblem``; a problem is counted and shown and excluded from
means. It never becomes a 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightningrun.recipe.suggest import did_you_mean
from lightningrun.types import Json, Reward

if TYPE_CHECKING:
    from lightningrun.recipe.model import RewardConfig

_KEYS = ("score", "feedback", "metrics", "steps")
_ACCEPTED = "return a number, or {score, feedback, metrics, steps}"
_ROUNDING = 1e-9
"""A weighted sum may leave the declared range by so much and is put back."""


@dataclass(frozen=True, slots=True)
class RewardProblem:
    """Why what a reward function returned is not a score."""

    message: str

    def __str__(self) -> str:
        return self.message


class _Wrong(Exception):
    """The message of a RewardProblem."""


@dataclass(frozen=True, slots=True)
class RewardGate:
    """``low`` and ``high`` are the declared range, ends included; without one any finite score passes."""

    low: float = -math.inf
    high: float = math.inf
    objective: Mapping[str, float] = field(default_factory=dict)
    """Metric -> weight: where it is declared, the score is the weighted sum of these metrics."""

    @classmethod
    def of(cls, config: RewardConfig) -> RewardGate:
        return cls(*(config.range or (-math.inf, math.inf)), config.objective or {})

    def check(self, raw: Json, calls: int | None = None) -> Reward | RewardProblem:
        """``raw`` is a number, a ``Reward``, or a mapping with ``score`` and perhaps ``feedback``, ``metrics`` and
        ``steps``; with an objective the score may be left out. ``calls`` is how many steps there must be, if any."""
        try:
            return self._checked(raw, calls)
        except _Wrong as problem:
            return RewardProblem(str(problem))

    def _checked(self, raw: Json, calls: int | None) -> Reward:
        if isinstance(raw, Reward):
            raw = {name: getattr(raw, name) for name in _KEYS}
        if not isinstance(raw, Mapping):
            raw = {"score": raw}
        unknown = [str(key) for key in raw if key not in _KEYS]
        if unknown:
            raise _Wrong(f"the reward has unknown keys {', '.join(map(repr, unknown))}: {_ACCEPTED}")
        metrics = _metrics(raw.get("metrics"))
        if self.objective:
            score = self._weighed(raw, metrics)
        elif "score" not in raw:
            raise _Wrong(f"the reward has no 'score': {_ACCEPTED}")
        else:
            score = _number(raw["score"], "the score", f": {_ACCEPTED}")
        if not self.low <= score <= self.high:
            raise _Wrong(f"the score {score:g} is outside the declared range [{self.low:g}, {self.high:g}]")
        feedback = raw.get("feedback")
        if not isinstance(feedback, str | None):
            raise _Wrong(f"the feedback is a {type(feedback).__name__}, not text")
        return Reward(score, feedback or "", metrics, _steps(raw.get("steps"), calls))

    def _weighed(self, raw: Mapping[str, Any], metrics: Mapping[str, float]) -> float:
        """The objective's value. What the function calls ``score`` is a metric of that name here."""
        if "score" in self.objective and raw.get("score") is not None:
            metrics = {**metrics, "score": _number(raw["score"], "the score", "")}
        for name in self.objective:
            if name not in metrics:
                hint = did_you_mean(name, metrics) or "it gave no metrics"
                raise _Wrong(f"the reward has no metric {name!r}, which reward.objective weighs; {hint}")
        score = math.fsum(weight * metrics[name] for name, weight in self.objective.items())
        nearest = min(max(score, self.low), self.high)
        return nearest if abs(nearest - score) <= _ROUNDING else score


def _metrics(raw: Any) -> dict[str, float]:
    if not isinstance(raw, Mapping | None):
        raise _Wrong(f"the metrics are a {type(raw).__name__}, not a mapping of name to number")
    return {
        str(name): float(value) if isinstance(value, bool) else _number(value, f"the metric {name!r}")
        for name, value in (raw or {}).items()
    }


def _steps(raw: Any, calls: int | None) -> tuple[float, ...]:
    if raw is None or raw in ([], ()):
        return ()
    if not isinstance(raw, list | tuple):
        raise _Wrong(f"the steps are a {type(raw).__name__}, not a list of numbers")
    if calls is not None and len(raw) != calls:
        raise _Wrong(f"there are {len(raw)} steps for {calls} LLM calls: give one for each call of `trace`")
    return tuple(_number(value, f"step {number}") for number, value in enumerate(raw, start=1))


def _number(value: Any, what: str, advice: str = "") -> float:
    """``value`` as a finite float."""
    if isinstance(value, bool):
        raise _Wrong(f"{what} is the bool {value}; write float({value}){advice}")
    if not isinstance(value, int | float):
        kind = "None" if value is None else f"a {type(value).__name__} ({str(value)[:80]!r})"
        raise _Wrong(f"{what} is {kind}{advice}")
    try:
        number = float(value)
    except OverflowError:
        raise _Wrong(f"{what} is an integer too large for a float{advice}") from None
    if not math.isfinite(number):
        raise _Wrong(f"{what} is {'NaN' if math.isnan(number) else 'not finite'}{advice}")
    return number
