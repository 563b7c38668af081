"""Curves of a run for ``report.html``: places in percent of the plot's area, so that a page of any width can draw them.

A search's plot is also a map of its lineage: its candidates lie where the search stood, joined to their parents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lightningrun.tracking.lineage import Lineage, Node
from lightningrun.tracking.summary import RunSummary


class Dot(NamedTuple):
    """A candidate: left and up in percent. ``scored`` is False for one that no val row was spent on."""

    x: float
    y: float
    node: Node
    scored: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """One curve, drawn in a square of 100 by 100 with y downwards, and the labels of its axes in percent."""

    title: str
    curve: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    dots: Sequence[Dot] = ()
    edges: Sequence[tuple[str, bool]] = field(default=())
    """Parent to child, and whether the winner descends that way."""


TRAINING = {
    "reward": "reward while training",
    "val.reward": "reward on the rows that choose the weights",
    "live": "rows whose rollouts differ in reward",
    "entropy": "entropy, nats a token",
    "kl": "divergence from the start",
    "loss": "loss",
}
"""Curves of a training that are drawn, and what they are."""


_FLAT = 1e-3
"""The least height of a plot: a curve that does not move is to look like it."""


def training_plots(run: RunSummary) -> dict[str, list[Plot]]:
    """Stage -> its curves, of the stages that made weights."""
    found = {}
    for stage in run.stages:
        curves = run.curves.get(stage.id, {}) if "model" in stage.outputs else {}
        told = [(name, words) for name, words in TRAINING.items() if len(curves.get(name, ())) > 1]
        if told:
            found[stage.id] = [_plot(words, curves[name], None, smooth=True) for name, words in told]
    return found


def plots(run: RunSummary, searches: Sequence[Lineage]) -> dict[str, Plot]:
    """Stage -> its plot, for each stage that told a curve of two points or more."""
    found = {}
    lineages = {search.stage: search for search in searches}
    for stage, curves in run.curves.items():
        name = next((n for n in ("val_reward", "reward") if n in curves), next(iter(curves)))
        if len(curves[name]) > 1:
            steps = "rollouts" if name == "val_reward" and "rollouts" in curves else "steps"
            found[stage] = _plot(f"{name} over {steps}", curves[name], lineages.get(stage))
    return found


def _plot(title: str, points: Sequence[tuple[float, float]], search: Lineage | None, smooth: bool = False) -> Plot:
    """``smooth``: points are joined; else a value holds until the next."""
    nodes = [node for node in search.nodes.values() if "rollouts" in node.spend] if search else []
    at = {node.id: (float(node.spend["rollouts"]), node.val) for node in nodes}
    xs = [x for x, _ in points] + [x for x, _ in at.values()]
    ys = [y for _, y in points] + [y for _, y in at.values() if y is not None]
    x_ticks, y_ticks = _ticks(0.0, max(xs), 6), _ticks(min(ys), max(max(ys), min(ys) + _FLAT), 5)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / (x_ticks[-1] or 1.0), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(100 * across, 2), round(100 * up, 2)

    def point(x: float, y: float) -> str:
        across, up = place(x, y)
        return f"{across} {round(100 - up, 2)}"

    curve = ""
    for n, (across, up) in enumerate(place(x, y) for x, y in points):
        down = round(100 - up, 2)
        curve += f"M{across} {down}" if not n else f"L{across} {down}" if smooth else f"H{across}V{down}"
    edges = []
    for node in nodes:
        x, y = at[node.id]
        for parent in node.parents:
            before = at.get(parent, (0.0, None))
            if search and y is not None and before[1] is not None:
                on_path = node.on_path and search.nodes[parent].on_path
                edges.append((f"M{point(before[0], before[1])}L{point(x, y)}", on_path))
    return Plot(
        title,
        curve if smooth else f"{curve}H100",
        [(place(tick, 0)[0], f"{tick:g}") for tick in x_ticks],
        [(place(0, tick)[1], f"{tick:g}") for tick in y_ticks],
        [Dot(*place(x, y_ticks[0] if y is None else y), node, y is not None)
         for node, (x, y) in zip(nodes, at.values(), strict=True)],
        sorted(edges, key=lambda edge: edge[1]),
    )  # fmt: skip


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers around an interval, at most ``most + 1`` apart by 1, 2 or 5 times a power of ten."""
    spread = max(high - low, 1e-6)
    step = next(
        unit * 10.0**power for power in range(-7, 12) for unit in (1, 2, 5) if spread / (unit * 10.0**power) <= most - 1
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 9) for n in range(first, max(last, first + 1) + 1)]
