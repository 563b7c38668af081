from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightningrun.errors import BudgetReached, ModelError, StageFailed, TooManyInfraErrors
from lightningrun.models.ledger import Limits
from lightningrun.types import RolloutStatus
from tests.rollouts.plant import PROMPTS, Plant, agent, recipe, requests
from tests.servers.openai_endpoint import Endpoint


@pytest.mark.parametrize("isolation", ["process", "inline"])
@pytest.mark.parametrize("name", ["good", "good_async"])
async def test_rollouts_come_back_scored_in_order_and_journaled(tmp_path: Path, isolation: str, name: str) -> None:
    if (isolation, name) == ("inline", "good_async"):
        pytest.skip("that agent blocks the loop, which inline agents must not")
    async with Plant(tmp_path, recipe({"entrypoint": agent(name), "isolation": isolation})) as plant:
        rollouts = await plant.roll(10)
        assert [rollout.task_id for rollout in rollouts] == [f"t{n}" for n in range(10)]
        assert {(r.status, r.score, r.llm_calls) for r in rollouts} == {(RolloutStatus.SUCCEEDED, 1.0, 1)}
        assert plant.recorded() == {rollout.key: rollout for rollout in rollouts}
        calls = [plant.service.read(rollout.call_refs[0]) for rollout in rollouts]
        assert [call.request["messages"][-1]["content"] for call in calls] == [f"q{n}" for n in range(10)]
        assert [call.owner for call in calls] == [rollout.key for rollout in rollouts]


async def test_what_the_journal_holds_is_not_executed_again(tmp_path: Path) -> None:
    log = tmp_path / "executed"
    config = recipe({"entrypoint": agent("counting"), "args": {"log": str(log)}})
    async with Plant(tmp_path, config) as plant:
        first = await plant.roll(4)
    async with Plant(tmp_path, config) as plant:
        engine = plant.engine(memo=plant.recorded())
        again = await engine.run(requests(6))
        assert again[:4] == first
        assert (engine.done, engine.executed) == (6, 2)
        assert await engine.run(requests(6)) == again
    assert sorted(log.read_text().split()) == [f"q{n}" for n in range(6)]


async def test_concurrent_runs_share_slots_and_equal_rollouts(tmp_path: Path) -> None:
    log = tmp_path / "executed"
    async with Plant(tmp_path, recipe({"entrypoint": agent("counting"), "args": {"log": str(log)}})) as plant:
        engine = plant.engine()
        other = requests(4, {"system": "Other."})
        found = await asyncio.gather(engine.run(requests(4)), engine.run(requests(4) + other), engine.run(other))
        assert found[1] == found[0] + found[2]
    assert len(log.read_text().split()) == 8


def openai(endpoint: Endpoint, **options: Any) -> dict[str, Any]:
    policy = {"provider": "openai", "name": "m", "base_url": endpoint.base_url, "retries": 0, **options}
    return {"policy": policy}


async def test_infrastructure_is_tried_again_and_never_scored(tmp_path: Path) -> None:
    async with Endpoint("503", "503*3", "ok", reply=lambda body: body["messages"][-1]["content"]) as endpoint:
        config = recipe({"entrypoint": agent("good"), "attempts": 2}, models=openai(endpoint), execution={"workers": 1})
        async with Plant(tmp_path, config) as plant:
            rollouts = await plant.roll(4)
    assert [(r.status, r.score, r.attempts) for r in rollouts if r.status is RolloutStatus.INFRA_ERROR] == [
        (RolloutStatus.INFRA_ERROR, None, 2)
    ] * 2
    assert [r.score for r in rollouts if r.status is RolloutStatus.SUCCEEDED] == [1.0, 1.0]


async def test_a_resume_tries_infrastructure_errors_again(tmp_path: Path) -> None:
    async with Endpoint("503*2", "ok", reply=lambda body: body["messages"][-1]["content"]) as endpoint:
        config = recipe({"entrypoint": agent("good"), "attempts": 1}, models=openai(endpoint))
        async with Plant(tmp_path, config) as plant:
            assert [r.status for r in await plant.roll(2)] == [RolloutStatus.INFRA_ERROR] * 2
            assert [r.score for r in await plant.engine(memo=plant.recorded()).run(requests(2))] == [1.0, 1.0]


@pytest.mark.parametrize("mode", ["503", "html", "broken", "drop"])
async def test_too_many_infrastructure_errors_stop_the_stage(tmp_path: Path, mode: str) -> None:
    async with Endpoint(mode) as endpoint:
        config = recipe({"entrypoint": agent("good"), "attempts": 1}, models=openai(endpoint))
        async with Plant(tmp_path, config) as plant:
            with pytest.raises(TooManyInfraErrors, match="lost to infrastructure"):
                await plant.roll(40)
            recorded = plant.recorded()
            assert 3 <= len(recorded) < 15
            assert {rollout.status for rollout in recorded.values()} == {RolloutStatus.INFRA_ERROR}


async def test_a_model_that_hangs_is_not_the_agents_fault(tmp_path: Path) -> None:
    async with Endpoint("hang") as endpoint:
        config = recipe({"entrypoint": agent("good"), "attempts": 1, "timeout_s": 1}, models=openai(endpoint))
        async with Plant(tmp_path, config) as plant:
            (rollout,) = await plant.roll(1)
            assert rollout.status is RolloutStatus.INFRA_ERROR and "raise agent.timeout_s" in rollout.error


async def test_a_refused_key_stops_the_stage_at_once(tmp_path: Path) -> None:
    async with Endpoint("401") as endpoint:
        async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, models=openai(endpoint))) as plant:
            with pytest.raises(ModelError) as caught:
                await plant.roll(50)
            assert caught.value.kind == "auth" and plant.recorded() == {}
        assert endpoint.calls <= 4


async def test_a_spent_budget_ends_the_stage_without_a_fake_score(tmp_path: Path) -> None:
    config = recipe({"entrypoint": agent("asks_twice")}, reward={"function": agent("flaky_for_odd_rows")})
    async with Plant(tmp_path, config, Limits(max_llm_calls=7)) as plant:
        with pytest.raises(BudgetReached, match="7 LLM calls"):
            await plant.roll(50)
        recorded = plant.recorded().values()
        assert all(rollout.llm_calls == 2 for rollout in recorded) and len(recorded) <= 3
        assert RolloutStatus.FAILED not in {rollout.status for rollout in recorded}


async def test_a_built_in_prompt_is_replaced_by_the_gateway(tmp_path: Path) -> None:
    prompts = {"system": {"text": "Built in.", "bind": "gateway"}}
    async with Plant(tmp_path, recipe({"entrypoint": agent("built_in_prompt"), "prompts": prompts})) as plant:
        (rollout,) = await plant.roll(requests(1, {"system": "Better."}))
        sent = plant.service.read(rollout.call_refs[0]).request["messages"][0]["content"]
        assert (sent, rollout.score) == ("Better.", 1.0)


async def test_a_prompt_that_no_request_holds_is_said(tmp_path: Path) -> None:
    prompts = {"system": {"text": "Never said.", "bind": "gateway"}}
    async with Plant(tmp_path, recipe({"entrypoint": agent("built_in_prompt"), "prompts": prompts})) as plant:
        with pytest.raises(StageFailed, match="held the text of prompt 'system'"):
            await plant.roll(2)


async def test_an_interrupted_run_keeps_what_finished(tmp_path: Path) -> None:
    async with Endpoint("slow:0.2", reply=lambda body: body["messages"][-1]["content"]) as endpoint:  # noqa: SIM117
        async with Plant(tmp_path, recipe({"entrypoint": agent("good")}, models=openai(endpoint))) as plant:
            work = asyncio.create_task(plant.roll(200))
            while len(plant.recorded()) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            recorded = plant.recorded()
            assert 3 <= len(recorded) < 100
            assert {rollout.score for rollout in recorded.values()} == {1.0}


async def test_the_same_results_whatever_the_number_of_slots(tmp_path: Path) -> None:
    found = []
    for workers in (1, 5):
        folder = tmp_path / str(workers)
        folder.mkdir()
        async with Plant(folder, recipe({"entrypoint": agent("good")}, execution={"workers": workers})) as plant:
            rollouts = await plant.roll(12)
            found.append([(r.key, r.status, r.score, r.output, r.usage) for r in rollouts])
    assert found[0] == found[1]


async def test_progress_is_shown_and_ends_complete(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")})) as plant:
        await plant.roll(5)
        last = [event for event in plant.seen if event["kind"] == "progress"][-1]
        assert (last["done"], last["total"], last["reward"], last["calls"]) == (5, 5, 1.0, 5)
        assert last["tokens"] > 0 and last["eta_s"] == 0


async def test_memory_does_not_grow_with_rollouts(tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text(
        "import aiohttp\n"
        "async def solve(question, llm):\n"
        "    headers = {'Authorization': 'Bearer ' + llm.api_key}\n"
        "    body = {'model': 'policy', 'messages': [{'role': 'user', 'content': question * 2000}]}\n"
        "    async with aiohttp.ClientSession() as http:\n"
        "        async with http.post(llm.base_url + '/chat/completions', json=body, headers=headers) as reply:\n"
        "            await reply.json()\n"
        "    return question\n"
        "def reward(output):\n"
        "    return 1.0\n"
    )
    light = {"entrypoint": f"{tmp_path}/light.py:solve", "isolation": "inline"}
    config = recipe(light, reward={"function": f"{tmp_path}/light.py:reward"}, execution={"workers": 8})
    process = psutil.Process(os.getpid())
    async with Plant(tmp_path, config) as plant:
        engine = plant.engine()
        await engine.run(requests(600))
        before = process.memory_info().rss
        await engine.run(requests(2600, PROMPTS | {"other": "x"}))
        grown = process.memory_info().rss - before
        assert engine.done == 3200
        assert grown < 2600 * 8192, f"{grown / 2600:.0f} bytes for each rollout"
