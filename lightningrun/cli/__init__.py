"""The command line. `main` runs one command and turns every ending into an exit code and a message fit for a person.

Nothing but click and floor 0 is imported until a command runs: `lightningrun --help` must stay instant.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lightningrun import __version__
from lightningrun.cli import describing, machine, results, running
from lightningrun.cli.options import looks_like_recipe, print_error, silence
from lightningrun.errors import ExitCode, Interrupted, LightningError

_HELP = """Turn an agent, a dataset and a reward into a better agent, from one YAML recipe, and keep the proof.

\b
  lightningrun RECIPE [KEY=VALUE ...]     run a recipe (short for `lightningrun run ...`)
  lightningrun init                       make a task folder and a recipe to edit
"""


class _Commands(click.Group):
    """A group that takes a recipe's path where a command is expected, and suggests commands for a misspelt one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and ((args[0].startswith("-") and args[0] not in own) or looks_like_recipe(args[0])):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            raise click.UsageError(f"no such command or recipe {name!r}{self._suggestion(name)}", ctx)
        return super().resolve_command(ctx, args)

    def _suggestion(self, name: str) -> str:
        recipes = {path.stem: str(path) for path in sorted(Path("recipes").glob("*.yaml"))}
        close = difflib.get_close_matches(name, [*self.commands, *recipes], n=1)
        return f"; did you mean '{recipes.get(close[0], close[0])}'?" if close else "; see `lightningrun --help`"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="file")]


cli = _Commands(
    "lightningrun",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    no_args_is_help=True,
)
click.version_option(__version__, prog_name="lightningrun", message="%(prog)s %(version)s")(cli)
for _module in (running, describing, results, machine):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Never raises, never prints a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without a letter of ours shows '?'
    try:
        code = cli.main(argv, prog_name="lightningrun", standalone_mode=False, color=_color())
        sys.stdout.flush()
        return int(code or 0)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        _print_error(error.format_message())
        return ExitCode.USAGE
    except LightningError as error:
        _print_error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted")
        return Interrupted.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough
        silence(sys.stdout)
        return ExitCode.OK
    except Exception as error:
        return _report_bug(error)


def _color() -> bool | None:
    """False when the user asked for none (https://no-color.org), else None: colours on a terminal only."""
    return False if os.environ.get("NO_COLOR") else None


def _print_error(text: str) -> None:
    from lightningrun.secrets import Masker

    try:
        print_error(Masker.from_environ(os.environ).mask(text), color=_color())
    except BrokenPipeError:
        silence(sys.stderr)


def _report_bug(error: Exception) -> int:
    """Our bug: the traceback goes to a file, secrets masked; the person gets two lines."""
    import tempfile
    import traceback

    from lightningrun.secrets import Masker

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    facts = f"lightningrun {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{text}"
    with tempfile.NamedTemporaryFile("w", prefix="lightningrun-bug-", suffix=".txt", delete=False) as report:
        report.write(Masker.from_environ(os.environ).mask(facts))
    _print_error(f"a bug in lightningrun: {type(error).__name__}: {error}"[:500])
    _print_error(f"the traceback is in {report.name}; please report it with that file")
    return ExitCode.BUG
