"""Commands that read runs and change nothing: `runs`, `show`, `logs`, `diff`, `compare`, `prompt`, `export`."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.cli.prompts import print_diff, prompt, prompts_of
from lightningrun.errors import UsageError
from lightningrun.tracking.formats import count, duration, interval, number, unified_diff, usd

if TYPE_CHECKING:
    from lightningrun.tracking.summary import RunSummary

COLUMNS = ("run", "status", "baseline", "final", "gain", "95% interval", "rollouts", "calls", "cost", "time")
_NUMBERS = COLUMNS[2:]


@click.command("runs", short_help="List runs, oldest first.")
@click.option("-n", "last", type=click.IntRange(1), default=20, show_default=True, help="How many of the newest.")
@options.runs_dir_option
@options.json_option("As JSON.")
def runs(last: int, runs_dir: str, as_json: bool) -> None:
    """List the newest runs of a folder, oldest first, with what came of each."""
    from lightningrun import runner
    from lightningrun.tracking.summary import summarise

    folders = [path for path in runner.list_runs(Path(runs_dir)) if (path / "journal.jsonl").is_file()]
    found = [summarise(path) for path in folders[-last:]]
    if as_json:
        click.echo(json.dumps([_brief(run) for run in found], indent=1, default=str))
    elif not found:
        click.echo(f"no run in {runs_dir}; start one: lightningrun RECIPE", err=True)
    else:
        _print_table([_row(run, "run", "status", "baseline", "final", "gain", "cost", "time") for run in found])


@click.command("show", short_help="The summary of a run.")
@options.latest_run_argument
@options.runs_dir_option
@options.json_option("Everything, as JSON.")
def show(run: str, runs_dir: str, as_json: bool) -> None:
    """Show what happened in RUN (default: the latest)."""
    summary = options.open_run(run, runs_dir)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=1, ensure_ascii=False, default=str))
    else:
        from lightningrun.cli import summaries

        summaries.show_run(summary)


@click.command("logs", short_help="What a run, or one stage of it, said.")
@options.latest_run_argument
@click.argument("stage", required=False, metavar="[STAGE]")
@click.argument("rollout", required=False, metavar="[ROLLOUT]")
@options.runs_dir_option
def logs(run: str, stage: str | None, rollout: str | None, runs_dir: str) -> None:
    """Print RUN's events with their times (STAGE's alone if named), then what agents and rewards printed.

    With ROLLOUT (a task's id, or as much of the rollout's key as tells it apart): the tree of its calls and tools.
    """
    from lightningrun.cli.progress import describe
    from lightningrun.files import read_journal

    folder = options.open_run(run, runs_dir).path
    stages = sorted(path.name for path in (folder / "stages").glob("*"))
    if stage is not None and stage not in stages:
        close = difflib.get_close_matches(stage, stages, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"stages are {', '.join(stages) or 'none yet'}"
        raise UsageError(f"no stage {stage!r} in {folder.name}", hint=hint)
    if rollout is not None and stage is not None:
        from lightningrun.cli.rollouts import show_rollout

        show_rollout(folder, stage, rollout)
        return
    for _, event in read_journal(folder / "journal.jsonl"):
        if stage is None or event.get("stage") == stage:
            clock = time.strftime("%H:%M:%S", time.localtime(event["ts"]))
            for style, line in describe(event, verbose=True):
                click.secho(f"{clock} {line}", fg="red" if "red" in style else None)
    for path in sorted((folder / "logs").glob("*")):
        if path.is_file() and path.stat().st_size:
            click.secho(f"== {path.name}", bold=True)
            click.echo(path.read_text("utf-8", "replace").rstrip("\n"))


@click.command("diff", short_help="What differs between two runs: recipe, prompts, metrics.")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@options.runs_dir_option
def diff(a: str, b: str, runs_dir: str) -> None:
    """Compare runs A and B: their resolved recipes, the prompts they ended with, and their metrics."""
    one, two = options.open_run(a, runs_dir), options.open_run(b, runs_dir)
    click.secho("recipe", bold=True)
    _print_changes(_settings(one), _settings(two))
    click.secho("prompts", bold=True)
    before, after = prompts_of(one)[0], prompts_of(two)[0]
    if before == after:
        click.echo("  the same")
    for name in [*before, *(name for name in after if name not in before)]:
        texts = before.get(name, ""), after.get(name, "")
        print_diff(unified_diff(*texts, f"{one.run}/{name}", f"{two.run}/{name}"), indent="  ")
    click.secho("metrics", bold=True)
    _print_changes(_metrics(one), _metrics(two))


@click.command("compare", short_help="Compare runs, or the evaluations of one, side by side.")
@click.argument("references", metavar="REFERENCES", nargs=-1, required=True)
@click.option(
    "--format", "style", type=click.Choice(["table", "md", "json", "html"]), default="table", show_default=True
)
@options.runs_dir_option
def compare(references: tuple[str, ...], style: str, runs_dir: str) -> None:
    """Compare runs: scores with intervals, spending, and where their recipes differ.

    Of one run, its evaluations: what each gained, beside its control.
    """
    found = [options.open_run(reference, runs_dir) for reference in references]
    scores = [_scores(run, 2 if len(found) == 1 else 3) for run in found]
    if len(found) == 1 and not scores[0]:
        raise UsageError(
            "compare needs two runs or more, or one with several evaluations", hint="`lightningrun runs` lists them"
        )
    varying = _varying(found)
    rows = [
        _row(run, *COLUMNS)
        | {f"evaluation {name}": score for name, score in scores[i].items()}
        | {key: number(values[i]) for key, values in varying.items()}
        for i, run in enumerate(found)
    ]
    rows = [{column: row.get(column, "") for one in rows for column in one} for row in rows]
    if style == "json":
        briefs = [_brief(run) | {"differs": {k: v[i] for k, v in varying.items()}} for i, run in enumerate(found)]
        click.echo(json.dumps(briefs, indent=1, ensure_ascii=False, default=str))
    elif style == "table":
        _print_table([{column: row[column] for column in COLUMNS} for row in rows])
        labels = _labels(found)
        if len(found) == 1:
            _print_beside(found[0])
        elif names := dict.fromkeys(name for one in scores for name in one):
            click.secho("\nevaluations", bold=True)
            each = ([one.get(name, "") for one in scores] for name in names)
            _print_table([{"": name} | dict(zip(labels, v, strict=True)) for name, v in zip(names, each, strict=True)])
        if varying:
            click.secho("\nwhere their recipes differ", bold=True)
            _print_table([{"key": key} | dict(zip(labels, map(number, v), strict=True)) for key, v in varying.items()])
    else:
        click.echo(_markdown(rows) if style == "md" else _html(rows))


@click.command("export", short_help="Print a recipe that reproduces a run.")
@options.latest_run_argument
@options.output_option
@options.runs_dir_option
def export(run: str, output: IO[str], runs_dir: str) -> None:
    """Print one self-contained recipe that reproduces RUN: everything resolved, prompts inlined."""
    from lightningrun.tracking.summary import read_json

    folder = options.open_run(run, runs_dir).path
    cwd = read_json(folder / "lock.json").get("cwd", "the folder of its agent")
    output.write(f"# reproduces {folder.name}; run it from {cwd}\n{_read_resolved(folder)}")


def _read_resolved(folder: Path) -> str:
    try:
        return (folder / "resolved.yaml").read_text("utf-8")
    except OSError as error:
        raise UsageError(f"no resolved recipe: {error.strerror}", where=str(folder)) from None


def _settings(run: RunSummary) -> dict[str, Any]:
    """The resolved recipe by dotted key."""
    import yaml

    return dict(_flatten(yaml.safe_load(_read_resolved(run.path)) or {}))


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _varying(runs: list[RunSummary]) -> dict[str, list[Any]]:
    """Recipe keys whose values are not the same in all runs; long texts as their first words."""
    flat = [_settings(run) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: [_short(one.get(key, "(absent)")) for one in flat] for key in keys}
    raw = {key: [one.get(key) for one in flat] for key in keys}
    return {key: found[key] for key in keys if any(value != raw[key][0] for value in raw[key])}


def _short(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= 40 else f"{' '.join(text.split())[:37]}..."


def _print_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    for key in changed:
        before, after = (number(_short(side[key])) if key in side else "(absent)" for side in (old, new))
        click.echo(f"  {key}: {before} → {after}")
    if not changed:
        click.echo("  the same")


def _metrics(run: RunSummary) -> dict[str, Any]:
    return {f"{stage.id}.{name}": value for stage in run.stages for name, value in stage.metrics.items()}


def _row(run: RunSummary, *columns: str) -> dict[str, str]:
    """A run as one line of a table."""
    head, totals = run.headline, run.totals
    row = {"run": run.run, "status": run.status, "baseline": "", "final": "", "gain": "", "95% interval": ""}
    if head is not None:
        row |= {name: number(value) for name in ("baseline", "final") if (value := getattr(head, name)) is not None}
        row["gain"] = "" if head.gain is None else f"{head.gain:+.3f}"
        row["95% interval"] = interval(head.low, head.high).strip()
    row |= {"rollouts": count(totals.rollouts), "calls": count(totals.llm_calls), "cost": usd(totals.usd)}
    row["time"] = duration(run.duration_s)
    return {column: row[column] for column in columns}


def _scores(run: RunSummary, least: int = 3) -> dict[str, str]:
    """Name -> reward of each evaluation beside others and of each cell of a grid."""
    from lightningrun.tracking.standings import worth_showing

    found: dict[str, tuple[float | None, float | None, float | None]] = {
        one.stage: (one.reward, one.low, one.high)
        for mine in worth_showing(run.evaluations, least).values()
        for one in mine
    }
    for grid in run.grids:
        for cell in grid.cells:
            name = " ".join(filter(None, (grid.stage, cell["prompts"], cell["model"])))
            found[name] = (cell.get("reward"), cell.get("reward_low"), cell.get("reward_high"))
    return {name: number(mean) + interval(low, high) for name, (mean, low, high) in found.items() if mean is not None}


def _print_beside(run: RunSummary) -> None:
    from lightningrun.cli import summaries

    click.echo()
    summaries.show(*summaries.beside(run, 2))


def _brief(run: RunSummary) -> dict[str, Any]:
    """A run as the JSON of `runs` and `compare`."""
    record = run.to_json()
    kept = (
        "run",
        "name",
        "status",
        "path",
        "started_at",
        "duration_s",
        "headline",
        "evaluations",
        "grids",
        "totals",
        "notes",
    )
    return {name: record[name] for name in kept} | {"metrics": _metrics(run)}


def _labels(found: list[RunSummary]) -> list[str]:
    """Short names of runs that still tell them apart."""
    tails = [run.run.rsplit("-", 1)[-1] for run in found]
    return tails if len(set(tails)) == len(tails) else [run.run for run in found]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from lightningrun.cli import summaries

    table = summaries.grid(*rows[0], right=_NUMBERS, fold="run")
    for row in rows:
        table.add_row(*map(str, row.values()))
    summaries.show(table)


def _markdown(rows: list[dict[str, str]]) -> str:
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in cells)


def _html(rows: list[dict[str, str]]) -> str:
    from html import escape

    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "\n".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row.values()) + "</tr>" for row in rows)
    style = "body{font:15px system-ui;margin:2em}td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:left}"
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Runs compared</title>\n<style>{style}</style>'
    )
    return f"{page}\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></html>"


COMMANDS = (runs, show, logs, diff, compare, prompt, export)
