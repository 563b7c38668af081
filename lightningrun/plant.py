"""The machinery that stages share while a run executes: models, gateway and agent slots, started and ended together."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping
from pathlib import Path

from lightningrun.agents import pool as agent_pool
from lightningrun.agents.jobs import AgentPool
from lightningrun.errors import DiskFull
from lightningrun.files import write_atomic
from lightningrun.gateway.server import Gateway
from lightningrun.models.ledger import Limits
from lightningrun.models.service import ModelService
from lightningrun.prepared import Prepared
from lightningrun.rollouts.engine import RolloutEngine
from lightningrun.runfolder import RunFolder
from lightningrun.secrets import Masker
from lightningrun.tracking.journal import RunJournal
from lightningrun.types import Json, Rollout


class Plant:
    """Made by ``start``; whatever happens afterwards, ``close`` ends every process and connection of it."""

    def __init__(
        self,
        prepared: Prepared,
        journal: RunJournal,
        service: ModelService,
        gateway: Gateway,
        pool: AgentPool,
        logs: Path,
        masker: Masker,
    ) -> None:
        self.service = service
        self._recipe = prepared.recipe
        self._journal = journal
        self._gateway = gateway
        self._pool = pool
        self._logs = logs
        self._masker = masker

    @classmethod
    async def start(cls, prepared: Prepared, folder: RunFolder, journal: RunJournal, masker: Masker) -> Plant:
        """Build the models, open the gateway and import the agent and the reward function in their slots.

        Raises Missing for a key or package, UsageError with the reason if an import fails.
        """
        recipe, environ = prepared.recipe, prepared.environ
        limits = Limits(recipe.budget.max_llm_calls, recipe.budget.max_cost_usd)
        mask = masker.mask

        def say(text: str) -> None:
            journal.emit("log", level="info", message=text)
            journal.flash("note", message=text)

        service = ModelService(
            recipe.models, folder.calls, environ=environ, seed=recipe.seed, limits=limits, mask=mask, say=say
        )
        if service.damaged is not None:
            text = f"the call log was damaged; the whole file is kept as {service.damaged.name}, its good part is used"
            journal.emit("log", level="warning", message=text)
        gateway = Gateway(service)
        logs = folder.path / "logs"
        logs.mkdir(exist_ok=True)
        pool = agent_pool.build(recipe, gateway, logs, environ)
        plant = cls(prepared, journal, service, gateway, pool, logs, masker)
        try:
            await gateway.start()
            await plant._pool.start()
        except BaseException:
            await plant.close()
            raise
        gc.freeze()  # what is loaded by now stays, and need not be searched for garbage while rollouts run
        return plant

    def engine(self, stage: str, memo: Mapping[str, Rollout], policy: str = "policy") -> RolloutEngine:
        """The rollout engine of one stage. ``memo`` holds the rollouts that an earlier process finished, ``policy``
        is the role that answers the agent.

        Agents are seeded by the recipe, not by the stage, so that equal rollouts of two stages meet equal luck.
        """
        return RolloutEngine(
            stage=stage,
            recipe=self._recipe,
            pool=self._pool,
            gateway=self._gateway,
            service=self.service,
            journal=self._journal,
            memo=memo,
            seed=self._recipe.seed,
            masker=self._masker,
            policy=policy,
        )

    def cost(self, stage: str) -> dict[str, Json]:
        """Role -> calls, tokens and dollars of a stage so far, earlier attempts included."""
        return dict(self.service.open_stage(stage).totals())

    async def close(self) -> None:
        """End slots first, so that nobody is left to call the gateway. Hides no earlier error."""
        for end in (self._pool.close, self._gateway.stop, self.service.aclose):
            with contextlib.suppress(OSError, RuntimeError):
                await end()
        for path in self._logs.glob("*.log"):
            with contextlib.suppress(OSError, DiskFull):
                _mask_file(path, self._masker)


def _mask_file(path: Path, masker: Masker) -> None:
    """Take secrets out of what processes printed by themselves."""
    said = path.read_text("utf-8", "replace")
    masked = masker.mask(said)
    if masked != said:
        write_atomic(path, masked)
