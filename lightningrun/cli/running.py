"""`run` and `resume`: the commands that execute stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.errors import ExitCode

if TYPE_CHECKING:
    from lightningrun.cli.progress import View
    from lightningrun.execution import RunResult


@click.command("run", cls=options.OptionalForce, short_help="Run a recipe.")
@options.recipe_argument
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would run (same as `plan`).")
@options.selection_options
@click.option("--keep-going", is_flag=True, help="Go on with later stages that do not need a failed one.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B", help="Run every combination; repeatable.")
@click.option("-j", "jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs of a sweep at once.")
@click.option("--name", help="Name of the run (default: the recipe's).")
@options.runs_dir_option
@options.json_option("Events as lines of JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also every rollout and candidate.")
def run(
    recipe: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    start: str | None,
    until: str | None,
    only: str | None,
    force: tuple[str, ...],
    no_cache: bool,
    keep_going: bool,
    sweeps: tuple[str, ...],
    jobs: int,
    name: str | None,
    runs_dir: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run RECIPE's stages in order, with KEY=VALUE overrides; what is unchanged since an earlier run is reused."""
    chosen = options.selection(start, until, only, force, no_cache)
    if sweeps:
        from lightningrun.cli import sweep

        passed_on = [f"--force={value}" for value in force]
        for option, value in (("--from", start), ("--until", until), ("--only", only)):
            passed_on += [option, value] if value else []
        passed_on += ["--no-cache"] * no_cache + ["--keep-going"] * keep_going
        return sweep.run(recipe, overrides, sweeps, jobs, name, runs_dir, chosen, passed_on, dry_run, as_json)
    experiment = options.open_recipe(recipe, overrides, runs_dir)
    if dry_run:
        from lightningrun.cli import describing

        return describing.show_plan(experiment.plan(**chosen), as_json=as_json)
    view = _view(as_json, quiet, verbose)
    try:
        result = experiment.run(name=name, keep_going=keep_going, observers=[view], **chosen)
    finally:
        view.close()
    return conclude(result, silent=as_json or quiet)


@click.command("resume", short_help="Go on with an interrupted run.")
@options.run_argument("run", required=False, default="latest")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@options.runs_dir_option
@options.json_option("Events as lines of JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also every rollout and candidate.")
def resume(run: str, overrides: Sequence[str], runs_dir: str, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Go on with RUN (default: the latest) from its frozen recipe; finished work is kept, overrides re-plan."""
    if "=" in run:
        run, overrides = "latest", [run, *overrides]
    folder = options.find_run(run, runs_dir)
    from lightningrun import runner

    view = _view(as_json, quiet, verbose)
    try:
        result = runner.resume(folder, overrides, observers=[view])
    finally:
        view.close()
    return conclude(result, silent=as_json or quiet)


def _view(as_json: bool, quiet: bool, verbose: bool) -> View:
    from lightningrun.cli import progress

    return progress.choose(as_json, quiet, verbose)


def conclude(result: RunResult, silent: bool) -> int:
    """Print how a run ended and return its exit code."""
    if not silent:
        from lightningrun.cli import summaries

        summaries.show_run(result.run_dir, result.mirror)
    if result.error is not None:
        for line in str(result.error).splitlines():
            click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True)
        if result.exit_code not in (ExitCode.GATE_NOT_MET, ExitCode.USAGE):
            click.echo(f"go on with: lightningrun resume {result.run_dir.name}{_elsewhere(result)}", err=True)
    return int(result.exit_code)


def _elsewhere(result: RunResult) -> str:
    parent: Any = result.run_dir.parent
    from pathlib import Path

    return "" if parent == Path("runs").absolute() else f" --runs-dir {parent}"


COMMANDS = (run, resume)
