"""One run, from its first event to its last: stages in order, each committed once, whatever ends the process.

The plant (model service, gateway, agent slots) is started by the first stage that has to run; a run that is answered
from the cache starts nothing. Ctrl-C drains what is in flight, a second one leaves at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import difflib
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun import provenance, runfolder
from lightningrun.errors import DiskFull, ExitCode, GateNotMet, Interrupted, LightningError, StageFailed
from lightningrun.files import RunLock, write_atomic
from lightningrun.planning import Action, Known, Selection, StagePlan
from lightningrun.prepared import Prepared
from lightningrun.recipe import LoadedRecipe, StageConfig
from lightningrun.runfolder import RunFolder
from lightningrun.secrets import Masker
from lightningrun.staging import StageRunner
from lightningrun.tracking.journal import Observer, RunJournal
from lightningrun.types import StageResult

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
        if patch := provenance.dirty_patch(experiment.root):
            write_atomic(folder.path / "dirty.patch", mask(patch))
        lock = {
            "run": folder.id,
            "recipe": str(source),
            "recipe_digest": experiment.loaded.digest,
            "overrides": list(experiment.loaded.overrides),
            "argv": shlex.join(sys.argv),
            "cwd": str(experiment.root),
            "options": {**self.selection.to_json(), "keep_going": self.keep_going},
            "seed": self.recipe.seed,
            "data": {name: split.digest for name, split in experiment.data.splits.items()},
            **provenance.describe(experiment.root),
        }
        if (python := experiment.python_facts()) is not None:
            lock["agent_python"] = {"path": self.recipe.agent.python, **python}
        folder.freeze(json.loads(mask(json.dumps(lock, ensure_ascii=False))), mask(experiment.loaded.to_yaml()))
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
        error: LightningError | None = StageFailed("ended by a bug of lightningrun")
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
        finally:
            mirror_state = self._end(journal, mirror, began, results, error)
        code = int(error.exit_code) if error is not None else int(ExitCode.OK)
        return RunResult(self.folder.path, _status(error), code, error, results, mirror_state)

    def _announce(self, journal: RunJournal) -> None:
        if journal.damaged is not None:
            text = f"the journal was damaged; the whole file is kept as {journal.damaged.name}, its good part is used"
            journal.emit("log", level="warning", message=text)
        if self.resumed:
            journal.emit("run_resumed", run=self.folder.id, argv=shlex.join(sys.argv), changes=self.changes)
            if self.changes:
                self.folder.freeze(self.folder.read_lock(), self.masker.mask(self.experiment.loaded.to_yaml()))
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

    async def _stages(self, journal: RunJournal, results: dict[str, StageResult]) -> LightningError | None:
        """Every stage in order; returns the first error if the user asked to keep going past it."""
        planner = self.experiment.planner(self.selection)
        runner = StageRunner(self.experiment, self.folder, journal, self.masker)
        known: dict[str, Known] = {}
        first_error: LightningError | None = None
        broken: set[str] = set()
        async with contextlib.AsyncExitStack() as stack:
            plant: Plant | None = None
            for stage in self.recipe.stages:
                plan = _unless_broken(planner.decide(stage, known), broken, self.recipe.stages[stage])
                found = runner.finished(plan, planner)
                if plan.action is Action.SKIPPED:
                    runner.skip(plan)
                    known[stage] = Known(plan)
                    continue
                try:
                    if found is not None:
                        result = runner.reuse(plan, found)
                    else:
                        if plant is None:
                            plant = await self._start_plant(journal)
                            stack.push_async_callback(_shielded, plant)
                        result = await runner.run(plan, plant, known)
                    if not self.selection.no_cache and plan.action is not Action.CACHED:
                        runner.share(plan, result, replace=self.selection.forced(stage))
                except LightningError as error:
                    if not self.keep_going or isinstance(error, (Interrupted, DiskFull)):
                        raise
                    first_error = first_error or error
                    broken.add(stage)
                    known[stage] = Known(plan, error.result if isinstance(error, GateNotMet) else None)
                    continue
                results[stage] = result
                known[stage] = Known(plan, result)
        return first_error

    async def _start_plant(self, journal: RunJournal) -> Plant:
        from lightningrun.plant import Plant

        return await Plant.start(self.experiment, self.folder, journal, self.masker)

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


def _unless_broken(plan: StagePlan, broken: set[str], config: StageConfig) -> StagePlan:
    """Skip a stage that needs one that failed."""
    needs = {source.stage for source in plan.inputs.values()} | {stage for _, stage in config.references()}
    if not broken & needs:
        return plan
    return dataclasses.replace(plan, action=Action.SKIPPED, reason=f"{', '.join(sorted(broken & needs))} failed")


async def _shielded(plant: Plant) -> None:
    """Close the plant even while the run is being cancelled."""
    await asyncio.shield(plant.close())


def _run_in_own_loop(main: Any) -> RunResult:
    """``asyncio.run``, from a thread of its own when the caller (a notebook) already runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())  # type: ignore[no-any-return]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        done: concurrent.futures.Future[RunResult] = thread.submit(lambda: asyncio.run(main()))
        return done.result()


def frozen_changes(before: str, after: LoadedRecipe) -> list[str]:
    """The lines by which overrides change a frozen recipe, as a unified diff without context."""
    lines = difflib.unified_diff(before.splitlines(), after.to_yaml().splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
