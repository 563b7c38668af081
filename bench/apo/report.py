"""What the measurements say: tables, the bars with PASS or FAIL, and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from worlds import FAMILIES

Line = dict[str, Any]
SEARCHED = tuple(family for family in FAMILIES if family != "null")
ADDITIVE_AT_LEAST = {250: 0.484, 500: 0.775, 1000: 0.893}
"""What GEPA 0.1.4 reached, tuned, on 30 other additive worlds."""
AT_100 = 0.95
NULL_LOSS, NULL_SHARE = 0.005, 0.01
WALL_RATIO = 1.3


class Report:
    """Reads the lines of curves (one run at one budget) and of trials."""

    def __init__(self, lines: Sequence[Line], budgets: Sequence[int]) -> None:
        self._lines = lines
        self.curves = [line for line in lines if line["kind"] == "curve"]
        self.budgets = budgets
        self.contestants = list(dict.fromkeys(line["contestant"] for line in self.curves))
        measured = {line["family"] for line in self.curves}
        self.families = [family for family in FAMILIES if family in measured]
        self._failed = 0

    def of(self, contestant: str, budget: int, families: Iterable[str]) -> list[Line]:
        wanted = set(families)
        return [
            line
            for line in self.curves
            if line["contestant"] == contestant and line["budget"] == budget and line["family"] in wanted
        ]

    def accuracy(self, contestant: str, budget: int, families: Iterable[str]) -> float | None:
        """Mean true accuracy; None where nothing was measured."""
        values = [line["true"] for line in self.of(contestant, budget, families)]
        return statistics.fmean(values) if values else None

    def tables(self) -> str:
        """One table a family, one over all that can be improved, then what was spent, and claims beside the truth."""
        parts = [self._table(family, [family], _accuracy) for family in self.families]
        searched = [family for family in self.families if family in SEARCHED]
        if len(searched) > 1:
            parts.append(self._table("all but null", searched, _accuracy))
        parts.append(self._table("LLM calls, all", searched, _calls))
        parts.append(self._table("of these to the coach", searched, _coach))
        parts.append(self._table("optimism (val - true)", searched, _optimism))
        if "null" in self.families:
            parts.append(self._table(f"null: lost > {NULL_LOSS}", ["null"], _lost))
        return "\n\n".join(parts)

    def _table(self, title: str, families: Sequence[str], cell: Callable[[Sequence[Line]], str]) -> str:
        worlds = len({(line["family"], line["world"]) for line in self.curves if line["family"] in families})
        rows = [f"{title + f' ({worlds} worlds)':<36}" + "".join(f"{budget:>16}" for budget in self.budgets)]
        for name in self.contestants:
            cells = (cell(self.of(name, budget, families)) for budget in self.budgets)
            rows.append(f"{name:<36}" + "".join(f"{text:>16}" for text in cells))
        return "\n".join(rows)

    def bars(self) -> str:
        """Each line of the bar with PASS or FAIL."""
        self._failed = 0
        rows = [*self._against_tuned(), *self._against_defaults(), *self._honesty(), *self._trials()]
        return "\n".join(rows)

    @property
    def met(self) -> bool:
        """Whether every bar that ``bars`` judged was met."""
        return not self._failed

    def _verdict(self, good: bool, text: str) -> str:
        self._failed += not good
        return f"{'PASS' if good else 'FAIL'}  {text}"

    def _against_tuned(self) -> list[str]:
        rows = []
        for family in self.families:
            for budget in self.budgets if family in SEARCHED else ():
                mine = self.accuracy("ours", budget, [family])
                theirs = self.accuracy("gepa-tuned", budget, [family])
                if mine is None or theirs is None:
                    continue
                share = AT_100 if budget == 100 else 1.0
                bar = f"{share:g} x GEPA tuned" if share < 1 else "GEPA tuned"
                text = (
                    f"{family} at {budget}: ours {mine:.3f}, {bar} {share * theirs:.3f}{self._paired(family, budget)}"
                )
                rows.append(self._verdict(mine >= share * theirs, text))
        for budget, least in ADDITIVE_AT_LEAST.items():
            mine = self.accuracy("ours", budget, ["additive"])
            if mine is not None:
                rows.append(self._verdict(mine >= least, f"additive at {budget}: ours {mine:.3f}, at least {least:g}"))
        return rows

    def _paired(self, family: str, budget: int) -> str:
        """The mean difference from GEPA tuned over the worlds that both have, with its standard error."""
        theirs = {line["world"]: line["true"] for line in self.of("gepa-tuned", budget, [family])}
        mine = self.of("ours", budget, [family])
        gaps = [line["true"] - theirs[line["world"]] for line in mine if line["world"] in theirs]
        return f"  ({statistics.fmean(gaps):+.3f} ± {_error(gaps):.3f})" if len(gaps) > 1 else ""

    def _against_defaults(self) -> list[str]:
        rows = []
        for peer in ("gepa", "agentlightning"):
            behind = []
            pairs = 0
            for family in self.families:
                for budget in self.budgets if family in SEARCHED else ():
                    mine, theirs = (self.accuracy(name, budget, [family]) for name in ("ours", peer))
                    if mine is not None and theirs is not None:
                        pairs += 1
                        if mine <= theirs:
                            behind.append(f"{family} at {budget} ({mine:.3f}, {theirs:.3f})")
            if pairs:
                text = f"ahead of {peer} at its defaults in {pairs - len(behind)} of {pairs} (family, budget)"
                rows.append(self._verdict(not behind, text + (f"; not: {', '.join(behind)}" if behind else "")))
        return rows

    def _honesty(self) -> list[str]:
        mine = [line for line in self.curves if line["contestant"] == "ours"]
        null = [line for line in mine if line["family"] == "null"]
        rows = []
        if null:
            lost = [line for line in null if line["true"] < line["seed"] - NULL_LOSS]
            text = f"null: {len(lost)} of {len(null)} runs end more than {NULL_LOSS} below the seed (at most 1%)"
            rows.append(self._verdict(len(lost) <= NULL_SHARE * len(null), text))
        if mine:
            over = [line["rollouts"] - line["budget"] for line in mine if line["rollouts"] > line["budget"]]
            text = f"overshoot: {len(over)} of {len(mine)} runs, {sum(over):g} rollouts (the endpoint's count)"
            rows.append(self._verdict(not over, text))
        return rows

    def _trials(self) -> list[str]:
        rows = []
        kills = [line for line in self._lines if line["kind"] == "kill"]
        if kills:
            repeats = sum(line["repeats"] for line in kills)
            same = sum(line["identical"] for line in kills)
            count = sum(line["kills"] for line in kills)
            text = (
                f"kill -9: {count} in {len(kills)} runs; {repeats:g} calls repeated, "
                f"{same} of {len(kills)} results identical; {sum(line['in_flight'] for line in kills):g} in flight lost"
            )
            rows.append(self._verdict(repeats == 0 and same == len(kills), text))
        walls = [line for line in self._lines if line["kind"] == "wall"]
        for line in walls:
            rows.append(
                f"      wall {line['family']}-{line['world']}: {line['wall_s']:.1f} s for {line['student']:.0f} "
                f"rollouts and {line['coach']:.0f} coach calls ({line['coach_in_sequence']:.0f} in sequence), "
                f"ideal {line['ideal_s']:.1f} s, first call to last {line['span_s']:.1f} s"
            )
        if walls:
            ratio = statistics.median(line["ratio"] for line in walls)
            text = f"wall at 100 ms a call, 8 slots, 500 rollouts: {ratio:.2f} x ideal, at most {WALL_RATIO} (median)"
            rows.append(self._verdict(ratio <= WALL_RATIO, text))
        return rows

    def plot(self, path: Path) -> bool:
        """Accuracy against rollouts and against all LLM calls, by family. False without matplotlib."""
        try:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot
        except ImportError:
            return False
        families = self.families
        figure, axes = pyplot.subplots(2, len(families), figsize=(3.4 * len(families), 6.4), squeeze=False, sharey=True)
        for column, family in enumerate(families):
            for row, what in enumerate(("rollouts", "all LLM calls")):
                panel = axes[row][column]
                for name in self.contestants:
                    found = [(budget, self.of(name, budget, [family])) for budget in self.budgets]
                    found = [(budget, lines) for budget, lines in found if lines]
                    x = [b if row == 0 else statistics.fmean(_spent(line) for line in lines) for b, lines in found]
                    y = [statistics.fmean(line["true"] for line in lines) for _, lines in found]
                    error = [_error([line["true"] for line in lines]) for _, lines in found]
                    width = 2.2 if name.startswith("ours") else 1.2
                    panel.errorbar(x, y, error, label=name, linewidth=width, capsize=2, marker="o", markersize=3)
                panel.set_xscale("log")
                panel.set_ylim(0, 1)
                panel.set_xlabel(what)
                panel.grid(alpha=0.3)
                if row == 0:
                    panel.set_title(family)
        axes[0][0].set_ylabel("true accuracy")
        axes[1][0].set_ylabel("true accuracy")
        axes[0][-1].legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)
        return True


def _error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _accuracy(lines: Sequence[Line]) -> str:
    values = [line["true"] for line in lines]
    return f"{statistics.fmean(values):.3f} ± {_error(values):.3f}" if values else "-"


def _spent(line: Line) -> float:
    return float(line["rollouts"] + line["coach"])


def _calls(lines: Sequence[Line]) -> str:
    return f"{statistics.fmean(map(_spent, lines)):.0f}" if lines else "-"


def _coach(lines: Sequence[Line]) -> str:
    return f"{statistics.fmean(line['coach'] for line in lines):.0f}" if lines else "-"


def _optimism(lines: Sequence[Line]) -> str:
    gaps = [line["claim"] - line["true"] for line in lines if line["claim"] is not None]
    return f"{statistics.fmean(gaps):+.3f}" if gaps else "-"


def _lost(lines: Sequence[Line]) -> str:
    lost = sum(line["true"] < line["seed"] - NULL_LOSS for line in lines)
    return f"{lost}/{len(lines)}" if lines else "-"
