"""A whole plant for tests: recipe, model service, gateway, pool, journal and engines, all real."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightningrun.agents import pool as pools
from lightningrun.gateway.server import Gateway
from lightningrun.models.ledger import Limits
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import Recipe
from lightningrun.rollouts.engine import RolloutEngine, RolloutRequest
from lightningrun.tracking.journal import RunJournal
from lightningrun.types import Rollout, Task

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPTS = {"system": "You are terse."}


def recipe(agent: Mapping[str, Any], **blocks: Any) -> Recipe:
    """A recipe around an agent. ``reward`` and ``models`` default to the exact match and the echo below."""
    raw = {
        "version": 1,
        "name": "test",
        "seed": 7,
        "agent": {"timeout_s": 20, **agent},
        "task": {"data": {"train": "none.jsonl"}},
        "reward": {"function": f"{HERE}/agents_for_tests.py:exact", "timeout_s": 20},
        "models": {"policy": {"provider": "python", "name": f"{HERE}/agents_for_tests.py:echo"}},
        "execution": {"workers": 2},
    }
    return Recipe.model_validate_json(_json({**raw, **blocks}))


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


def agent(name: str) -> str:
    return f"{HERE}/agents_for_tests.py:{name}"


def tasks(count: int, **fields: Any) -> list[Task]:
    return [Task(f"t{n}", "train", {"question": f"q{n}", **fields}) for n in range(count)]


def requests(count: int, prompts: Mapping[str, str] = PROMPTS, **fields: Any) -> list[RolloutRequest]:
    return [RolloutRequest(task, prompts) for task in tasks(count, **fields)]


class Plant:
    def __init__(self, folder: Path, configured: Recipe, limits: Limits | None = None) -> None:
        self.folder = folder
        self.recipe = configured
        self.limits = limits or Limits()
        self.seen: list[dict[str, Any]] = []

    async def __aenter__(self) -> Plant:
        self.logs = self.folder / "logs"
        self.logs.mkdir(exist_ok=True, parents=True)
        models = self.recipe.models
        self.service = ModelService(models, self.folder / "calls.jsonl", seed=7, limits=self.limits)
        self.service.open_stage("baseline")
        self.gateway = Gateway(self.service)
        await self.gateway.start()
        self.pool = pools.build(self.recipe, self.gateway, self.logs)
        self.journal = RunJournal(self.folder / "journal.jsonl", (self.seen.append,))
        try:
            await self.pool.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()
        await self.gateway.stop()
        await self.service.aclose()
        self.journal.close()

    def engine(self, memo: Mapping[str, Rollout] | None = None) -> RolloutEngine:
        return RolloutEngine(
            stage="baseline",
            recipe=self.recipe,
            pool=self.pool,
            gateway=self.gateway,
            service=self.service,
            journal=self.journal,
            memo=memo or {},
            seed=7,
        )

    async def roll(self, wanted: Sequence[RolloutRequest] | int = 1, **fields: Any) -> list[Rollout]:
        wanted = requests(wanted, **fields) if isinstance(wanted, int) else wanted
        return await self.engine().run(wanted)

    def recorded(self) -> dict[str, Rollout]:
        """The rollouts that the journal holds, by key."""
        events = self.journal.events()
        found = (Rollout.from_json(event["rollout"]) for event in events if event["kind"] == "rollout")
        return {rollout.key: rollout for rollout in found}
