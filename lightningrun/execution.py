"""One run, from its first event to its last: stages in order, each committed once, whatever ends the process.

The plant (model service, gateway, agent slots) is started by the first stage that has to run; a run that is answered
from the cache starts nothing. Ctrl-C drains what is in flight, a second one leaves at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun import provenance, runfolder
from lightningrun.errors import (
    DiskFull,
    ExitCode,
    GateNotMet,
    Interrupted,
    LightningError,
)
from lightningrun.files import RunLock, commit_folder, digest, disk_errors, verify_folder, write_atomic
from lightningrun.planning import Action, Known, Planner, Selection, StagePlan
from lightningrun.prepared import Prepared
from lightningrun.recipe import LoadedRecipe
from lightningrun.runfolder import RunFolder, StageState
from lightningrun.secrets import Masker
from lightningrun.stages.base import StageContext
from lightningrun.tracking.journal import Observer, RunJournal
from lightningrun.types import Rollout, StageResult

if TYPE_CHECKING:
    from lightningrun.plant import Plant
    from lightningrun.tracking.mirror import Mirror, MirrorState

MIRROR_WAIT_S = 4.0
"""How long the end of a run waits for MLflow before it leaves the mirror to finish by itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. ``error`` is None exactly when ``exit_code`` is 0."""

    run_dir: Path
    status: str
    """succeeded | failed | interrupted"""
    exit_code: int
    error: LightningError | None = None
    results: Mapping[str, StageResult] = dataclasses.field(default_factory=dict)
    mirror: MirrorState | None = None


class Execution:
    """The execution of one experiment in one run folder. Use once."""

    def __init__(
        self,
        experiment: Prepared,
        folder: RunFolder,
        selection: Selection,
        keep_going: bool,
        observers: tuple[Observer, ...],
        warnings: Sequence[str],
    ) -> None:
        self.experiment = experiment
        self.recipe = experiment.recipe
        self.folder = folder
        self.selection = selection
        self.keep_going = keep_going
        self.observers = observers
        self.warnings = warnings
        self.resumed = False
        self.changes: list[str] = []
        names = [model.api_key_env for model in self.recipe.models.values() if model.api_key_env]
        self.masker = Masker.from_environ(experiment.environ, names)
        self._interrupts = 0
        self._main: asyncio.Task[Any] | None = None

    def freeze(self) -> None:
        """Write the recipe as it stands, resolved, with what it was made with; from here on this is a run."""
        folder, experiment = self.folder, self.experiment
        mask = self.masker.mask
        source = experiment.loaded.path
        if source.is_file():
            write_atomic(folder.recipe, mask(source.read_text("utf-8")))
        write_atomic(folder.resolved, mask(experiment.loaded.to_yaml()))
        git = provenance.git(experiment.root)
        if git.get("dirty"):
            write_atomic(folder.path / "dirty.patch", mask(provenance.dirty_patch(experiment.root)))
        data = {name: split.digest for name, split in experiment.data.splits.items()}
        options = {
            "start": self.selection.start,
            "until": self.selection.until,
            "force": sorted(self.selection.force),
            "no_cache": self.selection.no_cache,
            "keep_going": self.keep_going,
        }
        lock = {
            "run": folder.id,
            "recipe": str(source),
            "recipe_digest": experiment.loaded.digest,
            "overrides": list(experiment.loaded.overrides),
            "argv": shlex.join(sys.argv),
            "cwd": str(experiment.root),
            "options": options,
            "seed": self.recipe.seed,
            "data": data,
            "git": git,
            "python": provenance.python_version(),
            "packages": provenance.packages(),
        }
        write_atomic(folder.lock, mask(json.dumps(lock, indent=1, ensure_ascii=False)))
        runfolder.point_latest(experiment.runs_dir, folder)

    def run(self) -> RunResult:
        """Execute to the end, blocking. Raises Locked if another process is at work on the folder."""
        lock = RunLock(self.folder.path)
        try:
            return _run_in_own_loop(self._execute)
        finally:
            lock.release()

    async def _execute(self) -> RunResult:
        journal = RunJournal(self.folder.journal, self.observers, self.masker.mask)
        began = time.monotonic()
        mirror: Mirror | None = None
        status, error = "succeeded", None
        results: dict[str, StageResult] = {}
        try:
            self._announce(journal)
            mirror = self._start_mirror()
            if mirror is not None:
                journal.observe(mirror.nudge)
            with self._interruptible():
                error = await self._stages(journal, results)
        except LightningError as raised:
            error = raised
        except asyncio.CancelledError:
            error = Interrupted("interrupted", hint=f"go on with: lightningrun resume {self.folder.id}")
        except OSError as raised:
            error = DiskFull(str(raised)) if raised.errno == 28 else None
            if error is None:
                raise
        finally:
            mirror_state = self._end(journal, mirror, began, results, status, error)
        status = _status(error)
        code = int(error.exit_code) if error is not None else int(ExitCode.OK)
        return RunResult(self.folder.path, status, code, error, results, mirror_state)

    def _announce(self, journal: RunJournal) -> None:
        if journal.damaged is not None:
            text = f"the journal was damaged; the whole file is kept as {journal.damaged.name}, its good part is used"
            journal.emit("log", level="warning", message=text)
        if self.resumed:
            journal.emit("run_resumed", run=self.folder.id, argv=shlex.join(sys.argv), changes=self.changes)
            if self.changes:
                write_atomic(self.folder.resolved, self.masker.mask(self.experiment.loaded.to_yaml()))
            return
        journal.emit(
            "run_started",
            run=self.folder.id,
            name=self.recipe.name,
            recipe_digest=self.experiment.loaded.digest,
            seed=self.recipe.seed,
            notes=list(self.experiment.notes),
            stages={stage: config.type for stage, config in self.recipe.stages.items()},
            argv=shlex.join(sys.argv),
            warnings=list(self.warnings),
        )

    def _end(
        self,
        journal: RunJournal,
        mirror: Mirror | None,
        began: float,
        results: Mapping[str, StageResult],
        status: str,
        error: LightningError | None,
    ) -> MirrorState | None:
        """Write the last event and the report; never raises."""
        from lightningrun.tracking.report import write_report

        with contextlib.suppress(DiskFull):
            journal.emit(
                "run_finished",
                status=_status(error),
                exit_code=int(error.exit_code) if error else 0,
                error=str(error) if error else "",
                metrics={stage: dict(result.metrics) for stage, result in results.items()},
                duration_s=round(time.monotonic() - began, 3),
            )
            journal.sync()
        try:
            write_report(self.folder.path)
        except Exception as failure:
            with contextlib.suppress(DiskFull):
                journal.emit("log", level="warning", message=f"report.html could not be written: {failure}")
        journal.close()
        return mirror.finish(MIRROR_WAIT_S) if mirror is not None else None

    def _start_mirror(self) -> Mirror | None:
        tracking = self.recipe.tracking
        if not tracking.enabled:
            return None
        from lightningrun.tracking.mirror import Mirror
        from lightningrun.tracking.store import default_uri

        runs_dir = self.experiment.runs_dir
        uri = default_uri(runs_dir, tracking, self.experiment.environ)
        return Mirror.start(
            self.folder.path,
            uri=uri,
            experiment=tracking.experiment,
            runs_dir=runs_dir,
            environ=self.experiment.environ,
        )

    # ------------------------------------------------------------------ stages

    async def _stages(self, journal: RunJournal, results: dict[str, StageResult]) -> LightningError | None:
        planner = self.experiment.planner(self.selection)
        known: dict[str, Known] = {}
        first_error: LightningError | None = None
        broken: set[str] = set()
        plant: Plant | None = None
        try:
            for stage in self.recipe.stages:
                plan = planner.decide(stage, known)
                needs = {i.stage for i in plan.inputs.values()} | {s for _, s in self._config(stage).references()}
                if broken & needs:
                    plan = dataclasses.replace(
                        plan, action=Action.SKIPPED, reason=f"{', '.join(sorted(broken & needs))} failed"
                    )
                reused = self._reusable(plan, planner)
                if plan.action is Action.SKIPPED:
                    self._skip(journal, plan)
                    known[stage] = Known(plan)
                    continue
                if reused is not None:
                    result = self._reuse(journal, plan, *reused)
                else:
                    if plant is None:
                        plant = await self._start_plant(journal)
                    try:
                        result = await self._run_stage(journal, plant, plan, known)
                    except LightningError as error:
                        if not self.keep_going or isinstance(error, (Interrupted, DiskFull)):
                            raise
                        first_error = first_error or error
                        broken.add(stage)
                        kept = getattr(error, "result", None)
                        known[stage] = Known(plan, kept)
                        continue
                results[stage] = result
                known[stage] = Known(plan, result)
        finally:
            if plant is not None:
                await asyncio.shield(plant.close())
        return first_error

    def _config(self, stage: str) -> Any:
        return self.recipe.stages[stage]

    def _reusable(self, plan: StagePlan, planner: Planner) -> tuple[StageResult, Path, str] | None:
        """A result for the plan's key that verifies: this run's own (when resumed), else the cache's."""
        own = self.folder.read_state(plan.id) if self.resumed else None
        if own is not None and own.done and own.key == plan.key and plan.action is not Action.SKIPPED:
            if verify_folder(self.folder.outputs(plan.id)) is not None:
                return own.stage_result(), self.folder.outputs(plan.id), "finished before in this run"
            self._set_aside(plan.id)
        if plan.action is Action.CACHED:
            result = planner.cached_result(plan)
            if result is not None:
                return result, self.experiment.runs_dir / "cache" / plan.key, plan.reason
        return None

    def _set_aside(self, stage: str) -> None:
        from lightningrun.files import set_aside

        outputs = self.folder.outputs(stage)
        if outputs.exists():
            set_aside(outputs)

    def _skip(self, journal: RunJournal, plan: StagePlan) -> None:
        journal.emit("stage_skipped", stage=plan.id, type=plan.type, ordinal=plan.ordinal, reason=plan.reason)
        self.folder.write_state(StageState(plan.id, plan.type, plan.ordinal, "skipped", reason=plan.reason))

    def _reuse(
        self, journal: RunJournal, plan: StagePlan, result: StageResult, found: Path, reason: str
    ) -> StageResult:
        outputs = self.folder.outputs(plan.id)
        if found != outputs and verify_folder(outputs) is None:
            self._set_aside(plan.id)
            _copy_folder(found, outputs)
        before = self.folder.read_state(plan.id)
        if before is not None and before.done and before.key == plan.key:
            return result
        journal.emit(
            "stage_reused",
            stage=plan.id,
            type=plan.type,
            ordinal=plan.ordinal,
            key=plan.key,
            reason=reason,
            metrics=dict(result.metrics),
            outputs=sorted(result.outputs),
            cost={},
        )
        record = result.to_json()
        self.folder.write_state(
            StageState(plan.id, plan.type, plan.ordinal, "reused", plan.key, reason, 1, plan.key_parts, record)
        )
        return result

    async def _run_stage(
        self, journal: RunJournal, plant: Plant, plan: StagePlan, known: Mapping[str, Known]
    ) -> StageResult:
        before = self.folder.read_state(plan.id)
        attempt = before.attempt + 1 if before is not None and before.status in ("running", "failed") else 1
        state = StageState(plan.id, plan.type, plan.ordinal, "running", plan.key, plan.reason, attempt, plan.key_parts)
        self.folder.write_state(state)
        journal.emit(
            "stage_started",
            stage=plan.id,
            type=plan.type,
            ordinal=plan.ordinal,
            attempt=attempt,
            key=plan.key,
            reason=plan.reason,
        )
        began = time.monotonic()
        building = self.folder.stage(plan.id) / ".outputs"
        shutil.rmtree(building, ignore_errors=True)
        with disk_errors(building):
            building.mkdir(parents=True)
        error: LightningError | None = None
        result: StageResult | None = None
        try:
            context = self._context(journal, plant, plan, known, building)
            inputs = {
                name: entry.outputs[i.output]
                for name, i in plan.inputs.items()
                if i.stage and (entry := known[i.stage].result) is not None and i.output in entry.outputs
            }
            spec = self.experiment.specs[plan.type]
            result = await spec.load()(context, inputs)
        except GateNotMet as raised:
            error, result = raised, getattr(raised, "result", None)
        except LightningError as raised:
            error = raised
        except asyncio.CancelledError:
            if not self._interrupts:
                raise
            error = Interrupted("interrupted", hint=f"go on with: lightningrun resume {self.folder.id}")
        finally:
            cost = plant.cost(plan.id)
        if result is not None:
            self._commit(plan, building, result)
        status = "succeeded" if error is None else "failed"
        duration = round(time.monotonic() - began, 3)
        journal.emit(
            "stage_finished",
            stage=plan.id,
            status=status,
            metrics=dict(result.metrics) if result else {},
            outputs=sorted(result.outputs) if result else [],
            cost=cost,
            duration_s=duration,
            error=str(error) if error else "",
        )
        journal.sync()
        done = dataclasses.replace(
            state,
            status=status,
            result=result.to_json() if result else None,
            cost=cost,
            duration_s=duration,
            error=self.masker.mask(str(error)) if error else "",
        )
        self.folder.write_state(done)
        if error is not None:
            raise error
        assert result is not None
        if not self.selection.no_cache:
            self._share(plan, result)
        return result

    def _context(
        self, journal: RunJournal, plant: Plant, plan: StagePlan, known: Mapping[str, Known], building: Path
    ) -> StageContext:
        source = plan.inputs.get("prompts")
        prompts: Mapping[str, str] = {name: p.text or "" for name, p in self.recipe.agent.prompts.items()}
        if source is not None and source.stage and (given := known[source.stage].result) is not None:
            prompts = {**prompts, **given.outputs[source.output].value}
        referenced = {stage for _, stage in self._config(plan.id).references()}
        seed = int(digest([self.recipe.seed, plan.id])[:12], 16)
        engine = plant.engine(plan.id, _memo(journal, plan))
        return StageContext(
            stage=plan.id,
            config=self._config(plan.id),
            recipe=self.recipe,
            seed=seed,
            data=self.experiment.data,
            prompts=prompts,
            journal=journal,
            engine=engine,
            service=plant.service,
            outputs=building,
            results={s: r for s in referenced if (r := known[s].result) is not None},
            references={s: self.folder.outputs(s) for s in referenced},
        )

    def _commit(self, plan: StagePlan, building: Path, result: StageResult) -> None:
        outputs = self.folder.outputs(plan.id)
        self._set_aside(plan.id)
        commit_folder(building, outputs, {"key": plan.key, "stage": plan.id, "result": result.to_json()})

    def _share(self, plan: StagePlan, result: StageResult) -> None:
        """Put a copy of the outputs under the stage's key, for later runs."""
        cache = self.experiment.runs_dir / "cache"
        target = cache / plan.key
        if self.selection.forced(plan.id) and target.exists():
            shutil.rmtree(target, ignore_errors=True)
        if target.exists() and verify_folder(target) is not None:
            return
        with disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
        building = cache / f".{plan.key}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        _copy_folder(self.folder.outputs(plan.id), building)
        commit_folder(
            building, target, {"key": plan.key, "stage": plan.id, "run": self.folder.id, "result": result.to_json()}
        )

    async def _start_plant(self, journal: RunJournal) -> Plant:
        from lightningrun.plant import Plant

        return await Plant.start(self.experiment, self.folder, journal, self.masker.mask)

    # ------------------------------------------------------------------ Ctrl-C

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """SIGINT and SIGTERM cancel the run once, politely; the second time the process leaves at once."""
        self._main = asyncio.current_task()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            os._exit(int(ExitCode.INTERRUPTED))
        if self._main is not None:
            self._main.cancel()


def _status(error: LightningError | None) -> str:
    if error is None:
        return "succeeded"
    return "interrupted" if isinstance(error, Interrupted) else "failed"


def _memo(journal: RunJournal, plan: StagePlan) -> dict[str, Rollout]:
    """Rollouts of this stage, under this very key, that a killed attempt finished."""
    memo: dict[str, Rollout] = {}
    current = ""
    for event in journal.events():
        if event["stage"] != plan.id:
            continue
        if event["kind"] == "stage_started":
            current = event["key"]
        elif event["kind"] == "rollout" and current == plan.key:
            rollout = Rollout.from_json(event["rollout"])
            memo[rollout.key] = rollout
    return memo


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


def _run_in_own_loop(main: Any) -> RunResult:
    """``asyncio.run``, from a thread of its own when the caller (a notebook) already runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())  # type: ignore[no-any-return]
    found: list[RunResult] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(main())))
    thread.start()
    thread.join()
    return found[0]


def frozen_changes(before: str, after: LoadedRecipe) -> list[str]:
    """The lines by which overrides change a frozen recipe, as a unified diff without context."""
    lines = difflib.unified_diff(before.splitlines(), after.to_yaml().splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
