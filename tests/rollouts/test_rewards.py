"""Rewards in slots of their own: whatever goes wrong there is a reward error, excluded, never a 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import RewardErrors, UsageError
from lightningrun.types import RolloutStatus
from tests.rollouts.plant import HERE, Plant, agent, recipe


def configured(kind: str, isolation: str = "process", **options: Any) -> Any:
    args = {"kind": kind, "value": options.pop("value", None)}
    reward = {"function": agent("from_args"), "args": args, "range": [0, 1], **options}
    return recipe({"entrypoint": agent("good"), "isolation": isolation}, reward=reward)


WRONG = [
    ("raises", {}, "KeyError: 'gold'"),
    ("nan", {}, "NaN"),
    ("inf", {}, "not finite"),
    ("object", {}, "not a number"),
    ("set", {}, "not a number"),
    ("value", {"value": True}, "the bool True"),
    ("value", {"value": "0.9"}, "a str"),
    ("value", {"value": 7}, "outside the declared range"),
    ("value", {"value": None}, "None"),
    ("hangs", {"timeout_s": 0.5}, "no answer within 0.5 s"),
    ("exits", {}, "exited with code 1"),
]


@pytest.mark.parametrize(("kind", "options", "said"), WRONG)
async def test_a_wrong_reward_is_an_error_that_is_told(
    tmp_path: Path, kind: str, options: dict[str, Any], said: str
) -> None:
    async with Plant(tmp_path, configured(kind, **options)) as plant:
        with pytest.raises(RewardErrors, match=r"none of 2 rollouts .* got a usable score"):
            await plant.roll(2)
        recorded = list(plant.recorded().values())
        assert [(r.status, r.score) for r in recorded] == [(RolloutStatus.REWARD_ERROR, None)] * 2
        assert all(said in r.error and r.output == f"q{r.task_id[1:]}" for r in recorded)


@pytest.mark.parametrize("isolation", ["process", "inline"])
async def test_a_reward_object_passes_with_words_and_metrics(tmp_path: Path, isolation: str) -> None:
    async with Plant(tmp_path, configured("Reward", isolation)) as plant:
        (rollout,) = await plant.roll(1)
        assert (rollout.score, rollout.feedback, rollout.metrics) == (0.5, "half right", {"length": 3.0})


async def test_some_reward_errors_leave_the_rest_scored(tmp_path: Path) -> None:
    reward = {"function": agent("flaky_for_odd_rows")}
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, reward=reward)) as plant:
        rollouts = await plant.roll(6)
        assert [rollout.score for rollout in rollouts] == [1.0, None] * 3


async def test_a_judge_is_called_through_the_gateway_and_counted(tmp_path: Path) -> None:
    echo = {"provider": "python", "name": f"{HERE}/agents_for_tests.py:echo"}
    models = {"policy": echo, "judge": {**echo, "temperature": 0.5}}
    reward = {"function": agent("judged")}
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, reward=reward, models=models)) as plant:
        rollouts = await plant.roll(3)
        assert [(r.score, r.feedback, r.llm_calls) for r in rollouts] == [(1.0, "1 call: policy", 1)] * 3
        totals = plant.service.totals()
        assert (totals["policy"]["calls"], totals["judge"]["calls"]) == (3, 3)


async def test_a_reward_that_cannot_be_imported_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\ndef score(output): return 1.0\n")
    broken = recipe({"entrypoint": agent("good")}, reward={"function": f"{tmp_path}/broken.py:score"})
    with pytest.raises(UsageError, match="importing the reward failed: ModuleNotFoundError"):
        async with Plant(tmp_path, broken):
            pass
