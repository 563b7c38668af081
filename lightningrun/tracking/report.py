"""``report.html``: one self-contained page on a run, for somebody who was not there.

The pages (``report.html`` and ``lineage.html`` beside this file, Jinja templates) have no script and load nothing; a
content policy in them says so to the browser too. Every text from agents, models and data is escaped by the template
engine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.files import write_atomic
from lightningrun.tracking.advice import next_steps
from lightningrun.tracking.comparison import PASS, Headline
from lightningrun.tracking.formats import diff_lines, duration, merged, number, took, total, usd
from lightningrun.tracking.lineage import MARKS, MEANINGS, Lineage, Node, gist, lineages, tally
from lightningrun.tracking.plots import plots, training_plots
from lightningrun.tracking.rollout_tree import executed, read_tree, words
from lightningrun.tracking.standings import worth_showing
from lightningrun.tracking.store import page
from lightningrun.tracking.summary import RunSummary, StageSummary, read_json, summarise, tokens_of
from lightningrun.types import Json, Rollout

if TYPE_CHECKING:
    import jinja2

SHOWN = 5
"""Failures of each kind on the page."""
_LONG = 1200
_LINES = 60
"""Lines of a rollout's tree on the page."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run's folder and return its path."""
    path = run_dir / "report.html"
    write_atomic(path, render(summarise(run_dir)))
    return path


def render(run: RunSummary) -> str:
    """The page as text."""
    fixed = [change for change in run.changes if change.fixed]
    broken = [change for change in run.changes if change.broken]
    still = [change for change in run.changes if not change.fixed and not change.broken]
    searches = lineages(run)
    told = _told(run)
    return _render(
        "report.html",
        run=run,
        notes=merged(run.notes),
        head=run.headline,
        results=[(head, _axis(head)) for head in run.headlines],
        searches=searches,
        plots=plots(run, searches),
        training=training_plots(run),
        beside=worth_showing(run.evaluations),
        fixed=fixed[:SHOWN],
        broken=broken[:SHOWN],
        still=still[:SHOWN],
        failed=_failed(told) if not run.changes else [],
        tree=lambda stage, key: _rows(*told[stage, key]) if (stage, key) in told else [],
        tags=sorted(run.by_tag(), key=lambda row: (row.after, row.tag)),
        roles=[(role, parts, tokens_of(parts)) for role, parts in run.totals.by_role.items()],
        key_metric=_key_metric,
        advice=next_steps(run),
        lock=read_json(run.path / "lock.json"),
        page=page,
        total=total,
    )


def render_lineage(run: RunSummary, search: Lineage) -> str:
    """One search of a run as a page of its own."""
    plot = plots(run, [search]).get(search.stage)
    return _render("lineage.html", run=run, notes=merged(run.notes), search=search, plot=plot)


def _render(name: str, **values: Any) -> str:
    return _template(name).render(values)


@cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.globals["meanings"] = MEANINGS
    environment.filters.update(
        num=_number, signed=lambda value: number(value, "+"), count="{:,.0f}".format, usd=usd, span=duration,
        took=took, short=_short, when=_when, diff=diff_lines, look=_look, gist=gist, tally=tally,
        mark=lambda outcome: MARKS.get(outcome, "·"),
    )  # fmt: skip
    return environment.get_template(name)


def _look(of: Node | str) -> str:
    """The style class of an outcome."""
    outcome = of if isinstance(of, str) else of.outcome
    return f"o-{outcome.replace(' ', '-')}" if outcome in MARKS else "o-other"


def _told(run: RunSummary) -> dict[tuple[str, str], tuple[Path, Rollout]]:
    """(stage, key) -> rollout of the headline's evaluations, with the folder of the run that executed it."""
    stages = {run.headline.baseline_stage, run.headline.final_stage} - {""} if run.headline is not None else set()
    found = {}
    for stage in sorted(stages):
        home, made = executed(run.path, stage)
        found.update({(stage, key): (home, rollout) for key, rollout in made.items()})
    return found


def _failed(told: Mapping[tuple[str, str], tuple[Path, Rollout]]) -> list[tuple[str, Rollout]]:
    """(stage, rollout) of the worst, where there is nothing to compare them with."""
    worst = [(stage, one) for (stage, _), (_, one) in told.items() if one.score is None or one.score < PASS]
    return sorted(worst, key=lambda pair: (pair[1].score is not None, pair[1].score or 0.0, pair[1].key))[:SHOWN]


def _rows(run_dir: Path, rollout: Rollout) -> list[dict[str, Any]]:
    """A rollout's tree, line by line, with its place on the time axis in percent."""
    root = read_tree(run_dir, rollout)
    nodes = [(depth, node) for depth, node in root.walk() if node is not root][:_LINES]
    whole = max([root.end, *(node.end for _, node in nodes)]) - root.start or 1.0
    found = []
    for depth, node in nodes:
        asked, said = words(node)
        left = min(100.0, max(0.0, 100 * (node.start - root.start) / whole))
        width = min(100.0 - left, 100 * node.duration_s / whole)
        found.append({"depth": depth - 1, "node": node, "asked": asked, "said": said, "left": left, "width": width})
    return found


def _axis(head: Headline) -> dict[str, Any]:
    """The bars in percent of a common axis, which is 0 to 1 unless the rewards leave it."""
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
