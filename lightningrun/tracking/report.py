"""``report.html``: one self-contained page on a run, for somebody who was not there.

The page (``report.html`` beside this file, a Jinja template) has no script and loads nothing; a content policy in it
says so to the browser too. Every text from agents, models and data is escaped by the template engine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningrun.files import write_atomic
from lightningrun.tracking.advice import next_steps
from lightningrun.tracking.formats import duration, merged, number, usd
from lightningrun.tracking.store import page
from lightningrun.tracking.summary import RunSummary, StageSummary, read_json, summarise, tokens_of
from lightningrun.types import Json

SHOWN = 5
"""Failures of each kind on the page."""
_LONG = 1200
WIDTH, HEIGHT = 900.0, 270.0
LEFT, TOP, RIGHT, BOTTOM = 46.0, 14.0, 886.0, 230.0
"""A plot, and the area in it where the curve is."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve in SVG units: its incumbent as a path, candidates as dots, and the axes' labels."""

    stage: str
    title: str
    path: str
    dots: Sequence[tuple[float, float, str, str]]
    """x, y, verdict, tooltip."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run's folder and return its path."""
    path = run_dir / "report.html"
    write_atomic(path, render(summarise(run_dir)))
    return path


def render(run: RunSummary) -> str:
    """The page as text."""
    import jinja2

    source = Path(__file__).with_name("report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        num=_number,
        signed=lambda value: number(value, "+"),
        count="{:,.0f}".format,
        usd=usd,
        span=duration,
        short=_short,
        when=_when,
        diff=_diff_lines,
    )
    fixed = [change for change in run.changes if change.fixed]
    broken = [change for change in run.changes if change.broken]
    still = [change for change in run.changes if not change.fixed and not change.broken]
    return environment.from_string(source).render(
        run=run,
        notes=merged(run.notes),
        head=run.headline,
        axis=_axis(run),
        plots=plots(run),
        area={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM},
        fixed=fixed[:SHOWN],
        broken=broken[:SHOWN],
        still=still[:SHOWN],
        tags=sorted(run.by_tag(), key=lambda row: (row.after, row.tag)),
        roles=[(role, parts, tokens_of(parts)) for role, parts in run.totals.by_role.items()],
        key_metric=_key_metric,
        advice=next_steps(run),
        lock=read_json(run.path / "lock.json"),
        page=page,
    )


def plots(run: RunSummary) -> list[Plot]:
    """A plot for each stage that told a curve."""
    made = []
    for stage, curves in run.curves.items():
        name = next((n for n in ("val_reward", "reward") if n in curves), next(iter(curves)))
        if len(curves[name]) < 2:
            continue
        rollouts = "rollouts" in curves and name == "val_reward"
        dots = []
        for told in run.candidates.get(stage, ()):
            if told.get("val") and told.get("spend"):
                dots.append(
                    (float(told["spend"]["rollouts"]), float(told["val"]["mean"]), told["verdict"], f"#{told['id']}")
                )
        title = f"{name} over {'rollouts' if rollouts else 'steps'}"
        made.append(_plot(stage, title, curves[name], dots))
    return made


def _plot(
    stage: str, title: str, points: Sequence[tuple[float, float]], dots: Sequence[tuple[float, float, str, str]]
) -> Plot:
    xs = [x for x, _ in points] + [dot[0] for dot in dots]
    ys = [y for _, y in points] + [dot[1] for dot in dots]
    x_high, x_step = _round_axis(max([*xs, 1.0]))
    y_low, y_high = min([*ys, 0.0]), max([*ys, 1.0])

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / x_high, (y - y_low) / (y_high - y_low)
        return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    placed = [place(x, y) for x, y in points]
    path = "".join(f"M{x} {y}" if not n else f"H{x}V{y}" for n, (x, y) in enumerate(placed))
    return Plot(
        stage,
        title,
        f"{path}H{RIGHT}",
        [(*place(x, y), verdict, f"candidate {label}: {y:.3f}, {verdict}") for x, y, verdict, label in dots],
        [(place(x, y_low)[0], str(x)) for x in range(0, int(x_high) + 1, x_step)],
        [(place(0, value)[1], f"{value:.2g}") for value in (y_low + (y_high - y_low) * part / 4 for part in range(5))],
    )


def _round_axis(highest: float) -> tuple[float, int]:
    """The end of an axis from 0, and the distance of its ticks: 1, 2 or 5 times a power of ten, at most seven ticks."""
    step = next(s for power in range(12) for s in (10**power, 2 * 10**power, 5 * 10**power) if highest / s <= 6)
    return float(math.ceil(highest / step) * step), step


def _axis(run: RunSummary) -> dict[str, Any]:
    """The headline's bars in percent of a common axis, which is 0 to 1 unless the rewards leave it."""
    head = run.headline
    if head is None:
        return {"bars": []}
    bars = [
        ("baseline", head.baseline_stage or "seed prompt", head.baseline, head.baseline_low, head.baseline_high),
        ("final", head.final_stage or "best prompt", head.final, head.final_low, head.final_high),
    ]
    known = [value for _, _, *values in bars for value in values if value is not None]
    low, high = min([0.0, *known]), max([1.0, *known])
    scale = 100 / (high - low)

    def at(value: float | None) -> float | None:
        return None if value is None else round((value - low) * scale, 2)

    shown = [(kind, name, value, at(value), at(a), at(b)) for kind, name, value, a, b in bars if value is not None]
    return {"bars": shown, "low": low, "high": high, "zero": at(0.0)}


def _key_metric(stage: StageSummary) -> tuple[str, Json]:
    for name in ("reward", "best_val", "val_reward", "loss"):
        if stage.type == "apo" and name == "reward":
            continue
        if isinstance(stage.metrics.get(name), (int, float)):
            return name.replace("_", " "), stage.metrics[name]
    return "", None


def _diff_lines(diff: str) -> list[tuple[str, str]]:
    """(kind, text) of each line: add | cut | at | same; the two lines of file names are left out."""
    kinds = {"+": "add", "-": "cut", "@": "at"}
    lines = [line for line in diff.splitlines() if not line.startswith(("--- ", "+++ "))]
    return [(kinds.get(line[:1], "same"), line) for line in lines]


def _number(value: Json) -> str:
    return "–" if value is None else number(value)


def _short(value: Json) -> str:
    if isinstance(value, Mapping):
        text = "\n".join(f"{name}: {_plain(entry)}" for name, entry in value.items())
    else:
        text = _plain(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text) - _LONG} more characters)"


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""
