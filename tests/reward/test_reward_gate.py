from __future__ import annotations

import math
import re
from typing import Any

import pytest

from lightningrun import Reward
from lightningrun.recipe.model import RewardConfig
from lightningrun.reward import RewardGate, RewardProblem

GATE = RewardGate.of(RewardConfig(function="m:f", range=(0.0, 1.0)))


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
    free = RewardGate.of(RewardConfig(function="m:f"))
    assert free.check(-1e9) == Reward(-1e9)
    assert isinstance(free.check(math.inf), RewardProblem)


WEIGHED = RewardGate.of(
    RewardConfig(function="m:f", objective={"accuracy": 0.7, "style": 0.2, "brevity": 0.1}, range=(0.0, 1.0))
)
BEST = {"accuracy": 1, "style": True, "brevity": 1.0}


@pytest.mark.parametrize(
    ("raw", "score"),
    [
        ({"metrics": BEST}, 1.0),  # 0.7 + 0.2 + 0.1 is a little less than 1 or more, by rounding
        ({"metrics": {**BEST, "accuracy": 0, "words": 120}}, 0.3),
        ({"score": 0.9, "metrics": {**BEST, "style": 0.5}, "feedback": "plain"}, 0.9),
        (Reward(0.0, metrics=BEST), 1.0),
    ],
)
def test_an_objective_weighs_the_metrics(raw: Any, score: float) -> None:
    reward = WEIGHED.check(raw)
    assert isinstance(reward, Reward)
    assert reward.score == pytest.approx(score) and 0 <= reward.score <= 1
    given = raw.metrics if isinstance(raw, Reward) else raw["metrics"]
    assert reward.metrics == {name: float(value) for name, value in given.items()}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (0.5, "no metric 'accuracy', which reward.objective weighs; it gave no metrics"),
        ({"metrics": {"acuracy": 1, "style": 1, "brevity": 1}}, "no metric 'accuracy'.*did you mean 'acuracy'"),
        ({"metrics": {**BEST, "accuracy": math.nan}}, "the metric 'accuracy' is NaN"),
        ({"metrics": {**BEST, "accuracy": 3}}, "the score 2.4 is outside the declared range"),
    ],
)
def test_an_objective_without_its_metrics_is_a_problem(raw: Any, said: str) -> None:
    problem = WEIGHED.check(raw)
    assert isinstance(problem, RewardProblem) and re.search(said, str(problem))


def test_the_functions_own_score_may_be_weighed() -> None:
    gate = RewardGate.of(RewardConfig(function="m:f", objective={"score": 1.0, "words": -0.01}))
    assert gate.check({"score": 0.5, "metrics": {"words": 10}}) == Reward(pytest.approx(0.4), "", {"words": 10.0})
    assert isinstance(gate.check({"metrics": {"words": 10}}), RewardProblem)


def test_steps_are_one_for_each_call() -> None:
    assert GATE.check({"score": 1, "steps": [0, 0.5]}, calls=2) == Reward(1.0, steps=(0.0, 0.5))
    assert GATE.check(Reward(1.0), calls=2) == Reward(1.0)
    for steps, said in (([1], "1 steps for 2 LLM calls"), ([1, math.inf], "step 2 is not finite"), ("ab", "a str")):
        problem = GATE.check({"score": 1, "steps": steps}, calls=2)
        assert isinstance(problem, RewardProblem) and said in str(problem)
