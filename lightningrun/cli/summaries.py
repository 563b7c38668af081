"""A run's summary on the terminal, and tables of runs. rich is imported here only, when something is shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lightningrun.cli.formats import UI_PORT, count, duration, headline, interval, merged, number, plural, usd

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lightningrun.tracking.comparison import Headline
    from lightningrun.tracking.mirror import MirrorState
    from lightningrun.tracking.summary import RunSummary, StageSummary

MAX_WIDTH = 120
_STATUS_STYLES = {
    "succeeded": "green",
    "reused": "green",
    "failed": "bold red",
    "killed": "red",
    "interrupted": "yellow",
}


def console() -> Console:
    """Standard output; a file or a pipe gets full width and no colours."""
    from rich.console import Console

    plain = Console(highlight=False, markup=False, emoji=False)
    width = min(plain.width, MAX_WIDTH) if sys.stdout.isatty() else MAX_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)


def grid(*headings: str, right: Sequence[str] = (), fold: str = "") -> Table:
    """An unboxed table. ``right`` names columns of numbers; ``fold`` the one that gives way when space is short."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(headings))
    for heading in headings:
        justify: Any = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading != fold)
    return table


def show(table: Table) -> None:
    """Print one table."""
    out = console()
    with out.capture() as captured:
        out.print(table)
    _echo(captured.get(), out)


def _echo(text: str, out: Console) -> None:
    """Print without the blanks that fill a table's last column: a file keeps them, and diffs show them."""
    click.echo("\n".join(line.rstrip() for line in text.splitlines()), color=out.is_terminal and not out.no_color)


def show_run(run_dir: Path, mirror: MirrorState | None = None) -> None:
    """Everything that a person wants to know of a run, on one screen."""
    from lightningrun.tracking.summary import summarise

    run = summarise(run_dir)
    out = console()
    with out.capture() as captured:
        _show_all(out, run, mirror)
    _echo(captured.get(), out)


def _show_all(out: Console, run: RunSummary, mirror: MirrorState | None) -> None:
    _show_title(out, run)
    if run.headline is not None:
        _show_headline(out, run.headline)
    _show_stages(out, run)
    for change in run.prompts:
        verdict = "promoted" if change.promoted else "NOT promoted: the seed stays"
        out.print(f"\nprompt {change.name!r}, {verdict} by {change.stage}", style="bold")
        _show_diff(out, change.diff)
    _show_tags(out, run)
    _show_costs(out, run)
    _show_paths(out, run, mirror)


def _show_title(out: Console, run: RunSummary) -> None:
    from rich.text import Text

    out.rule(style="dim")
    title = Text.assemble((run.name, "bold"), "  ", (run.status, _STATUS_STYLES.get(run.status, "")))
    title.append(f" in {duration(run.duration_s)}" + (f", {plural(run.attempts, 'sitting')}" * (run.attempts > 1)))
    out.print(title)
    for note in merged(run.notes):
        out.print(f"note: {note}", style="bold yellow")
    if run.error and run.status != "succeeded":
        out.print(run.error, style="red")


def _show_headline(out: Console, head: Headline) -> None:
    table = grid("", "", "")
    if head.baseline is not None:
        where = f"{head.baseline_stage or 'seed prompt'} on {head.split}"
        table.add_row("baseline", number(head.baseline) + interval(head.baseline_low, head.baseline_high), where)
    if head.final is not None:
        where = f"{head.final_stage or 'best prompt'} on {head.split}, {plural(head.n, 'row')}"
        table.add_row(
            "reward" if head.baseline is None else "final",
            number(head.final) + interval(head.final_low, head.final_high),
            where,
        )
    if head.gain is not None:
        sure = "" if head.low is None else " (95%, paired)"
        clear = head.low is not None and head.low > 0
        gain = f"{head.gain:+.3f}{interval(head.low, head.high)}"
        note = "confirmed" if clear else "not clear of 0"
        table.add_row("gain", gain, f"{note}{sure}", style="bold green" if clear else "bold yellow")
    out.print()
    out.print(table)


def _show_stages(out: Console, run: RunSummary) -> None:
    from rich.text import Text

    table = grid(
        "", "stage", "status", "result", "calls", "cost", "time", right=("calls", "cost", "time"), fold="result"
    )
    for stage in run.stages:
        calls = sum(int(role.get("calls") or 0) for role in stage.cost.values())
        dollars = sum(role.get("usd") or 0 for role in stage.cost.values())
        fresh = stage.status not in ("reused", "skipped", "pending")
        table.add_row(
            str(stage.ordinal),
            stage.id,
            Text(stage.status, _STATUS_STYLES.get(stage.status, "")),
            _result(stage),
            count(calls) if fresh else "",
            usd(dollars) if fresh else "",
            duration(stage.duration_s) if fresh else "",
        )
    out.print()
    out.print(table)


def _result(stage: StageSummary) -> str:
    if stage.error:
        return stage.error.splitlines()[0]
    if stage.status in ("skipped", "pending"):
        return stage.reason
    return headline(stage.metrics) + (f" ({stage.reason})" if stage.status == "reused" else "")


def _show_diff(out: Console, diff: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if not diff:
        out.print("  no change", style="dim")
    for line in diff.splitlines():
        style = "dim" if line.startswith(("---", "+++", "@@")) else {"+": "green", "-": "red"}.get(line[:1], "")
        out.print(Padding(Text(line, style), (0, 0, 0, 2)))


def _show_tags(out: Console, run: RunSummary) -> None:
    head = run.headline
    before = run.stage(head.baseline_stage) if head else None
    after = run.stage(head.final_stage) if head else None
    if after is None:
        return
    tags = [name[4:-7] for name in after.metrics if name.startswith("tag.") and name.endswith(".reward")]
    if not tags:
        return
    numbers = ("rows", "baseline", "final", "gain") if before else ("rows", "reward")
    table = grid("tag", *numbers, right=numbers)
    for tag in tags:
        final = after.metrics[f"tag.{tag}.reward"]
        base = before.metrics.get(f"tag.{tag}.reward") if before else None
        gain = f"{final - base:+.3f}" if isinstance(base, (int, float)) and isinstance(final, (int, float)) else ""
        rows = str(after.metrics.get(f"tag.{tag}.n", ""))
        table.add_row(
            tag, rows, *(["" if base is None else number(base), number(final), gain] if before else [number(final)])
        )
    out.print()
    out.print(table)


def _show_costs(out: Console, run: RunSummary) -> None:
    from lightningrun.tracking.summary import tokens_of

    if not run.totals.by_role:
        return
    table = grid("role", "calls", "tokens", "cost", right=("calls", "tokens", "cost"))
    for role, parts in run.totals.by_role.items():
        table.add_row(role, count(parts.get("calls", 0)), count(tokens_of(parts)), usd(parts.get("usd")))
    if len(run.totals.by_role) > 1:
        totals = run.totals
        table.add_row("all", count(totals.llm_calls), count(totals.tokens), usd(totals.usd), style="bold")
    out.print()
    out.print(table)


def _show_paths(out: Console, run: RunSummary, mirror: MirrorState | None) -> None:
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
    out.print()
    out.print(table)
    _show_next(out, run)


def _show_next(out: Console, run: RunSummary) -> None:
    """Commands worth typing next, as short as they can be."""
    runs_dir = run.path.parent
    which = "" if (runs_dir / "latest").resolve() == run.path else f" {run.run}"
    where = "" if runs_dir == Path("runs").absolute() else f" --runs-dir {shorten(runs_dir)}"
    ended = [("resume", "go on where it stopped"), ("logs", "what happened")]
    done = [("prompt", "the best prompt's text, alone"), ("ui", "MLflow: curves, traces, prompt versions")]
    table = grid("", "", "")
    for index, (command, words) in enumerate(done if run.status == "succeeded" else ended):
        table.add_row(
            "" if index else "next", f"lightningrun {command}{which if command != 'ui' else ''}{where}", words
        )
    out.print(table)


def mirror_lines(state: MirrorState) -> list[str]:
    """How much of a run MLflow has, and where to look."""
    from lightningrun.tracking.store import page

    have = state.note.removeprefix("MLflow: ") or f"{state.stored:,} of {state.emitted:,} events stored"
    where = f" ({state.uri})" if state.uri and state.uri not in have else ""
    link = state.deep_link or f"http://127.0.0.1:{UI_PORT}{page(state.experiment_id)}  (while `lightningrun ui` runs)"
    return [have + where] * bool(state.uri or state.note) + [link] * bool(state.experiment_id)


def shorten(path: str | Path) -> str:
    """A path relative to the current folder where it lies inside it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
