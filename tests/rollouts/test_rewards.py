"""Rewards in slots of their own: whatever goes wrong there is a reward error, excluded, never a 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import BudgetReached, RewardErrors, UsageError
from lightningrun.types import Rollout, RolloutStatus, TraceCall
from tests.rollouts.plant import HERE, Plant, agent, recipe
from tests.servers.openai_endpoint import Endpoint


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


def judged_at(endpoint: Endpoint, reward: str = "forgiving", judge: Any = None, **options: Any) -> Any:
    """A recipe whose judge is a real endpoint, asked once a call."""
    models = {
        "policy": {"provider": "python", "name": f"{HERE}/agents_for_tests.py:echo"},
        "judge": {
            "provider": "openai",
            "name": "judge-model",
            "base_url": endpoint.base_url,
            "retries": 0,
            **(judge or {}),
        },
    }
    return recipe({"entrypoint": agent("good")}, reward={"function": agent(reward), **options}, models=models)


async def test_a_judge_out_of_reach_is_infrastructure_even_if_the_reward_forgives_it(tmp_path: Path) -> None:
    async with Endpoint("503*2", "ok") as endpoint, Plant(tmp_path, judged_at(endpoint)) as plant:
        (lost,) = await plant.roll(1)
        assert (lost.status, lost.score) == (RolloutStatus.INFRA_ERROR, None)
        assert "while scoring" in lost.error and "503" in lost.error
        assert (lost.attempts, plant.service.totals()["policy"]["calls"]) == (2, 1), "no paid call is repeated"
        (again,) = await plant.roll(1)
        assert (again.status, again.score) == (RolloutStatus.SUCCEEDED, 1.0)
        assert plant.service.totals()["policy"]["calls"] == 1


async def test_a_judge_that_never_answers_is_infrastructure(tmp_path: Path) -> None:
    async with Endpoint("hang") as endpoint, Plant(tmp_path, judged_at(endpoint, timeout_s=0.4)) as plant:
        (lost,) = await plant.roll(1)
        assert lost.status is RolloutStatus.INFRA_ERROR
        assert "raise reward.timeout_s" in lost.error


async def test_a_judge_is_asked_once_for_one_answer_and_counted_by_itself(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint, Plant(tmp_path, judged_at(endpoint)) as plant:
        for _ in range(2):
            rollouts = await plant.roll(3)
            assert [(r.score, r.llm_calls, len(r.call_refs)) for r in rollouts] == [(1.0, 1, 1)] * 3
        assert endpoint.calls == 3
        assert {role: spent["calls"] for role, spent in plant.service.totals().items()} == {"judge": 3, "policy": 3}


async def test_a_judge_that_shares_its_model_with_the_policy_is_asked_by_the_models_name(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        same = {"provider": "openai", "name": "same-model", "base_url": endpoint.base_url}
        reward = {"function": agent("asks_by_name"), "args": {"model": "same-model"}}
        models = {"policy": same, "judge": same}
        async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, reward=reward, models=models)) as plant:
            await plant.roll(2)
            assert {role: spent["calls"] for role, spent in plant.service.totals().items()} == {"judge": 2, "policy": 2}


async def test_a_judge_has_a_budget_of_its_own(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint, Plant(tmp_path, judged_at(endpoint, judge={"max_calls": 4})) as plant:
        with pytest.raises(BudgetReached, match="budget of 4 calls of model 'judge'"):
            await plant.roll(6)
        assert endpoint.calls == 4
        assert [rollout.score for rollout in plant.recorded().values()] == [1.0] * 4


@pytest.mark.parametrize("isolation", ["process", "inline"])
async def test_steps_are_kept_and_the_trace_is_what_was_said(tmp_path: Path, isolation: str) -> None:
    configured = recipe(
        {"entrypoint": agent("asks_twice"), "isolation": isolation}, reward={"function": agent("stepwise")}
    )
    async with Plant(tmp_path, configured) as plant:
        (rollout,) = await plant.roll(1)
        assert rollout.steps == (1 / 3, 2 / 3)
        assert Rollout.from_json(json.loads(json.dumps(rollout.to_json()))) == rollout
        first, second = json.loads(rollout.feedback)
        assert first.keys() == TraceCall.__annotations__.keys()
        assert (first["role"], first["answer"], second["answer"]) == ("policy", "q0", "q0!")
        assert first["messages"][-1] == {"role": "user", "content": "q0"}
        assert "messages" not in first["request"] and first["response"]["choices"][0]["message"]["content"] == "q0"
        assert first["usage"]["completion_tokens"] > 0 and first["duration_s"] >= 0 and first["error"] == ""


async def test_steps_that_do_not_fit_the_calls_are_a_reward_error(tmp_path: Path) -> None:
    reward = {"function": agent("stepwise"), "args": {"more": 1}}
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, reward=reward)) as plant:
        with pytest.raises(RewardErrors, match="2 steps for 1 LLM calls"):
            await plant.roll(1)


async def test_an_objective_scores_and_a_metric_that_is_missing_is_named(tmp_path: Path) -> None:
    reward = {"function": agent("weighed"), "objective": {"right": 1.0, "brevity": 0.5}}
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, reward=reward)) as plant:
        good, bad = await plant.roll(2)
        assert (good.score, good.metrics) == (1.25, {"right": 1.0, "brevity": 0.5})
        assert bad.status is RolloutStatus.REWARD_ERROR
        assert "no metric 'brevity', which reward.objective weighs" in bad.error


async def test_a_reward_that_cannot_be_imported_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\ndef score(output): return 1.0\n")
    broken = recipe({"entrypoint": agent("good")}, reward={"function": f"{tmp_path}/broken.py:score"})
    with pytest.raises(UsageError, match="importing the reward failed: ModuleNotFoundError"):
        async with Plant(tmp_path, broken):
            pass
