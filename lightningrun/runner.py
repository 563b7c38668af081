"""The way in: load a recipe, check it, plan it, run it, resume it.

experiment = lightningrun.load("recipes/sql_agent.yaml", ["stages.apo.budget.max_rollouts=200"])
experiment.plan()
result = experiment.run()
result.results["final"].metrics["reward"]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun import runfolder, stages
from lightningrun.planning import Action, Plan, Selection, StagePlan
from lightningrun.prepared import Prepared, selection
from lightningrun.recipe import load as load_recipe
from lightningrun.recipe import load_text
from lightningrun.runfolder import RunFolder, find_run, list_runs
from lightningrun.tracking.journal import Observer

if TYPE_CHECKING:
    from lightningrun.execution import RunResult

__all__ = ["Action", "Experiment", "Plan", "StagePlan", "find_run", "list_runs", "load", "resume"]


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    runs_dir: str | Path = "runs",
    environ: Mapping[str, str] = os.environ,
) -> Experiment:
    """Load a recipe with ``key=value`` overrides. Raises RecipeError with every mistake located."""
    specs = stages.specs()
    loaded = load_recipe(path, overrides, specs=specs, environ=environ)
    return Experiment(loaded, specs, Path(runs_dir).absolute(), Path.cwd(), environ)


class Experiment(Prepared):
    """A loaded recipe that can be checked, planned and run."""

    def run(
        self,
        *,
        name: str | None = None,
        start: str | None = None,
        until: str | None = None,
        only: str | None = None,
        force: frozenset[str] | bool = frozenset(),
        no_cache: bool = False,
        keep_going: bool = False,
        observers: Sequence[Observer] = (),
    ) -> RunResult:
        """Run the recipe in a new run folder; blocks. Raises only for what is wrong before anything starts;
        how the run itself ended, errors included, is in the result.
        """
        from lightningrun.execution import Execution

        warnings = self.check()
        chosen = selection(start, until, only, force, no_cache)
        planner = self.planner(chosen)
        if start is not None:
            planner.plan_all()  # what --from and --only build on is there, or no run begins
        folder = runfolder.create(self.runs_dir, name or self.recipe.name)
        execution = Execution(self, folder, chosen, keep_going, tuple(observers), warnings)
        execution.freeze()
        return execution.run()


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    observers: Sequence[Observer] = (),
    environ: Mapping[str, str] = os.environ,
) -> RunResult:
    """Go on with a run from its frozen recipe; blocks. ``overrides`` re-plan what they change.

    What was committed is kept; what was in flight is done again. A finished run is left as it is.
    Raises UsageError if ``run_dir`` is no run, Locked if another process is at work on it.
    """
    from lightningrun.execution import Execution, frozen_changes

    folder = RunFolder(Path(run_dir))
    lock = folder.read_lock()
    root = Path(lock["cwd"])
    if root.is_dir():
        os.chdir(root)
    specs = stages.specs()
    text = folder.read_resolved(lock)
    frozen = load_text(text, str(folder.resolved), overrides, specs=specs, environ=environ)
    changes = frozen_changes(text, frozen) if overrides else []
    experiment = Prepared(frozen, specs, folder.path.parent, root, environ)
    options = lock.get("options", {})
    chosen = Selection.from_json(options)
    warnings = experiment.check()
    execution = Execution(experiment, folder, chosen, options.get("keep_going", False), tuple(observers), warnings)
    execution.resumed = True
    execution.changes = changes
    return execution.run()
