from __future__ import annotations

import math
from typing import Any

import pytest

from lightningrun import Reward
from lightningrun.reward import RewardGate, RewardProblem

GATE = RewardGate.of((0.0, 1.0))


@pytest.mark.parametrize(
    ("raw", "reward"),
    [
        (1, Reward(1.0)),
        (0.25, Reward(0.25)),
        (0, Reward(0.0)),
        ({"score": 0.5}, Reward(0.5)),
        ({"score": 1, "feedback": "well done", "metrics": {"length": 3}}, Reward(1.0, "well done", {"length": 3.0})),
        ({"score": 1, "feedback": None, "metrics": None}, Reward(1.0)),
        ({"score": 1, "metrics": {"valid": True}}, Reward(1.0, "", {"valid": 1.0})),
        (Reward(0.5, "half", {"x": 1.0}), Reward(0.5, "half", {"x": 1.0})),
    ],
)
def test_a_score_passes(raw: Any, reward: Reward) -> None:
    assert GATE.check(raw) == reward


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (math.nan, "NaN"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (True, "the bool True; write float(True)"),
        (False, "the bool False"),
        ("0.5", "a str ('0.5')"),
        (None, "the score is None"),
        ([1.0], "a list"),
        (1.0001, "outside the declared range [0, 1]"),
        (-0.1, "outside the declared range"),
        (10**400, "too large"),
        ({}, "no 'score'"),
        ({"reward": 1.0}, "unknown keys 'reward'"),
        ({"score": 1.0, "feed_back": "x"}, "unknown keys 'feed_back'"),
        ({"score": {"score": 1}}, "a dict"),
        ({"score": 1.0, "feedback": 3}, "the feedback is a int"),
        ({"score": 1.0, "metrics": [1]}, "the metrics are a list"),
        ({"score": 1.0, "metrics": {"f1": math.nan}}, "the metric 'f1' is NaN"),
        ({"score": 1.0, "metrics": {"f1": "high"}}, "the metric 'f1' is a str"),
    ],
)
def test_a_wrong_score_is_a_problem_and_never_a_zero(raw: Any, said: str) -> None:
    problem = GATE.check(raw)
    assert isinstance(problem, RewardProblem) and said in str(problem)


def test_without_a_range_any_finite_score_passes() -> None:
    assert RewardGate.of(None).check(-1e9) == Reward(-1e9)
    assert isinstance(RewardGate.of(None).check(math.inf), RewardProblem)
