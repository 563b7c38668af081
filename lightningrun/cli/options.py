"""What several commands share: the recipe and its overrides, references to runs, and how to open them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from lightningrun.errors import UsageError

if TYPE_CHECKING:
    from lightningrun.runner import Experiment
    from lightningrun.tracking.summary import RunSummary

UI_PORT = 5000
"""Where `lightningrun ui` serves unless told otherwise."""

F = TypeVar("F", bound=Callable[..., Any])


def looks_like_recipe(word: str) -> bool:
    """Whether a word on the command line is meant as a recipe's path."""
    return word.endswith((".yaml", ".yml")) or ("=" not in word and "/" in word)


def recipe_argument(function: F) -> F:
    """RECIPE [KEY=VALUE ...]"""
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    return click.argument("recipe", type=click.Path())(overrides(function))


def runs_dir_option(function: F) -> F:
    return click.option(
        "--runs-dir",
        type=click.Path(file_okay=False),
        default="runs",
        envvar="LIGHTNINGRUN_RUNS_DIR",
        show_default=True,
        help="Folder of runs, their cache and the default MLflow store.",
    )(function)


def json_option(help_text: str) -> Callable[[F], F]:
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def selection_options(function: F) -> F:
    """Which stages to run: the keyword arguments of `Experiment.plan` and `.run`."""
    words = "Run again although cached: all stages, or --force=S only S."
    for option in (
        click.option("--no-cache", is_flag=True, help="Reuse nothing from earlier runs."),
        click.option("--force", multiple=True, metavar="[=S]", callback=_forced, help=words),
        click.option("--only", metavar="S", help="Run only this stage."),
        click.option("--until", metavar="S", help="Stop after this stage."),
        click.option("--from", "start", metavar="S", help="Start at this stage."),
    ):
        function = option(function)
    return function


def _forced(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> bool | frozenset[str]:
    names = frozenset(name for value in values for name in value.split(","))
    return True if "*" in names else names


def view_options(function: F) -> F:
    """How much to say while stages run: the same for `run` and `resume`."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Also every rollout and candidate."),
        click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors."),
        json_option("Events as lines of JSON on standard output."),
    ):
        function = option(function)
    return function


def output_option(function: F) -> F:
    file = click.File("w", "utf-8", lazy=True)
    return click.option("-o", "--output", type=file, default="-", metavar="FILE", help="Write it to a file.")(function)


class OptionalForce(click.Command):
    """A command whose `--force` takes a value only after `=`, so that it never swallows the next word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--force=*" if word == "--force" else word for word in args])


def open_recipe(recipe: str, overrides: Sequence[str], runs_dir: str) -> Experiment:
    """Load a recipe; raises UsageError for a word that is no override or a path that is no file."""
    for word in overrides:
        if "=" not in word:
            raise UsageError(f"{word!r} is not an override", hint="write KEY=VALUE, for example seed=11")
    require_file(recipe)
    from lightningrun import runner

    return runner.load(recipe, overrides, runs_dir=runs_dir)


def require_file(recipe: str) -> None:
    path = Path(recipe)
    if path.is_file():
        return
    if path.is_dir():
        raise UsageError("this is a folder; a recipe is a YAML file", where=recipe)
    nearby = [str(other) for other in sorted([*Path().glob("*.yaml"), *Path("recipes").glob("*.yaml")])]
    close = difflib.get_close_matches(recipe, nearby, n=1) or [name for name in nearby if Path(name).name == path.name]
    raise UsageError(
        "no such recipe", where=recipe, hint=f"did you mean '{close[0]}'?" if close else "see `lightningrun list`"
    )


def latest_run_argument(function: F) -> F:
    return click.argument("run", metavar="RUN", required=False, default="latest")(function)


def print_error(text: str, color: bool | None = None) -> None:
    """Each line of ``text`` on standard error, marked as an error."""
    for line in text.splitlines():
        click.echo(f"{click.style('error:', fg='red', bold=True)} {line}", err=True, color=color)


def silence(stream: IO[str]) -> None:
    """Point a stream whose reader has gone at nothing, so that neither we nor the interpreter's end complain."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def find_run(reference: str, runs_dir: str) -> Path:
    """The folder of `latest`, a run's id, a unique beginning of one, or a folder."""
    from lightningrun import runner

    return runner.find_run(reference, Path(runs_dir))


def open_run(reference: str, runs_dir: str) -> RunSummary:
    """What happened in a run. Raises UsageError if there is none, or if it ended before it began."""
    from lightningrun.tracking.summary import summarise

    folder = find_run(reference, runs_dir)
    if not (folder / "journal.jsonl").is_file():
        raise UsageError("this run has no journal: it ended before it began", where=str(folder))
    return summarise(folder)
