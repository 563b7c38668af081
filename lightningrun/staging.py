"""One stage of a run: found finished, reused, skipped or executed, and committed once.

The commit point is the rename of the outputs folder, whose manifest holds key, result and status. Whatever else is
written afterwards (the last event, ``state.json``, the cache) is made up for by ``resume`` if a kill came between.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.errors import GateNotMet, Interrupted, LightningError
from lightningrun.files import commit_folder, digest, disk_errors, set_aside, verify_folder
from lightningrun.planning import Action, Known, Planner, StagePlan
from lightningrun.prepared import Prepared
from lightningrun.runfolder import RunFolder, StageState
from lightningrun.secrets import Masker
from lightningrun.stages.base import StageContext
from lightningrun.tracking.journal import RunJournal
from lightningrun.tracking.story import keep_story
from lightningrun.types import ArtifactKind, Json, Rollout, StageResult

if TYPE_CHECKING:
    from lightningrun.plant import Plant


@dataclass(frozen=True, slots=True)
class Finished:
    """A committed result: where its files are, and whose it is."""

    result: StageResult
    outputs: Path
    reason: str
    facts: Mapping[str, Json]


class StageRunner:
    """Runs the stages of one run folder. One method for each thing that can happen to a stage."""

    def __init__(self, prepared: Prepared, folder: RunFolder, journal: RunJournal, masker: Masker) -> None:
        self._prepared = prepared
        self._recipe = prepared.recipe
        self._folder = folder
        self._journal = journal
        self._masker = masker
        self._cache = prepared.runs_dir / "cache"

    def finished(self, plan: StagePlan, planner: Planner) -> Finished | None:
        """A verified result for the plan's key: this run's own if it was killed after the commit, else the cache's."""
        if plan.action is Action.SKIPPED:
            return None
        outputs = self._folder.outputs(plan.id)
        own = verify_folder(outputs)
        if own is not None and own.get("key") == plan.key and own.get("status") == "succeeded":
            return Finished(StageResult.from_json(own["result"]), outputs, "finished before in this run", own)
        if plan.action is Action.CACHED and (result := planner.cached_result(plan)) is not None:
            return Finished(result, self._cache / plan.key, plan.reason, {})
        return None

    def skip(self, plan: StagePlan) -> None:
        self._journal.emit("stage_skipped", stage=plan.id, type=plan.type, ordinal=plan.ordinal, reason=plan.reason)
        self._folder.write_state(StageState(plan.id, plan.type, plan.ordinal, "skipped", reason=plan.reason))

    def reuse(self, plan: StagePlan, found: Finished) -> StageResult:
        """Take over a committed result, with a copy of its files in this run."""
        before = self._folder.read_state(plan.id)
        if found.outputs == self._folder.outputs(plan.id):
            if before is None or not before.done or before.key != plan.key or plan.id not in self._concluded():
                self._conclude(plan, before, found.result, found.facts, None)
            else:
                self._journal.emit("log", stage=plan.id, level="info", message=f"{plan.id}: {found.reason}, kept")
            return found.result
        self._clear(self._folder.outputs(plan.id))
        _copy_folder(found.outputs, self._folder.outputs(plan.id))
        self._journal.emit(
            "stage_reused",
            stage=plan.id,
            type=plan.type,
            ordinal=plan.ordinal,
            key=plan.key,
            reason=found.reason,
            inputs=_told(plan),
            metrics=dict(found.result.metrics),
            outputs=sorted(found.result.outputs),
            cost={},
        )
        record = found.result.to_json()
        self._folder.write_state(
            StageState(plan.id, plan.type, plan.ordinal, "reused", plan.key, found.reason, 1, plan.key_parts, record)
        )
        return found.result

    def _concluded(self) -> set[str]:
        """Stages whose end the journal holds; a damaged one may have lost it, although the outputs are committed."""
        concluded: set[str] = set()
        for event in self._journal.events():
            if event["kind"] in ("stage_finished", "stage_reused"):
                concluded.add(event["stage"])
            elif event["kind"] == "stage_started":
                concluded.discard(event["stage"])
        return concluded

    async def run(self, plan: StagePlan, plant: Plant, known: Mapping[str, Known]) -> StageResult:
        """Execute a stage and commit what it returns. Raises what the stage raised, after recording it."""
        before = self._folder.read_state(plan.id)
        attempt = before.attempt + 1 if before is not None and before.status in ("running", "failed") else 1
        state = StageState(plan.id, plan.type, plan.ordinal, "running", plan.key, plan.reason, attempt, plan.key_parts)
        self._folder.write_state(state)
        self._journal.emit(
            "stage_started",
            stage=plan.id,
            type=plan.type,
            ordinal=plan.ordinal,
            attempt=attempt,
            key=plan.key,
            reason=plan.reason,
            inputs=_told(plan),
            forecast=self._prepared.priced(plan).to_json()["forecast"],
        )
        began = time.monotonic()
        building = self._building(plan)
        error: LightningError | None = None
        result: StageResult | None = None
        try:
            run = self._prepared.specs[plan.type].load()
            self._serve(plan, plant, known)
            result = await run(self._context(plan, plant, known, building), _inputs(plan, known))
        except GateNotMet as raised:
            error, result = raised, raised.result
        except LightningError as raised:
            error = raised
        except asyncio.CancelledError:
            error = Interrupted("interrupted", hint=f"go on with: lightningrun resume {self._folder.id}")
        facts = {"cost": plant.cost(plan.id), "duration_s": round(time.monotonic() - began, 3)}
        if result is not None:
            self._commit(plan, building, result, error, facts)
        self._conclude(plan, state, result, facts, error)
        if error is not None:
            raise error
        assert result is not None
        return result

    def share(self, plan: StagePlan, result: StageResult, *, replace: bool) -> None:
        """Put a copy of the committed outputs under the stage's key, for later runs."""
        target = self._cache / plan.key
        if replace and target.exists():
            shutil.rmtree(target, ignore_errors=True)
        if verify_folder(target) is not None:
            return
        with disk_errors(self._cache):
            self._cache.mkdir(parents=True, exist_ok=True)
        building = self._cache / f".{plan.key}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        _copy_folder(self._folder.outputs(plan.id), building)
        facts = {"key": plan.key, "stage": plan.id, "run": self._folder.id, "result": result.to_json()}
        commit_folder(building, target, facts)

    def _building(self, plan: StagePlan) -> Path:
        building = self._folder.stage(plan.id) / ".outputs"
        shutil.rmtree(building, ignore_errors=True)
        with disk_errors(building):
            building.mkdir(parents=True)
        return building

    def _commit(
        self, plan: StagePlan, building: Path, result: StageResult, error: LightningError | None, facts: dict[str, Any]
    ) -> None:
        outputs = self._folder.outputs(plan.id)
        self._clear(outputs)
        keep_story(self._journal.events(), plan.id, building)
        status = "succeeded" if error is None else "failed"
        commit_folder(
            building,
            outputs,
            {"key": plan.key, "stage": plan.id, "status": status, "result": result.to_json(), **facts},
        )
        shutil.rmtree(self._folder.stage(plan.id) / "work", ignore_errors=True)

    def _clear(self, outputs: Path) -> None:
        """Make room for new outputs: what verifies is superseded, what does not is set aside."""
        if verify_folder(outputs) is not None:
            shutil.rmtree(outputs)
        elif outputs.exists():
            aside = set_aside(outputs)
            self._journal.emit(
                "log",
                level="warning",
                message=f"damaged outputs of a stage were set aside as {aside.name}, and are redone",
            )

    def _conclude(
        self,
        plan: StagePlan,
        state: StageState | None,
        result: StageResult | None,
        facts: Mapping[str, Json],
        error: LightningError | None,
    ) -> None:
        """Write the stage's last event and its final state."""
        status = "succeeded" if error is None else "failed"
        said = self._masker.mask(str(error)) if error else ""
        self._journal.emit(
            "stage_finished",
            stage=plan.id,
            status=status,
            metrics=dict(result.metrics) if result else {},
            outputs=sorted(result.outputs) if result else [],
            cost=facts.get("cost", {}),
            duration_s=facts.get("duration_s", 0.0),
            error=said,
        )
        self._journal.sync()
        state = state or StageState(plan.id, plan.type, plan.ordinal, status, plan.key, plan.reason, 1, plan.key_parts)
        self._folder.write_state(
            dataclasses.replace(
                state,
                status=status,
                key=plan.key,
                key_parts=plan.key_parts,
                result=result.to_json() if result else None,
                cost=facts.get("cost", {}),
                duration_s=facts.get("duration_s", 0.0),
                error=said,
            )
        )

    def _serve(self, plan: StagePlan, plant: Plant, known: Mapping[str, Known]) -> None:
        """Let the stage's policy answer from the checkpoint among its inputs, or else from the recipe's own."""
        checkpoint: Path | None = None
        for name, source in plan.inputs.items():
            artifact = _inputs(plan, known).get(name)
            if artifact is not None and artifact.kind is ArtifactKind.MODEL:
                checkpoint = self._folder.outputs(source.stage) / artifact.path
        plant.service.serve(self._recipe.stages[plan.id].policy, checkpoint)

    def _context(self, plan: StagePlan, plant: Plant, known: Mapping[str, Known], building: Path) -> StageContext:
        config = self._recipe.stages[plan.id]
        source = plan.inputs.get("prompts")
        prompts: Mapping[str, str] = {name: p.text or "" for name, p in self._recipe.agent.prompts.items()}
        if source is not None and source.stage and (given := known[source.stage].result) is not None:
            prompts = {**prompts, **given.outputs[source.output].value}
        referenced = {stage for _, stage in config.references()}
        made = {name: source.stage for name, source in plan.inputs.items() if source.stage}
        paths = {name: artifact.path for name, artifact in _inputs(plan, known).items() if artifact.path}
        return StageContext(
            stage=plan.id,
            config=config,
            recipe=self._recipe,
            seed=int(digest([self._recipe.seed, plan.id])[:12], 16),
            data=self._prepared.data,
            prompts=prompts,
            journal=self._journal,
            engine=plant.engine(plan.id, self._memo(plan), config.policy),
            service=plant.service,
            outputs=building,
            results={s: r for s in referenced if (r := known[s].result) is not None},
            references={s: self._folder.outputs(s) for s in referenced},
            work=self._work(plan),
            folders={name: self._folder.outputs(made[name]) / path for name, path in paths.items()},
            calls={name: self._calls(stage) for name, stage in made.items()},
        )

    def _work(self, plan: StagePlan) -> Path:
        """Of this very key: what another one left is removed."""
        work = self._folder.stage(plan.id) / "work" / plan.key[:16]
        if work.parent.exists() and not work.exists():
            shutil.rmtree(work.parent, ignore_errors=True)
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        return work

    def _calls(self, stage: str) -> Path:
        manifest = verify_folder(self._folder.outputs(stage)) or {}
        return self._prepared.runs_dir / str(manifest.get("run", self._folder.id)) / self._folder.calls.name

    def _memo(self, plan: StagePlan) -> dict[str, Rollout]:
        """Rollouts of this stage, under this very key, that a killed attempt finished."""
        memo: dict[str, Rollout] = {}
        current = ""
        for event in self._journal.events():
            if event["stage"] != plan.id:
                continue
            if event["kind"] == "stage_started":
                current = event["key"]
            elif event["kind"] == "rollout" and current == plan.key:
                rollout = Rollout.from_json(event["rollout"])
                memo[rollout.key] = rollout
        return memo


def _inputs(plan: StagePlan, known: Mapping[str, Known]) -> dict[str, Any]:
    return {
        name: result.outputs[source.output]
        for name, source in plan.inputs.items()
        if source.stage and (result := known[source.stage].result) is not None and source.output in result.outputs
    }


def _told(plan: StagePlan) -> dict[str, str]:
    return {name: str(source) for name, source in plan.inputs.items()}


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a committed folder, large files by hard link where the file system allows it."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    """Link what is large; copy what a person may edit in place."""
    if os.path.getsize(source) > 1 << 20:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
