from __future__ import annotations

from pathlib import Path

import pytest

from lightningrun.types import RolloutStatus
from tests.rollouts.plant import Plant, agent, recipe


@pytest.mark.parametrize("isolation", ["process", "inline"])
async def test_rollouts_come_back_scored_in_order_and_journaled(tmp_path: Path, isolation: str) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("good"), "isolation": isolation})) as plant:
        rollouts = await plant.roll(10)
        assert [rollout.task_id for rollout in rollouts] == [f"t{n}" for n in range(10)]
        assert {(r.status, r.score, r.llm_calls) for r in rollouts} == {(RolloutStatus.SUCCEEDED, 1.0, 1)}
        assert plant.recorded() == {rollout.key: rollout for rollout in rollouts}
