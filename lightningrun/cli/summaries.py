"""A run's summary on the terminal, and tables of runs. rich is imported here only, when something is shown."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli import options
from lightningrun.tracking.formats import count, duration, headline, interval, merged, number, plural, took, total, usd

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from lightningrun.tracking.comparison import Headline
    from lightningrun.tracking.lineage import Lineage
    from lightningrun.tracking.mirror import MirrorState
    from lightningrun.tracking.standings import Gain, Grid, Standing
    from lightningrun.tracking.summary import PromptChange, RunSummary, StageSummary

MAX_WIDTH = 120
_STATUS_STYLES = {
    "succeeded": "green",
    "reused": "green",
    "failed": "bold red",
    "killed": "red",
    "interrupted": "yellow",
}


def grid(*headings: str, right: Sequence[str] = (), fold: str = "") -> Table:
    """An unboxed table. ``right`` names columns of numbers; ``fold`` the one (``*``: all) that gives way at need."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(headings))
    for heading in headings:
        justify: Any = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=fold not in (heading, "*"))
    return table


def width() -> int:
    """Columns to fill: the terminal's, ``COLUMNS`` where that is set, full width in a file or a pipe."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return min(shutil.get_terminal_size().columns, MAX_WIDTH) if sys.stdout.isatty() else MAX_WIDTH


def show(*sections: RenderableType) -> None:
    """Print sections with an empty line between them; colours on a terminal only."""
    from rich.console import Console

    out = Console(highlight=False, markup=False, emoji=False, width=width())
    with out.capture() as captured:
        for index, section in enumerate(sections):
            if index:
                out.print()
            out.print(section)
    # Without the blanks that fill a table's last column: a file keeps them, and diffs show them.
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    click.echo(text, color=out.is_terminal and not out.no_color)


def show_run(run: RunSummary, mirror: MirrorState | None = None) -> None:
    """Everything that a person wants to know of a run, on one screen."""
    from lightningrun.tracking.lineage import lineages

    tables = [_tags(run), _costs(run), _agents(run)]
    show(
        _title(run),
        *([_headlines(run.headlines)] if run.headlines else []),
        _stages(run),
        *beside(run),
        *map(_prompt, run.prompts),
        *(_search(search) for search in lineages(run) if search.verdict),
        *(table for table in tables if table.row_count),
        _paths(run, mirror),
    )


def _title(run: RunSummary) -> RenderableType:
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text

    title = Text.assemble((run.name, "bold"), "  ", (run.status, _STATUS_STYLES.get(run.status, "")))
    title.append(f" in {duration(run.duration_s)}" + (f", {plural(run.attempts, 'sitting')}" * (run.attempts > 1)))
    lines = [Text(f"note: {note}", "bold yellow") for note in merged(run.notes)]
    if run.error and run.status != "succeeded":
        lines.append(Text(run.error, "red"))
    return Group(Rule(style="dim"), title, *lines)


def _headlines(heads: Sequence[Headline]) -> Table:
    table = grid("", "", "")
    for head in heads:
        if head is not heads[0]:
            table.add_row()
        before = head.baseline_stage or "seed prompt", head.baseline, head.baseline_low, head.baseline_high
        after = head.final_stage or "best prompt", head.final, head.final_low, head.final_high
        for name, mean, low, high in (before, after):
            if mean is not None:
                table.add_row(name, number(mean) + interval(low, high), f"on {head.split}, {plural(head.n, 'row')}")
        if head.gain is not None:
            sure = "" if head.low is None else " (95%, paired)"
            clear = head.low is not None and head.low > 0
            style, note = ("bold green", "confirmed") if clear else ("bold yellow", "not clear of 0")
            table.add_row("gain", f"{head.gain:+.3f}{interval(head.low, head.high)}", note + sure, style=style)
    return table


def _stages(run: RunSummary) -> Table:
    from rich.text import Text

    numbers = ("calls", "cost", "time")
    table = grid("", "stage", "status", "result", *numbers, right=numbers, fold="result")
    for stage in run.stages:
        fresh = stage.status not in ("reused", "skipped", "pending")
        table.add_row(
            str(stage.ordinal),
            stage.id,
            Text(stage.status, _STATUS_STYLES.get(stage.status, "")),
            _result(stage),
            count(total(stage.cost, "calls")) if fresh else "",
            usd(total(stage.cost, "usd")) if fresh else "",
            duration(stage.duration_s) if fresh else "",
        )
    return table


def _result(stage: StageSummary) -> str:
    if stage.error:
        return stage.error.splitlines()[0]
    if stage.status in ("skipped", "pending"):
        return stage.reason
    return headline(stage.metrics) + (f" ({stage.reason})" if stage.status == "reused" else "")


def beside(run: RunSummary, least: int = 3) -> Iterator[RenderableType]:
    """Evaluations of one split beside each other, controls marked, and grids."""
    from lightningrun.tracking.standings import worth_showing

    for split, found in worth_showing(run.evaluations, least).items():
        yield _evaluations(split, found)
    yield from map(_grid, run.grids)


def _evaluations(split: str, found: Sequence[Standing]) -> Table:
    told = ("reward", f"over {found[0].stage}", "over its control", "CPU-s")
    table = grid(f"on {split}", "weights", *told, right=told[-1:], fold="*")
    for one in found:
        weights = f"control of {one.control_for}" if one.control_for else one.model
        table.add_row(
            one.stage,
            weights,
            number(one.reward) + interval(one.low, one.high),
            _gain(one.gain),
            _gain(one.beyond_control),
            "" if one.cpu_s is None else f"{one.cpu_s:.1f}",
        )
    return table


def _gain(gain: Gain | None) -> str:
    return "" if gain is None else f"{gain.mean:+.3f}{interval(gain.low, gain.high, '+')}"


def _grid(found: Grid) -> RenderableType:
    from rich.console import Group

    cells = grid(f"{found.stage} on {found.split}", *(model or "reward" for model in found.models))
    for prompts in found.prompts:
        row = [found.cell(prompts, model) for model in found.models]
        shown = [number(cell.get("reward")) + interval(cell.get("reward_low"), cell.get("reward_high")) for cell in row]
        cells.add_row(prompts or "reward", *shown)
    effects = grid("what it adds", "gain (95%, paired)")
    for what, name, cell in found.effects():
        if cell.get(name) is not None:
            label = what if name == "gain" else f"interaction of {what}"
            effects.add_row(label, f"{cell[name]:+.3f}{interval(cell[f'{name}_low'], cell[f'{name}_high'], '+')}")
    return Group(cells, "", effects)


def _prompt(change: PromptChange) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    verdict = "promoted" if change.promoted else "NOT promoted: the seed stays"
    lines = [] if change.diff else [Text("no change", "dim")]
    for line in change.diff.splitlines():
        style = "dim" if line.startswith(("---", "+++", "@@")) else {"+": "green", "-": "red"}.get(line[:1], "")
        lines.append(Text(line, style))
    title = Text(f"prompt {change.name!r}, {verdict} by {change.stage}", "bold")
    return Group(title, *(Padding(line, (0, 0, 0, 2)) for line in lines))


def _search(search: Lineage) -> RenderableType:
    from rich.text import Text

    text = Text.assemble((f"{search.stage} ", "bold"), search.verdict)
    return text.append(f"\n{search.noise}", "dim") if search.noise else text


def _tags(run: RunSummary) -> Table:
    head = run.headline
    compared = bool(head and head.baseline_stage)
    named = [head.baseline_stage, head.final_stage, "gain"] if head and compared else ["reward"]
    table = grid("tag", "rows", *named, right=["rows", *named])
    for tag, n, before, after in run.by_tag():
        both = ("", number(after), "") if before is None else (number(before), number(after), f"{after - before:+.3f}")
        table.add_row(tag, str(n), *(both if compared else [number(after)]))
    return table


def _costs(run: RunSummary) -> Table:
    from lightningrun.tracking.summary import tokens_of

    numbers = ("calls", "tokens", "cost")
    table = grid("role", *numbers, right=numbers)
    for role, parts in run.totals.by_role.items():
        table.add_row(role, count(parts.get("calls", 0)), count(tokens_of(parts)), usd(parts.get("usd")))
    if len(run.totals.by_role) > 1:
        totals = run.totals
        table.add_row("all", count(totals.llm_calls), count(totals.tokens), usd(totals.usd), style="bold")
    return table


def _agents(run: RunSummary) -> Table:
    numbers = ("calls", "tokens", "cost", "a call takes", "errors")
    table = grid("agent", *numbers, right=numbers)
    for agent, did in run.totals.by_agent.items():
        facts = count(did["calls"]), count(did["tokens"]), usd(did["cost_usd"])
        table.add_row(agent, *facts, took(did["latency_s"]), count(did["errors"]))
    return table


def _paths(run: RunSummary, mirror: MirrorState | None) -> RenderableType:
    from rich.console import Group

    from lightningrun.tracking.mirror import current_state

    table = grid("", "", fold="")
    table.add_row("run", shorten(run.path))
    if "report.html" in run.paths:
        table.add_row("report", shorten(run.paths["report.html"]))
    for name, path in run.paths.items():
        if name.startswith("prompt "):
            table.add_row(name, shorten(path))
    for index, line in enumerate(mirror_lines(mirror or current_state(run.path))):
        table.add_row("" if index else "mlflow", line)
    return Group(table, _next(run))


def _next(run: RunSummary) -> Table:
    """Commands worth typing next, as short as they can be."""
    runs_dir = run.path.parent
    which = "" if (runs_dir / "latest").resolve() == run.path else f" {run.run}"
    where = "" if runs_dir == Path("runs").absolute() else f" --runs-dir {shorten(runs_dir)}"
    ended = [("resume", "go on where it stopped"), ("logs", "what happened")]
    done = [("prompt", "the best prompt's text, alone"), ("ui", "MLflow: curves, traces, prompt versions")]
    if run.candidates:
        done.insert(1, ("prompt --history", "how it was found, step by step"))
    table = grid("", "", "")
    for index, (command, words) in enumerate(done if run.status == "succeeded" else ended):
        whole = f"lightningrun {command}{'' if command == 'ui' else which}{where}"
        table.add_row("" if index else "next", whole, words)
    return table


def mirror_lines(state: MirrorState) -> list[str]:
    """How much of a run MLflow has, and where to look."""
    from lightningrun.tracking.store import page

    have = state.note.removeprefix("MLflow: ") or f"{state.stored:,} of {state.emitted:,} events stored"
    where = f" ({state.uri})" if state.uri and state.uri not in have else ""
    link = (
        state.deep_link
        or f"http://127.0.0.1:{options.UI_PORT}{page(state.experiment_id)}  (while `lightningrun ui` runs)"
    )
    return [have + where] * bool(state.uri or state.note) + [link] * bool(state.experiment_id)


def shorten(path: str | Path) -> str:
    """A path relative to the current folder where it lies inside it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
