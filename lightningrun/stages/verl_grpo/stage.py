"""The ``verl_grpo`` stage: roll out the agent as it is, reward it, let verl say what to learn, serve the new weights.

The weights that do best on ``eval.split`` are the result, those of the beginning among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightningrun.errors import StageFailed
from lightningrun.models.local import checkpoint, lora
from lightningrun.models.local.folder import find
from lightningrun.models.local.tokenizer import ChatTokenizer
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.stages.evaluate.gate import row_mean, scores_by_row
from lightningrun.stages.statistics import mean
from lightningrun.stages.training_thread import in_thread, told_until
from lightningrun.stages.verl_grpo.algorithm import Algorithm
from lightningrun.stages.verl_grpo.batch import Batch, Group
from lightningrun.stages.verl_grpo.config import GrpoConfig, backend_of
from lightningrun.stages.verl_grpo.learner import Learner
from lightningrun.stages.verl_grpo.outcome import DEAD_STEPS, JUDGED, LITTLE, NOTHING_TO_LEARN, result_of, success_of
from lightningrun.stages.verl_grpo.rows import Rows
from lightningrun.stages.verl_grpo.serving import Sampler, engine_cpu_s, local_provider
from lightningrun.types import Artifact, Rollout, StageResult


@dataclass(slots=True)
class State:
    """What a stage killed between two steps goes on from, beside weights and optimizer."""

    step: int = 0
    groups: int = 0
    """Drawn so far; numbers the samples, so that no rollout is asked for twice."""
    rows: dict[str, Any] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step."""
    rewards: list[float] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    start: float | None = None
    """The mean reward on ``eval.split`` before training."""
    dead: int = 0
    """Steps in a row without anything to learn."""
    learned: bool = False
    tokens: int = 0
    cpu_s: float = 0.0


async def run(ctx: StageContext, inputs: Mapping[str, Artifact]) -> StageResult:
    """Train. Raises StageFailed (nothing to learn, no number, out of memory, no progress), ModelError, Missing."""
    config: GrpoConfig = ctx.config
    base = (
        ctx.folders["model"]
        if "model" in inputs
        else find(ctx.recipe.models[config.policy].name, f"models.{config.policy}.name")
    )
    if backend_of(config) == "ray":
        from lightningrun.stages.verl_grpo.cluster.training import RayTraining

        return await RayTraining(ctx, base).run()
    algorithm = await in_thread(lambda: Algorithm(config), config.watchdog_s)
    gc.collect()
    gc.freeze()  # verl and what it brings stay: to look through them for garbage would take a fifth of each step
    return await Training(ctx, base, algorithm).run()


class Training:
    """One run of the stage."""

    def __init__(self, ctx: StageContext, base: Path, algorithm: Algorithm) -> None:
        self._ctx = ctx
        self._config: GrpoConfig = ctx.config
        self._provider = local_provider(ctx.service, self._config.policy)
        self._tokenizer = ChatTokenizer.load(base)
        self._base = base
        self._algorithm = algorithm
        self._rows = Rows(ctx.data.splits[self._config.split].tasks, ctx.seed, self._config.rest)
        self._judged = ctx.data.splits[self._config.eval.split].tasks
        self._best = ctx.work / "best"
        self._clock = time.process_time()
        self._state = State()

    async def run(self) -> StageResult:
        ctx, config = self._ctx, self._config
        engine = await self._provider.engine()
        decoder = checkpoint.load(self._base, device=engine.device)
        if config.lora is not None:
            lora.adapt(decoder, config.lora.rank, config.lora.alpha, config.lora.targets, ctx.seed)
        self._learner = learner = Learner(decoder, self._algorithm, config, self._base, ctx.work)
        self._resume(learner.load())
        if learner.step:
            await self._serve()
        told, saved = told_until(ctx), time.monotonic()
        try:
            while True:
                values = {**self._state.told, **(await self._evaluated() if self._is_due(learner.step) else {})}
                if learner.step > told:
                    ctx.journal.emit("metric", stage=ctx.stage, step=learner.step, values=values)
                if learner.step >= config.steps or self._is_over():
                    break
                await self._step()
                if time.monotonic() - saved > config.save_every_s:
                    self._save()
                    saved = time.monotonic()
        except asyncio.CancelledError:
            self._save()
            raise
        if self._best_is_old():
            await self._evaluated()
        return self._result()

    def _is_due(self, step: int) -> bool:
        return step % self._config.eval.every == 0 or step == self._config.steps

    def _best_is_old(self) -> bool:
        """Whether training ended before its last evaluation."""
        return self._learner.step % self._config.eval.every != 0 and self._learner.step < self._config.steps

    # One step

    async def _step(self) -> None:
        ctx, learner = self._ctx, self._learner
        began = time.monotonic()
        batch = await self._batch()
        if learner.step == 0:
            await self._compare_with_greedy(batch)
        samples = batch.samples(ctx.service.read, self._config.policy, self._config.train_on)
        learn_began = time.process_time()
        values = batch.health(samples)
        learns = len({reward for sample in samples for reward in sample.rewards}) > 1
        if learns:
            look_back = self._is_due(learner.step + 1)
            values |= await in_thread(lambda: learner.update(samples, look_back), self._config.watchdog_s)
            values["cpu_s.update"] = time.process_time() - learn_began
        else:
            learner.step += 1
        self._note(batch, values, time.monotonic() - began)
        if learns:
            await self._serve()

    def _note(self, batch: Batch, values: dict[str, float], took_s: float) -> None:
        state = self._state
        alive = values["live"] > 0 or values.get("grad_norm", 0.0) > 0
        state.step = self._learner.step
        state.groups += len(batch.groups)
        state.rows = self._rows.place
        state.dead = 0 if alive else state.dead + 1
        state.learned = state.learned or alive
        state.tokens += int(values["tokens"])
        state.rewards = [*state.rewards, values["reward"]]
        self._spend()
        values["tokens_per_s"] = values["tokens"] / max(took_s, 1e-9)
        values |= {f"cpu_s.{name}": spent for name, spent in batch.cpu_s.items()}
        values["cpu_s"] = round(state.cpu_s, 3)
        state.told = values

    async def _batch(self) -> Batch:
        """Rows of the step with their rollouts; rows without variance replaced by fresh ones as far as allowed."""
        config, state = self._config, self._state
        batch = Batch(config.batch)
        clock, model = time.process_time(), engine_cpu_s()
        allowed = round(config.batch * config.resample)
        while (missing := batch.missing) and (room := allowed - len(batch.groups)) > 0:
            rows = self._rows.take(min(missing, room), batch.ids)
            if not rows:
                break
            first = state.groups + len(batch.groups)
            requests = [
                RolloutRequest(row, self._ctx.prompts, (first + place) * config.group_size + member)
                for place, row in enumerate(rows)
                for member in range(config.group_size)
            ]
            sampler = Sampler(self._provider, config.sampling.temperature, config.sampling.max_tokens)
            with self._ctx.service.stand_in(config.policy, sampler):
                rollouts = await self._rolled_out(requests)
            for place, row in enumerate(rows):
                mine = rollouts[place * config.group_size : (place + 1) * config.group_size]
                batch.groups.append(Group(row, mine))
        for group in batch.groups:
            if group.all_right(success_of(self._ctx)):
                self._rows.solved(group.row.id)
        batch.cpu_s["model"] = engine_cpu_s() - model
        batch.cpu_s["agents"] = time.process_time() - clock - batch.cpu_s["model"]
        return batch

    async def _rolled_out(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        async with self._watched():
            return await self._ctx.engine.run(requests, total=self._ctx.engine.done + len(requests))

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Ends what is inside when no rollout ends for ``watchdog_s``. Raises StageFailed then."""
        mine = asyncio.current_task()
        limit_s, engine = self._config.watchdog_s, self._ctx.engine
        hung = False

        async def watch() -> None:
            nonlocal hung
            done, since = engine.done, time.monotonic()
            while time.monotonic() - since < limit_s:
                await asyncio.sleep(min(1.0, limit_s / 4))
                if engine.done != done:
                    done, since = engine.done, time.monotonic()
            hung = True
            if mine is not None:
                mine.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if not hung:
                raise
            raise StageFailed(
                f"no rollout ended within {limit_s:g} s", hint="`resume` begins at the last saved step"
            ) from None
        finally:
            watcher.cancel()

    async def _serve(self) -> None:
        """Let the agent be answered by the weights as they are now, under a name that no other weights bear."""
        label = f"{self._ctx.stage}/{self._ctx.work.name}/step-{self._learner.step}"
        await self._provider.update_weights(self._learner.policy, label)

    # What is measured

    async def _evaluated(self) -> dict[str, float]:
        """The mean reward on ``eval.split``; the weights are kept if it is the best."""
        state, step = self._state, self._learner.step
        first = JUDGED + step * self._config.eval.samples
        requests = [
            RolloutRequest(task, self._ctx.prompts, first + sample)
            for task in self._judged
            for sample in range(self._config.eval.samples)
        ]
        rollouts = await self._rolled_out(requests)
        by_row = scores_by_row(rollouts)
        if not by_row:
            raise StageFailed(f"not one rollout on {self._config.eval.split!r} has a score")
        heavy = any(task.weight != 1.0 for task in self._judged)
        reward = row_mean(by_row, {task.id: task.weight for task in self._judged} if heavy else {})
        if state.start is None:
            state.start = reward
        if state.best is None or reward > state.best + 1e-12 or step == state.best_step:
            state.best, state.best_step = reward, step
            facts = {"step": step, "reward": reward}
            await in_thread(lambda: checkpoint.save(self._learner.policy, self._tokenizer, self._best, facts))
        return {"val.reward": reward, "val.best": state.best}

    async def _compare_with_greedy(self, batch: Batch) -> None:
        """Before the first update: would it pay to make what is sometimes found likelier?"""
        requests = [RolloutRequest(group.row, self._ctx.prompts, JUDGED - 1) for group in batch.groups]
        with self._ctx.service.stand_in(
            self._config.policy, Sampler(self._provider, 0.0, self._config.sampling.max_tokens)
        ):
            once = await self._rolled_out(requests)
        greedy = mean([float((one.score or 0.0) >= success_of(self._ctx)) for one in once])
        often = mean([float(group.any_right(success_of(self._ctx))) for group in batch.groups])
        batch.extra = {"start.greedy": greedy, f"start.pass_at_{self._config.group_size}": often}
        if often - greedy < LITTLE:
            self._ctx.warn(
                f"RL has little to learn from: {self._config.group_size} samples get {often:.0%} of rows right at "
                f"least once, one greedy answer {greedy:.0%}"
            )

    # The end

    def _is_over(self) -> bool:
        """Whether there is nothing to learn any more. Raises StageFailed if there never was."""
        if self._state.dead < DEAD_STEPS:
            return False
        if not self._state.learned:
            raise StageFailed(
                f"in {DEAD_STEPS} steps all rollouts of every row earned the same: nothing can be learned from that",
                hint=NOTHING_TO_LEARN,
            )
        self._ctx.info(f"stopped at step {self._learner.step}: all rollouts of every row earn the same by now")
        return True

    def _result(self) -> StageResult:
        state = self._state
        shutil.copytree(self._best, self._ctx.outputs / "model")
        self._spend()
        tail = state.rewards[-10:]
        return result_of(
            self._ctx,
            {
                "reward": state.best,
                "reward_start": state.start,
                "best_step": state.best_step,
                "steps": self._learner.step,
                "train_reward": mean(tail) if tail else None,
                "tokens": state.tokens,
                "cpu_s": round(state.cpu_s, 3),
            },
        )

    def _spend(self) -> None:
        now = time.process_time()
        self._state.cpu_s += now - self._clock
        self._clock = now

    def _save(self) -> None:
        if self._learner.step == self._state.step:  # else an update was interrupted: what was saved before it stands
            self._learner.save(asdict(self._state))

    def _resume(self, facts: dict[str, Any]) -> None:
        if facts:
            self._state = State(**facts)
        if self._state.rows:
            self._rows.resume(self._state.rows)
        self._clock = time.process_time()
