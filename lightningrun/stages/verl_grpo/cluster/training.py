"""The stage with verl's own trainer: verl decides when rollouts are wanted and what is learned from them, we run the
agent, judge the weights, keep the best and see that the trainer lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import StageFailed
from lightningrun.files import disk_errors, write_atomic
from lightningrun.stages.base import StageContext
from lightningrun.stages.statistics import mean
from lightningrun.stages.training_thread import in_thread, told_until
from lightningrun.stages.verl_grpo.batch import Batch
from lightningrun.stages.verl_grpo.cluster import settings
from lightningrun.stages.verl_grpo.cluster.hub import CallsHaveRewards, Hub, Place
from lightningrun.stages.verl_grpo.cluster.policy import RemoteEngine
from lightningrun.stages.verl_grpo.cluster.trainer import Trainer
from lightningrun.stages.verl_grpo.config import GrpoConfig
from lightningrun.stages.verl_grpo.outcome import DEAD_STEPS, NOTHING_TO_LEARN, result_of
from lightningrun.stages.verl_process.configuration import gpu_count, tokens_of_context
from lightningrun.stages.verl_process.export import publish
from lightningrun.stages.verl_process.life import Life
from lightningrun.types import StageResult

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig

HEALTH = {
    "actor/entropy": "entropy",
    "actor/grad_norm": "grad_norm",
    "actor/kl_loss": "kl",
    "actor/pg_clipfrac": "clip_fraction",
    "critic/vf_explained_var": "critic.explained_variance",
    "critic/vf_loss": "critic.loss",
    "training/rollout_probs_diff_mean": "probability_gap",
    "timing_s/step": "step_s",
    "timing_s/gen": "rollouts_s",
    "timing_s/update_actor": "update_s",
    "timing_s/update_weights": "weights_s",
}
"""verl's names of what is forwarded -> ours."""
_LOOK_S = 0.2
_STARTS = 3
"""How often a start is tried."""


@dataclass(slots=True)
class Story:
    """What came of each step; written again and again, so that telling a step twice changes nothing."""

    rewards: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)
    alive: dict[int, bool] = field(default_factory=dict)
    """Whether there was anything to learn."""
    judged: dict[int, float] = field(default_factory=dict)
    """The mean reward on ``eval.split`` after so many steps."""
    places: dict[int, Place] = field(default_factory=dict)
    """Of the rows, after each step."""
    cpu_s: float = 0.0

    @property
    def best_step(self) -> int:
        return min(self.judged, key=lambda step: (-round(self.judged[step], 12), step))

    @property
    def dead(self) -> int:
        """Steps at the end without anything to learn."""
        alive = [step for step, live in self.alive.items() if live]
        return max(self.alive, default=0) - max(alive, default=0)

    @classmethod
    def load(cls, path: Path) -> Story:
        if not path.is_file():
            return cls()
        told = json.loads(path.read_text("utf-8"))
        cpu_s = told.pop("cpu_s")
        by_step = {name: {int(step): value for step, value in told[name].items()} for name in told}
        by_step["places"] = {step: Place(**place) for step, place in by_step.get("places", {}).items()}
        return cls(**by_step, cpu_s=cpu_s)


class RayTraining:
    """One run of the stage."""

    def __init__(self, ctx: StageContext, base: Path) -> None:
        self._ctx = ctx
        self._config: GrpoConfig = ctx.config
        self._base = base
        self._gpus = gpu_count()
        self._checkpoints = ctx.work / "verl"
        self._best = ctx.work / "best"
        self._log = ctx.work / "verl.log"
        self._story_file = ctx.work / "story.json"
        self._story = Story.load(self._story_file)
        self._health: dict[int, dict[str, float]] = {}
        self._told = told_until(ctx)
        self._over = False
        self._crowded = False

    async def run(self) -> StageResult:
        """Raises StageFailed (the trainer ended or hung, nothing to learn), and what rollouts raise."""
        ctx, config = self._ctx, self._config
        role = ctx.recipe.models[config.policy]
        engine = RemoteEngine(self._base, tokens_of_context(role, self._base), seeded=not self._gpus)
        engine.answered = lambda: self._life.sign()
        await ctx.service.rest(config.policy)  # verl serves the policy itself, and wants the memory
        self._hub = Hub(ctx, engine, self._story.places, self._trained, self._evaluated)
        self._hub.by_call = self._calls_had_rewards()
        left = _STARTS
        while True:
            try:
                if await self._went_on(role, last=left == 1):
                    return self._result()
            except CallsHaveRewards:
                self._hub.by_call = True
                ctx.info("the reward function gives `steps`: verl begins again, to compare single calls")
                continue
            left -= 1
            ctx.warn("Ray did not start within its 30 s, as the machine is busy: once more")

    def _calls_had_rewards(self) -> bool:
        """Whether the reward function has given ``steps`` to any rollout of this run."""
        return any(event["kind"] == "rollout" and event["rollout"].get("steps") for event in self._ctx.journal.events())

    async def _went_on(self, role: ModelConfig, last: bool) -> bool:
        """Let verl train to its end. Raises why it did not; False where it is worth another try."""
        config = self._config
        self._trainer = trainer = Trainer(self._log)
        self._life = Life(trainer, config.watchdog_s, self._story.cpu_s, time.process_time)
        tree = settings.configuration(config, role, self._base, self._gpus, self._hub.by_call)
        rows = {"train": config.steps * config.batch, "eval": len(self._ctx.data.splits[config.eval.split].tasks)}
        try:
            with disk_errors(trainer.folder):
                trainer.write(tree, rows, self._checkpoints)
            async with self._hub.listening(trainer.socket):
                keys = [model.api_key_env for model in self._ctx.recipe.models.values() if model.api_key_env]
                trainer.start("cuda" if self._gpus else "cpu", keys)
                await self._until_the_end()
        except StageFailed:
            if last or trainer.status is None or not trainer.was_too_slow:
                raise
            return False
        finally:
            await asyncio.shield(trainer.end())
        return True

    async def _until_the_end(self) -> None:
        """Until verl's trainer ends, or something ends it. Raises why, if it was not done."""
        serving = asyncio.create_task(self._hub.run())
        try:
            while self._trainer.status is None and not self._over:
                await asyncio.wait([serving], timeout=_LOOK_S)
                if serving.done():
                    serving.result()
                if ready := self._life.became_ready():
                    self._ctx.info(ready)
                self._tell()
                self._life.check()
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([serving])
        self._tell()
        if not self._over and (self._trainer.status or max(self._story.alive, default=0) < self._config.steps):
            raise self._trainer.failure()

    # What the hub tells

    def _trained(self, step: int, batch: Batch, health: dict[str, float]) -> None:
        story = self._story
        story.rewards[step], story.tokens[step] = health["reward"], health["tokens"]
        story.alive[step] = health["live"] > 0
        self._health[step] = health
        self._life.sign()
        self._save()  # before verl saves what it learned from these rows
        wanted = self._config.batch * self._config.group_size
        if self._hub.sequences > wanted and not self._crowded:
            self._crowded = True
            self._ctx.warn(
                f"{wanted} rollouts made {self._hub.sequences} sequences, as their calls do not go on token by token "
                f"(a history that is rewritten, or encoded in other tokens): verl makes an update for each {wanted}"
            )
        if story.dead >= DEAD_STEPS:
            if not any(story.alive.values()):
                raise StageFailed(
                    f"in {DEAD_STEPS} steps all rollouts of every row earned the same: nothing can be learned from "
                    "that",
                    hint=NOTHING_TO_LEARN,
                )
            self._ctx.info(f"stopped at step {step}: all rollouts of every row earn the same by now")
            self._over = True

    async def _evaluated(self, step: int, reward: float) -> None:
        self._story.judged[step] = reward
        self._life.sign()
        if step and self._story.best_step == step:
            made = self._checkpoints / f"global_step_{step}" / "actor" / "huggingface"
            await in_thread(lambda: self._keep(made, {"step": step, "reward": reward}))
        self._save()

    def _keep(self, made: Path, facts: dict[str, object]) -> None:
        """Put a checkpoint of verl's in the place of ``best``: it deletes old ones."""
        publish(made, self._base, self._best, self._best.with_name(".best"), facts)

    # What verl tells

    def _tell(self) -> None:
        for step, data in self._trainer.new_metrics():
            self._life.sign()
            values = {**self._health.pop(step, {})}
            values |= {ours: data[name] for name, ours in HEALTH.items() if name in data}
            if "grad_norm" in values and not math.isfinite(values["grad_norm"]):
                raise StageFailed(
                    f"the gradient became {values['grad_norm']} at step {step}",
                    hint="a smaller `lr`; the best checkpoint so far is kept",
                )
            if "tokens" in values and values.get("step_s"):
                values["tokens_per_s"] = values["tokens"] / values["step_s"]
            if step in self._story.judged:
                values["val.reward"] = self._story.judged[step]
                values["val.best"] = max(value for at, value in self._story.judged.items() if at <= step)
            self._story.cpu_s = self._life.spent_s()
            values["cpu_s"] = round(self._story.cpu_s, 3)
            self._save()
            if step > self._told:
                self._told = step
                self._ctx.journal.emit("metric", stage=self._ctx.stage, step=step, values=values)

    def _save(self) -> None:
        write_atomic(self._story_file, json.dumps(asdict(self._story)))

    # The end

    def _result(self) -> StageResult:
        story, config = self._story, self._config
        target = self._ctx.outputs / "model"
        best = story.best_step
        if best:
            shutil.copytree(self._best, target)
        else:
            self._keep(self._base, {"step": 0, "reward": story.judged[0]})
            shutil.copytree(self._best, target)
        tail = [story.rewards[step] for step in sorted(story.rewards)][-10:]
        return result_of(
            self._ctx,
            {
                "reward": story.judged[best],
                "reward_start": story.judged.get(0),
                "best_step": best,
                "steps": max(story.alive, default=config.steps),
                "train_reward": mean(tail) if tail else None,
                "tokens": int(sum(story.tokens.values())),
                "cpu_s": round(story.cpu_s, 3),
            },
        )
