"""``backend: verl``: verl's own SFT trainer, unforked, in a process of its own, on our demonstrations.

verl saves every so many updates, and goes on from there. What it saved is deleted here: the last checkpoint is kept,
and of the one that does best on what was held out, the weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lightningrun.errors import StageFailed
from lightningrun.files import disk_errors, write_atomic
from lightningrun.stages.base import StageContext
from lightningrun.stages.sft import verl_dataset
from lightningrun.stages.sft.config import SftConfig
from lightningrun.stages.sft.examples import Example
from lightningrun.stages.sft.verl_settings import TRAINER, configuration, save_every
from lightningrun.stages.statistics import mean
from lightningrun.stages.training_thread import in_thread, told_until
from lightningrun.stages.verl_process.configuration import gpu_count, place
from lightningrun.stages.verl_process.export import publish
from lightningrun.stages.verl_process.life import Life
from lightningrun.stages.verl_process.process import VerlProcess
from lightningrun.types import Json

_CURVE_POINTS = 100
_LAST = 50
"""Updates whose mean loss is the stage's."""
_LOOK_S = 0.2
_SAID = {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/lr": "lr", "val/loss": "val.loss"}
"""verl's names of what is forwarded -> ours."""


@dataclass(slots=True)
class Story:
    """What came of each update; written again and again, so that telling one twice changes nothing."""

    losses: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, float] = field(default_factory=dict)
    judged: dict[int, float] = field(default_factory=dict)
    """The loss on what was held out, after so many updates."""
    cpu_s: float = 0.0

    @classmethod
    def load(cls, path: Path) -> Story:
        if not path.is_file():
            return cls()
        told = json.loads(path.read_text("utf-8"))
        cpu_s = told.pop("cpu_s")
        return cls(**{name: {int(step): value for step, value in told[name].items()} for name in told}, cpu_s=cpu_s)


class VerlTraining:
    """One run of the stage's training. ``base``: the checkpoint that it begins with."""

    def __init__(self, ctx: StageContext, base: Path, examples: Sequence[Example]) -> None:
        """Raises StageFailed if there are too few demonstrations."""
        self._ctx = ctx
        self._config: SftConfig = ctx.config
        self._base = base
        self._gpus = gpu_count()
        self._checkpoints = ctx.work / "verl"
        self._log = ctx.work / "verl.log"
        self._story_file = ctx.work / "story.json"
        self._story = Story.load(self._story_file)
        self._batch, self._train, self._held = self._parts(examples)
        epochs = math.ceil(self._config.epochs * len(self._train) / self._batch)
        self.steps = self._config.steps or max(1, epochs)
        self._often = save_every(self._config, self.steps)
        self._waiting: dict[int, dict[str, float]] = {}
        """Metrics of updates whose evaluation is not there yet."""
        self._told = told_until(ctx)
        self._said = -1

    def _parts(self, examples: Sequence[Example]) -> tuple[int, list[Example], list[Example]]:
        """How many an update learns; what is learned, and what is held out: whole batches, as verl leaves out others.

        verl's order in an epoch is always the same: so the order here is by the seed.
        """
        several = max(1, self._gpus)
        batch = min(self._config.batch, len(examples)) // several * several
        shuffled = random.Random(f"{self._ctx.seed}/order").sample(list(examples), len(examples))
        held = math.ceil(self._config.holdout * len(examples) / max(1, batch)) * batch
        if not batch or len(examples) - held < batch:
            raise StageFailed(
                f"{len(examples)} demonstrations are too few for batches of {batch or several}"
                + (f", {held} of them held out" if held else ""),
                hint="a smaller `batch` or `holdout`",
            )
        return batch, shuffled[held:], shuffled[:held]

    async def run(self, folder: Path) -> dict[str, Json]:
        """Train, fill ``folder`` with the checkpoint, and return the metrics. Raises StageFailed, DiskFull."""
        if self._saved < self.steps:
            await self._let_verl_train()
        story = self._story
        kept = {step: loss for step, loss in story.judged.items() if self._weights(step).is_dir()}
        best = min(kept, key=lambda step: (kept[step], step)) if kept else self._saved
        made, building = self._weights(best), self._ctx.work / ".made"
        await in_thread(lambda: publish(made, self._base, folder, building, {"step": best}))
        last = sorted(story.losses)[-_LAST:]
        return {
            "loss": mean([story.losses[step] for step in last]) if last else None,
            "steps": self.steps,
            "tokens": int(sum(story.tokens.values())),
            "cpu_s": round(story.cpu_s, 3),
            **({"val_loss": kept[best], "best_step": best} if kept else {}),
        }

    async def _let_verl_train(self) -> None:
        ctx = self._ctx
        self._process = process = VerlProcess(self._log)
        self._life = Life(process, self._config.watchdog_s, self._story.cpu_s)
        try:
            with disk_errors(process.folder):
                self._write()
            keys = [model.api_key_env for model in ctx.recipe.models.values() if model.api_key_env]
            process.launch(self._program(), "cuda" if self._gpus else "cpu", keys, self._place_of_the_process())
            while process.status is None:
                await asyncio.sleep(_LOOK_S)
                self._look()
            self._look()
        finally:
            await asyncio.shield(process.end())
        if process.status or self._saved < self.steps:
            raise process.failure()

    def _write(self) -> None:
        role = self._ctx.recipe.models[self._config.policy]
        folder = self._process.folder
        tree = configuration(self._config, role, self._base, self._gpus, self._batch, self.steps)
        for name, examples in (("train", self._train), ("val", self._held)):
            if examples:
                verl_dataset.write(examples, folder / f"{name}.jsonl")
                place(tree, f"data.{name}_files", str(folder / f"{name}.jsonl"))
        place(tree, "trainer.default_local_dir", str(self._checkpoints))
        self._process.configure(TRAINER, tree)

    def _program(self) -> list[str]:
        module = ["-m", "verl.trainer.sft_trainer"]
        if not self._gpus:
            return module
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self._gpus), *module]

    def _place_of_the_process(self) -> dict[str, str]:
        """What ``torch.distributed.run`` would say to the one process that there is; no port is taken."""
        if self._gpus:
            return {}
        store = self._process.folder / "store"
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        return {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DIST_INIT_METHOD": f"file://{store}"}

    # What verl tells

    @property
    def _saved(self) -> int:
        """The update that the newest whole checkpoint was made after; 0: there is none."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._checkpoints / "latest_checkpointed_iteration.txt").read_text("utf-8"))
        return 0

    def _weights(self, step: int) -> Path:
        return self._checkpoints / f"global_step_{step}" / "huggingface"

    def _look(self) -> None:
        """Tell what is new, and delete what is old. Raises StageFailed: no number, no sign of life."""
        ctx, process = self._ctx, self._process
        if ready := self._life.became_ready():
            ctx.info(ready)
        saved = self._saved  # before the metrics: those of the evaluation before it are there then
        for step, data in process.new_metrics():
            values = self._waiting.setdefault(step, {})
            values |= {ours: data[name] for name, ours in _SAID.items() if name in data}
            self._note(step, values, data)
        self._story.cpu_s = self._life.spent_s()
        self._tell()
        self._delete_before(saved)
        if process.said != self._said:
            self._said = process.said
            self._life.sign()
        self._life.check()

    def _note(self, step: int, values: dict[str, float], data: dict[str, float]) -> None:
        for name in ("loss", "grad_norm", "val.loss"):
            if name in values and not math.isfinite(values[name]):
                raise StageFailed(
                    f"{name} became {values[name]} at step {step}",
                    hint="a smaller `lr`; `resume` begins at the last checkpoint",
                )
        story = self._story
        if "train/loss" in data:
            story.losses[step], story.tokens[step] = values["loss"], data["train/global_tokens"]
        if "val.loss" in values:
            story.judged[step] = values["val.loss"]

    def _tell(self) -> None:
        every = max(1, self.steps // _CURVE_POINTS)
        waiting = sorted(self._waiting)
        ready = [step for step in waiting if not self._is_due(step) or "val.loss" in self._waiting[step]]
        for step in ready:
            values = {**self._waiting.pop(step), "cpu_s": round(self._story.cpu_s, 3)}
            if step > self._told and (step % every == 0 or step == self.steps or "val.loss" in values):
                self._told = step
                self._ctx.journal.emit("metric", stage=self._ctx.stage, step=step, values=values)
            self._ctx.journal.flash("progress", stage=self._ctx.stage, done=step, total=self.steps, unit="updates")
        if ready:
            self._life.sign()
            write_atomic(self._story_file, json.dumps(asdict(self._story)))

    def _is_due(self, step: int) -> bool:
        """Whether the weights are judged after this update."""
        return bool(self._held) and (step % self._often == 0 or step == self.steps)

    # Checkpoints

    def _delete_before(self, saved: int) -> None:
        judged = {step: loss for step, loss in self._story.judged.items() if step <= saved}
        best = min(judged, key=lambda step: (judged[step], step), default=saved)
        for folder in self._checkpoints.glob("global_step_*"):
            step = int(folder.name.rpartition("_")[2])
            if step < saved and step != best:
                shutil.rmtree(folder, ignore_errors=True)
            elif step < saved:
                for state in folder.glob("*.pt"):
                    state.unlink(missing_ok=True)
