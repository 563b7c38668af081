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
from lightningrun.tracking.store import page
from lightningrun.tracking.summary import RunSummary, StageSummary, summarise, tokens_of
from lightningrun.types import Json

SHOWN = 5
"""Failures of each kind on the page."""
_LONG = 1200
_PLOT = (900.0, 270.0)
_MARGIN = (46.0, 14.0, 14.0, 40.0)
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A curve in SVG units: its incumbent as a path, candidates as dots, and the axes' labels."""

    stage: str
    title: str
    width: float
    height: float
    path: str
    dots: Sequence[tuple[float, float, str, str]]
    """x, y, verdict, tooltip."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    bounds: tuple[float, float, float, float]
    """Left, top, right, bottom of the plotting area."""


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
        num=_number, signed=lambda v: _number(v, "+"), usd=_usd, span=_duration, short=_short, when=_when, big=_big
    )
    fixed = [change for change in run.changes if change.fixed]
    broken = [change for change in run.changes if change.broken]
    still = [change for change in run.changes if not change.fixed and not change.broken]
    return environment.from_string(source).render(
        run=run,
        notes=_notes(run.notes),
        head=run.headline,
        axis=_axis(run),
        plots=plots(run),
        diffs=[(change, _diff_lines(change.diff)) for change in run.prompts],
        lineage=[(stage, [_candidate(told) for told in told_all]) for stage, told_all in run.candidates.items()],
        fixed=fixed[:SHOWN],
        broken=broken[:SHOWN],
        still=still[:SHOWN],
        tags=tag_table(run),
        roles=[(role, parts, tokens_of(parts)) for role, parts in run.totals.by_role.items()],
        key_metric=_key_metric,
        advice=next_steps(run),
        lock=_lock(run.path),
        mlflow=_mlflow(run),
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
    width, height = _PLOT
    left, top, right, bottom = _MARGIN[0], _MARGIN[1], width - _MARGIN[2], height - _MARGIN[3]
    xs = [x for x, _ in points] + [dot[0] for dot in dots]
    ys = [y for _, y in points] + [dot[1] for dot in dots]
    x_high, x_step = _round_axis(max([*xs, 1.0]))
    y_low, y_high = min([*ys, 0.0]), max([*ys, 1.0])

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / x_high, (y - y_low) / (y_high - y_low)
        return round(left + across * (right - left), 1), round(bottom - up * (bottom - top), 1)

    placed = [place(x, y) for x, y in points]
    path = "".join(f"M{x} {y}" if not n else f"H{x}V{y}" for n, (x, y) in enumerate(placed))
    if placed:
        path += f"H{right}"
    return Plot(
        stage,
        title,
        width,
        height,
        path,
        [(*place(x, y), verdict, f"candidate {label}: {y:.3f}, {verdict}") for x, y, verdict, label in dots],
        [(place(x, y_low)[0], str(x)) for x in range(0, int(x_high) + 1, x_step)],
        [(place(0, value)[1], f"{value:.2g}") for value in (y_low + (y_high - y_low) * part / 4 for part in range(5))],
        (left, top, right, bottom),
    )


def _round_axis(highest: float) -> tuple[float, int]:
    """The end of an axis from 0, and the distance of its ticks: 1, 2 or 5 times a power of ten, at most seven ticks."""
    step = next(s for power in range(12) for s in (10**power, 2 * 10**power, 5 * 10**power) if highest / s <= 6)
    return float(math.ceil(highest / step) * step), step


def tag_table(run: RunSummary) -> list[tuple[str, int, float | None, float]]:
    """(tag, rows, reward in the first evaluation, in the last one), the weakest first."""
    head = run.headline
    final = run.stage(head.final_stage) if head else None
    if head is None or final is None:
        return []
    baseline = run.stage(head.baseline_stage)
    table = []
    for name, value in final.metrics.items():
        if name.startswith("tag.") and name.endswith(".reward") and isinstance(value, (int, float)):
            tag = name[4:-7]
            before = baseline.metrics.get(name) if baseline else None
            table.append((tag, int(final.metrics.get(f"tag.{tag}.n") or 0), before, float(value)))
    return sorted(table, key=lambda row: (row[3], row[0]))


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


def _notes(notes: Sequence[str]) -> list[str]:
    """``role: words`` notes, those of the same words in one."""
    roles: dict[str, list[str]] = {}
    for note in notes:
        role, colon, words = note.partition(": ")
        roles.setdefault(words if colon else note, []).extend([role] if colon else [])
    return [f"{', '.join(names)}: {words}" if names else words for words, names in roles.items()]


def _key_metric(stage: StageSummary) -> tuple[str, Json]:
    for name in ("reward", "best_val", "val_reward", "loss"):
        if stage.type == "apo" and name == "reward":
            continue
        if isinstance(stage.metrics.get(name), (int, float)):
            return name.replace("_", " "), stage.metrics[name]
    return "", None


def _candidate(told: Mapping[str, Json]) -> dict[str, Any]:
    return {
        "id": told["id"],
        "parents": told.get("parents") or [],
        "verdict": told["verdict"],
        "reason": told.get("reason") or "",
        "acceptance": told.get("acceptance"),
        "val": (told.get("val") or {}).get("mean"),
        "tokens": told.get("prompt_tokens"),
        "critique": told.get("critique") or "",
        "diff": _diff_lines(told.get("diff") or ""),
    }


def _diff_lines(diff: str) -> list[tuple[str, str]]:
    """(kind, text) of each line: add | cut | at | same; the two lines of file names are left out."""
    kinds = {"+": "add", "-": "cut", "@": "at"}
    lines = [line for line in diff.splitlines() if not line.startswith(("--- ", "+++ "))]
    return [(kinds.get(line[:1], "same"), line) for line in lines]


def _lock(run_dir: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((run_dir / "lock.json").read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def _mlflow(run: RunSummary) -> dict[str, str]:
    state = run.mirror
    link = str(state.get("deep_link") or "")
    here = page(str(state["experiment_id"])) if state.get("experiment_id") else ""
    return {
        "link": link if link.startswith(("http://", "https://")) else "",
        "uri": str(state.get("uri") or ""),
        "page": here,
    }


def _number(value: Json, sign: str = "") -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return f"{value:{sign}d}" if isinstance(value, int) else f"{value:{sign}.3f}"


def _big(value: float) -> str:
    return f"{int(value):,}".replace(",", " ")


def _usd(value: float | None) -> str:
    if not value:
        return "$0"
    return f"${value:.2f}" if value >= 1 else f"${value:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


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
