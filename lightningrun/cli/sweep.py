"""`run --sweep`: every combination of some values, each a run of its own in a process of its own."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.errors import ExitCode, Interrupted, Problem, RecipeError, UsageError
from lightningrun.tracking.formats import duration, headline, spent

if TYPE_CHECKING:
    from lightningrun.tracking.summary import RunSummary

_OPENING, _CLOSING = "[{(", "]})"
_ENDED = ("succeeded", "failed", "reused")


@dataclass(slots=True)
class _Member:
    """One combination, and what became of it."""

    overrides: tuple[str, ...]
    name: str
    run: str = ""
    exit_code: int = 0
    error: str = ""

    @property
    def outcome(self) -> str:
        if self.exit_code == 0:
            return "done"
        return f"exit {self.exit_code}{': ' if self.error else ''}{self.error}"


def split_values(text: str) -> list[str]:
    """``a,[1,2],b`` -> ``a``, ``[1,2]``, ``b``: commas inside brackets or quotes do not separate."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "," and depth == 0:
            values.append("")
            continue
        depth += (letter in _OPENING) - (letter in _CLOSING) if not quote else 0
        values[-1] += letter
    return values


def combinations(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every combination, the last key varying fastest. Raises UsageError for ``KEY=`` alone."""
    axes = []
    for text in sweeps:
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise UsageError(f"--sweep {text!r} is not KEY=A,B")
        axes.append([f"{key}={value}" for value in split_values(values)])
    return list(itertools.product(*axes))


def run(
    recipe: str,
    overrides: Sequence[str],
    sweeps: Sequence[str],
    jobs: int,
    name: str | None,
    runs_dir: str,
    selection: dict[str, Any],
    *,
    keep_going: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Check all combinations, run them `jobs` at a time, print a table; the first exit code that is not 0."""
    members, base = [], name or ""
    problems: list[Problem] = []
    for index, extra in enumerate(combinations(sweeps), start=1):
        try:
            experiment = options.open_recipe(recipe, [*overrides, *extra], runs_dir)
            plan = experiment.plan(**selection)
        except (RecipeError, UsageError) as error:
            found = getattr(error, "problems", None) or [Problem(error.message, file=error.where, hint=error.hint)]
            problems += [problem for problem in found if problem not in problems]
            continue
        base = base or experiment.recipe.name
        members.append(_Member(extra, f"{base}-{index}"))
        if dry_run:
            pending = [stage.id for stage in plan.stages if stage.action.value in ("run", "undecided")]
            click.echo(f"{' '.join(extra)}: would run {', '.join(pending) or 'nothing'}")
    if problems:
        raise RecipeError(problems)
    if dry_run:
        return ExitCode.OK
    command = [sys.executable, "-m", "lightningrun", "run", recipe, "--json", "--runs-dir", runs_dir]
    command += [*_words(selection), *["--keep-going"] * keep_going, *overrides]
    _run_all(members, command, jobs)
    if as_json:
        click.echo(json.dumps([_to_json(member, runs_dir) for member in members], indent=1))
    else:
        _print_table(members, runs_dir)
    return next((member.exit_code for member in members if member.exit_code), ExitCode.OK)


def _words(selection: dict[str, Any]) -> list[str]:
    """The selection of stages as words of a command line."""
    named = {"--from": selection["start"], "--until": selection["until"], "--only": selection["only"]}
    words = [f"{option}={stage}" for option, stage in named.items() if stage]
    force = selection["force"]
    words += ["--force"] if force is True else [f"--force={stage}" for stage in force]
    return words + ["--no-cache"] * selection["no_cache"]


def _run_all(members: list[_Member], command: list[str], jobs: int) -> None:
    running: set[subprocess.Popen[str]] = set()
    stopped = False

    def one(member: _Member) -> None:
        if stopped:
            member.exit_code = Interrupted.exit_code
            return
        # A session of its own: Ctrl-C reaches a member once, from here, not from the terminal as well.
        child = subprocess.Popen(
            [*command, "--name", member.name, *member.overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running.add(child)
        _follow(member, child)
        running.remove(child)
        click.echo(f"  {' '.join(member.overrides)}: {member.outcome}", err=True)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, member) for member in members]
        try:
            for future in waiting:
                future.result()
        except KeyboardInterrupt:
            stopped = True
            for child in list(running):
                child.send_signal(signal.SIGINT)
            for future in waiting:
                future.result()
            raise Interrupted(
                "the sweep was interrupted", hint="`lightningrun runs` lists its runs; resume each"
            ) from None


def _follow(member: _Member, child: subprocess.Popen[str]) -> None:
    """Read what a member says, events and errors, until it ends."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("error: "):
            member.error = member.error or line.removeprefix("error: ").strip()
        elif '"kind": "run_started"' in line:
            member.run = json.loads(line)["run"]
    member.exit_code = child.wait()


def _summary(member: _Member, runs_dir: str) -> RunSummary | None:
    from lightningrun.tracking.summary import summarise

    return summarise(Path(runs_dir) / member.run) if member.run else None


def _to_json(member: _Member, runs_dir: str) -> dict[str, Any]:
    run = _summary(member, runs_dir)
    stages = {stage.id: stage.metrics for stage in run.stages if stage.status in _ENDED} if run else {}
    return {"overrides": member.overrides, "run": member.run, "exit_code": int(member.exit_code), "stages": stages}


def _print_table(members: list[_Member], runs_dir: str) -> None:
    from lightningrun.cli import summaries

    table = summaries.grid("combination", "result", "spent", "time", "run", fold="result")
    for member in members:
        run = _summary(member, runs_dir)
        measured = [stage.metrics for stage in run.stages if stage.metrics] if run else []
        last = next(
            (metrics for metrics in reversed(measured) if "reward" in metrics), measured[-1] if measured else {}
        )
        result = headline(last) if member.exit_code == 0 else member.outcome
        cost, time_s = (run.totals.by_role, run.duration_s) if run else ({}, 0.0)
        table.add_row(" ".join(member.overrides), result, spent(cost), duration(time_s), member.run)
    summaries.show(table)
    done = [member.run for member in members if member.run]
    if len(done) > 1:
        click.echo(f"\nnext: lightningrun compare {' '.join(done)}")
