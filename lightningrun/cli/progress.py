"""What a run looks like while it runs: observers of its journal, one for each kind of output.

`LiveView` redraws two lines on a terminal, `PlainView` prints a bounded number of lines elsewhere, `JsonView` passes
the events on. All read the same records (``tracking.journal.EVENTS`` and ``FLASHES``).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from lightningrun.cli.options import silence
from lightningrun.tracking.formats import count, duration, headline, merged, number, spent, usd

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = dict[str, Any]
Mask = Callable[[str], str]

FIRST_PAUSE_S = 5.0
"""Seconds between the first two progress lines of a stage in plain output; each later pause is half as long again,
so that a stage of any length prints a bounded number of lines."""


def describe(event: Event, verbose: bool) -> Iterator[tuple[str, str]]:
    """``(style, line)`` for everything in an event that is worth a line of its own."""
    kind = event["kind"]
    if kind in ("run_started", "run_resumed"):
        yield "bold", f"{'resuming' if kind == 'run_resumed' else 'run'} {event.get('run', '')}"
        yield from (("bold yellow", f"note: {note}") for note in merged(event.get("notes") or ()))
        yield from (("yellow", f"warning: {text}") for text in merged(event.get("warnings") or ()))
        yield from (("", f"changed: {text}") for text in event.get("changes") or ())
    elif kind == "stage_started" and verbose:
        yield "", f"  {_name(event)} starts: {event.get('reason', '')}"
    elif kind == "stage_reused":
        yield "green", f"✓ {_name(event)} reused: {headline(event.get('metrics') or {})} ({event.get('reason', '')})"
    elif kind == "stage_skipped":
        yield "dim", f"- {_name(event)} skipped: {event.get('reason', '')}"
    elif kind == "stage_finished":
        yield _finished(event)
    elif kind == "candidate":
        yield from _candidate(event, verbose)
    elif kind == "gate":
        yield from (
            ("green" if check["met"] else "bold red", f"  gate {'met' if check['met'] else 'NOT met'}: {_check(check)}")
            for check in event.get("checks") or ()
        )
    elif kind == "note" and not verbose:
        yield "dim", f"  {event['message']}"
    elif kind == "log" and (verbose or event.get("level") != "info"):
        level = event.get("level", "info")
        style = {"warning": "yellow", "error": "bold red"}.get(level, "dim")
        yield style, f"  {level}: {event['stage'] + ': ' if event.get('stage') else ''}{event.get('message', '')}"
    elif kind == "rollout" and verbose:
        rollout = event["rollout"]
        score = "" if rollout["score"] is None else f" {number(rollout['score'])}"
        yield "dim", f"  {rollout['task_id']}: {rollout['status']}{score} {rollout['error'][:100]}".rstrip()


def _name(event: Event) -> str:
    return f"{event.get('ordinal', '')} {event['stage']}".strip()


def _check(check: dict[str, Any]) -> str:
    sign = {"max": "≤", "beats": ">"}.get(check["name"].partition(".")[0], "≥")
    return f"{check['name']} {number(check['value'])} {sign} {number(check['bound'])}"


def _finished(event: Event) -> tuple[str, str]:
    if event.get("status") == "failed":
        return "bold red", f"✗ {_name(event)} failed: {event.get('error', '')}"
    facts = [headline(event.get("metrics") or {}), spent(event.get("cost") or {}), duration(event.get("duration_s", 0))]
    return "green", f"✓ {_name(event)}: {' · '.join(fact for fact in facts if fact)}"


def _candidate(event: Event, verbose: bool) -> Iterator[tuple[str, str]]:
    verdict = event.get("verdict", "")
    if verbose or verdict in ("accepted", "promoted", "not_promoted"):
        val = event.get("val") or {}
        score = f", val {number(val['mean'])}" if val.get("mean") is not None else ""
        reason = f": {event['reason']}" if event.get("reason") and verdict != "accepted" else ""
        yield "cyan", f"  step {event.get('step')}: candidate {event.get('id')} {verdict}{score}{reason}"


def progress_facts(event: Event) -> str:
    """The second line of progress: what it has cost so far and how long it may still take."""
    facts = [f"{count(event.get('calls') or 0)} calls", f"{count(event.get('tokens') or 0)} tokens"]
    if event.get("cost_usd"):
        facts.append(usd(event["cost_usd"]))
    if event.get("eta_s") is not None:
        facts.append(f"{duration(event['eta_s'])} left")
    return " · ".join(facts)


def done_of_total(event: Event) -> str:
    total = f"/{event['total']}" if event.get("total") else ""
    reward = f", reward {number(float(event['reward']))}" if event.get("reward") is not None else ""
    return f"{event.get('done', 0)}{total} {event.get('unit') or 'rollouts'}{reward}"


class View:
    """Shows events. ``mask`` takes secrets out of what it shows."""

    def __init__(self, mask: Mask, verbose: bool = False) -> None:
        self._mask = mask
        self._verbose = verbose

    def __call__(self, event: Event) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Leave the terminal as it was."""

    def _print(self, line: str, stream: IO[str]) -> None:
        """A reader that goes away does not stop the run."""
        try:
            print(self._mask(line), file=stream, flush=True)
        except BrokenPipeError:
            silence(stream)


class JsonView(View):
    """Each event as one line of JSON on standard output."""

    def __call__(self, event: Event) -> None:
        self._print(json.dumps(event, ensure_ascii=False, default=str), sys.stdout)


class QuietView(View):
    """Warnings and failures only."""

    def __call__(self, event: Event) -> None:
        if event["kind"] == "log" and event.get("level") in ("warning", "error"):
            self._print(f"{event['level']}: {event.get('message', '')}", sys.stderr)


class PlainView(View):
    """Lines on standard error, for logs and pipes."""

    def __init__(self, mask: Mask, verbose: bool) -> None:
        super().__init__(mask, verbose)
        self._pause_s = FIRST_PAUSE_S
        self._next = 0.0

    def __call__(self, event: Event) -> None:
        if event["kind"] == "stage_started":
            self._pause_s = FIRST_PAUSE_S
            self._next = time.monotonic() + self._pause_s
        elif event["kind"] == "progress" and time.monotonic() >= self._next:
            self._pause_s *= 1.5
            self._next = time.monotonic() + self._pause_s
            self._print(f"  {event['stage']}: {done_of_total(event)} · {progress_facts(event)}", sys.stderr)
        for _, line in describe(event, self._verbose):
            self._print(line, sys.stderr)


class LiveView(View):
    """Two lines that are redrawn in place on standard error, with the lines of `describe` scrolling above them."""

    def __init__(self, mask: Mask, verbose: bool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        super().__init__(mask, verbose)
        self._stages = 0
        self._title = "starting"
        self._event: Event = {}
        self._spinner = Spinner("dots", style="cyan")
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=6, transient=True)
        self._live.start()

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "run_started":
            self._stages = len(event.get("stages") or ())
        elif kind == "stage_started":
            self._title = f"{event.get('ordinal')}/{self._stages or '?'} {event['stage']}"
            self._event = {}
        elif kind == "progress":
            self._event = event
        elif kind in ("stage_finished", "run_finished"):
            self._title, self._event = "saving" if kind == "stage_finished" else "MLflow is catching up", {}
        for style, line in describe(event, self._verbose):
            self._console.print(self._mask(line), style=style or None, markup=False)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        event = self._event
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column()
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        if not event:
            row.add_row(self._spinner, Text(self._title, "bold"), "", "")
            return row
        bar = ProgressBar(
            total=event.get("total") or None, completed=event.get("done", 0), pulse=not event.get("total")
        )
        row.add_row(self._spinner, Text(self._title, "bold"), bar, Text(done_of_total(event)))
        return Group(row, Text(f"  {progress_facts(event)}", "dim"))

    def close(self) -> None:
        self._live.stop()


def choose(mask: Mask, as_json: bool, quiet: bool, verbose: bool) -> View:
    """The view that fits the options and the terminal."""
    if as_json:
        return JsonView(mask)
    if quiet:
        return QuietView(mask)
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return LiveView(mask, verbose) if live else PlainView(mask, verbose)
