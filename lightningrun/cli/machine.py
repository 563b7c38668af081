"""Commands about this machine and its services: `doctor`, `ui`, `sync`, `completion`."""

from __future__ import annotations

import click

from lightningrun.cli import options
from lightningrun.errors import ExitCode


@click.command("doctor", short_help="Look at this machine: versions, keys, disk, GPU, store.")
@click.argument("recipe", required=False, type=click.Path())
@click.option("--call", is_flag=True, help="Also make one short chat call for each model role of RECIPE.")
@options.runs_dir_option
def doctor(recipe: str | None, call: bool, runs_dir: str) -> int:
    """Say what is installed and reachable, and what RECIPE (if given) would miss. Exit 5 if something is."""
    from lightningrun.cli.checkup import examine

    bad = False
    for level, subject, finding in examine(recipe, call, runs_dir):
        mark, color = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}[level]
        click.echo(f"{click.style(mark, fg=color)}  {subject:<18}  {finding}")
        bad = bad or level == "bad"
    return ExitCode.MISSING if bad else ExitCode.OK


@click.command("ui", short_help="Open MLflow on the runs folder's store.")
@options.runs_dir_option
@click.option(
    "--port", type=click.IntRange(1, 65535), default=options.UI_PORT, show_default=True, help="First port to try."
)
def ui(runs_dir: str, port: int) -> int:
    """Serve the MLflow store on loopback and print the link to the comparison of runs. Ctrl-C ends it."""
    from lightningrun.tracking.ui import serve

    return serve(runs_dir, port=port, say=click.echo)


@click.command("sync", short_help="Send what MLflow still lacks of a run.")
@options.latest_run_argument
@options.runs_dir_option
def sync(run: str, runs_dir: str) -> int:
    """Mirror what is missing of RUN (default: the latest) into MLflow; doing it twice changes nothing."""
    from lightningrun.cli.summaries import mirror_lines
    from lightningrun.tracking.sync import sync as complete

    state = complete(options.find_run(run, runs_dir))
    for line in mirror_lines(state):
        click.echo(line)
    return ExitCode.OK if state.complete else ExitCode.STAGE_FAILED


@click.command("completion", short_help="Print a completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, e.g. `eval "$(lightningrun completion bash)"` in ~/.bashrc."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "lightningrun", "_LIGHTNINGRUN_COMPLETE").source())


COMMANDS = (doctor, ui, sync, completion)
