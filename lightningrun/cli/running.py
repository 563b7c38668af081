"""`run` and `resume`: the commands that execute stages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.errors import ExitCode

if TYPE_CHECKING:
    from lightningrun.execution import RunResult
    from lightningrun.tracking.mirror import MirrorState


@click.command("run", cls=options.OptionalForce, short_help="Run a recipe.")
@options.recipe_argument
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would run (same as `plan`).")
@options.selection_options
@click.option("--keep-going", is_flag=True, help="Go on with later stages that do not need a failed one.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B", help="Run every combination; repeatable.")
@click.option("-j", "jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs of a sweep at once.")
@click.option("--name", help="Name of the run (default: the recipe's).")
@options.runs_dir_option
@options.view_options
def run(
    recipe: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    keep_going: bool,
    sweeps: tuple[str, ...],
    jobs: int,
    name: str | None,
    runs_dir: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **selection: Any,
) -> int:
    """Run RECIPE's stages in order, with KEY=VALUE overrides; what is unchanged since an earlier run is reused."""
    if sweeps:
        from lightningrun.cli import sweep

        return sweep.run(
            recipe,
            overrides,
            sweeps,
            jobs,
            name,
            runs_dir,
            selection,
            keep_going=keep_going,
            dry_run=dry_run,
            as_json=as_json,
        )
    experiment = options.open_recipe(recipe, overrides, runs_dir)
    if dry_run:
        from lightningrun.cli import describing

        return describing.show_plan(experiment.plan(**selection), as_json=as_json)
    execute = partial(experiment.run, name=name, keep_going=keep_going, **selection)
    keys = [model.api_key_env for model in experiment.recipe.models.values()]
    return _follow(execute, keys, experiment.runs_dir, as_json, quiet, verbose)


@click.command("resume", short_help="Go on with an interrupted run.")
@options.latest_run_argument
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@options.runs_dir_option
@options.view_options
def resume(run: str, overrides: Sequence[str], runs_dir: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Go on with RUN (default: the latest) from its frozen recipe; finished work is kept, overrides re-plan."""
    if "=" in run:
        run, overrides = "latest", [run, *overrides]
    folder = options.find_run(run, runs_dir)
    import yaml

    from lightningrun import runner
    from lightningrun.runfolder import RunFolder

    run_folder = RunFolder(folder)
    frozen = yaml.safe_load(run_folder.read_resolved(run_folder.read_lock()))
    keys = [model.get("api_key_env") for model in frozen["models"].values()]
    return _follow(partial(runner.resume, folder, overrides), keys, folder.parent, as_json, quiet, verbose)


def _follow(
    execute: Callable[..., RunResult],
    keys: Sequence[str | None],
    runs_dir: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Execute with the fitting view, then print how it ended; the exit code. ``keys`` name secrets.

    Ctrl-C after the run's last event only ends the wait for MLflow: the run itself is complete.
    """
    from lightningrun.cli import progress
    from lightningrun.secrets import Masker

    mask = Masker.from_environ(os.environ, filter(None, keys)).mask
    view, seen = progress.choose(mask, as_json, quiet, verbose), dict[str, Any]()
    mirror: MirrorState | None = None

    def remember(event: dict[str, Any]) -> None:
        if event["kind"] in ("run_started", "run_resumed", "run_finished"):
            seen.update(event)

    try:
        result = execute(observers=[view, remember])
        seen |= {"run": result.run_dir.name, "exit_code": result.exit_code, "error": mask(str(result.error or ""))}
        mirror = result.mirror
    except KeyboardInterrupt:
        if seen.get("kind") != "run_finished":
            raise
        click.echo(f"not waiting for MLflow; complete it with: lightningrun sync {seen['run']}", err=True)
    finally:
        view.close()
    if not as_json and not quiet:
        from lightningrun.cli import summaries
        from lightningrun.tracking.summary import summarise

        summaries.show_run(summarise(runs_dir / seen["run"]), mirror)
    if seen["error"]:
        _print_failure(seen, runs_dir)
    return int(seen["exit_code"])


def _print_failure(seen: dict[str, Any], runs_dir: Path) -> None:
    options.print_error(seen["error"])
    if seen["exit_code"] not in (ExitCode.GATE_NOT_MET, ExitCode.USAGE) and "lightningrun resume" not in seen["error"]:
        where = "" if runs_dir == Path("runs").absolute() else f" --runs-dir {runs_dir}"
        click.echo(f"go on with: lightningrun resume {seen['run']}{where}", err=True)


COMMANDS = (run, resume)
