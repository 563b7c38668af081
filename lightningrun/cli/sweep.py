"""`run --sweep`: every combination of some values, each a run of its own in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import click

from lightningrun.cli import options
from lightningrun.cli.formats import duration, headline, spent
from lightningrun.errors import ExitCode, Interrupted, Problem, RecipeError, UsageError

_OPENING, _CLOSING = "[{(", "]})"


@dataclass(slots=True)
class _Member:
    """One combination, and what became of it."""

    overrides: tuple[str, ...]
    name: str
    run: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    duration_s: float = 0.0
    exit_code: int = 0
    stderr: str = ""


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
    chosen: dict[str, Any],
    passed_on: list[str],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Check all combinations, run them `jobs` at a time, print a table; the first exit code that is not 0."""
    members, base = [], name or ""
    problems: list[Problem] = []
    for index, extra in enumerate(combinations(sweeps), start=1):
        try:
            experiment = options.open_recipe(recipe, [*overrides, *extra], runs_dir)
            plan = experiment.plan(**chosen)
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
    command = [sys.executable, "-m", "lightningrun", "run", recipe, "--json", "--runs-dir", runs_dir, *passed_on]
    _run_all(members, command, list(overrides), jobs)
    if as_json:
        click.echo(json.dumps([_to_json(member) for member in members], indent=1))
    else:
        _print_table(members)
    return next((member.exit_code for member in members if member.exit_code), ExitCode.OK)


def _run_all(members: list[_Member], command: list[str], overrides: list[str], jobs: int) -> None:
    running: dict[int, subprocess.Popen[str]] = {}
    stopped = False

    def one(member: _Member) -> None:
        if stopped:
            member.exit_code = Interrupted.exit_code
            return
        # A session of its own: Ctrl-C reaches a member once, from here, not from the terminal as well.
        child = subprocess.Popen(
            [*command, "--name", member.name, *overrides, *member.overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        running[id(member)] = child
        _follow(member, child)
        del running[id(member)]
        click.echo(f"  {' '.join(member.overrides)}: {_outcome(member)}", err=True)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, member) for member in members]
        try:
            for future in waiting:
                future.result()
        except KeyboardInterrupt:
            stopped = True
            for child in list(running.values()):
                child.send_signal(signal.SIGINT)
            for future in waiting:
                future.result()
            raise Interrupted(
                "the sweep was interrupted", hint="`lightningrun runs` lists its runs; resume each"
            ) from None


def _follow(member: _Member, child: subprocess.Popen[str]) -> None:
    """Read a member's events until it ends."""
    with ThreadPoolExecutor(1) as reader:
        assert child.stdout is not None and child.stderr is not None
        errors = reader.submit(child.stderr.read)
        for line in child.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event["kind"] == "run_started":
                member.run = event["run"]
            elif event["kind"] in ("stage_finished", "stage_reused"):
                member.stages[event["stage"]] = event
            elif event["kind"] == "run_finished":
                member.duration_s = event.get("duration_s", 0.0)
        member.stderr = errors.result()
        member.exit_code = child.wait()


def _outcome(member: _Member) -> str:
    if member.exit_code == 0:
        return "done"
    last = [line for line in member.stderr.splitlines() if "error:" in line]
    return f"exit {member.exit_code}{': ' + last[0].split('error:', 1)[1].strip() if last else ''}"


def _last_metrics(member: _Member) -> dict[str, Any]:
    measured = [event.get("metrics") or {} for event in member.stages.values()]
    return next((metrics for metrics in reversed(measured) if "reward" in metrics), measured[-1] if measured else {})


def _total_cost(member: _Member) -> dict[str, Any]:
    parts = {f"{stage}/{role}": c for stage, e in member.stages.items() for role, c in (e.get("cost") or {}).items()}
    return {name: cost for name, cost in parts.items() if member.stages[name.split("/")[0]]["kind"] != "stage_reused"}


def _to_json(member: _Member) -> dict[str, Any]:
    stages = {stage: event.get("metrics") or {} for stage, event in member.stages.items()}
    return {"overrides": member.overrides, "run": member.run, "exit_code": int(member.exit_code), "stages": stages}


def _print_table(members: list[_Member]) -> None:
    from lightningrun.cli import summaries

    table = summaries.grid("combination", "result", "spent", "time", "run", fold="result")
    for member in members:
        result = headline(_last_metrics(member)) if member.exit_code == 0 else _outcome(member)
        table.add_row(
            " ".join(member.overrides), result, spent(_total_cost(member)), duration(member.duration_s), member.run
        )
    summaries.show(table)
    done = [member.run for member in members if member.run]
    if len(done) > 1:
        click.echo(f"\nnext: lightningrun compare {' '.join(done)}")
