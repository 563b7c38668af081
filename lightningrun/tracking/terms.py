"""A run in the terms that MLflow takes: metric and param names, headline numbers, the note. Imports no mlflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lightningrun.tracking.comparison import Headline
from lightningrun.tracking.lineage import Lineage, Node
from lightningrun.tracking.standings import Grid
from lightningrun.tracking.summary import RunSummary


def final_metrics(summary: RunSummary) -> dict[str, float | None]:
    """The numbers that tell runs apart, for the parent run."""
    head = summary.headline
    return {
        "final/baseline": head.baseline if head else None,
        "final/reward": head.final if head else None,
        "final/gain": head.gain if head else None,
        "final/gain_low": head.low if head else None,
        "final/gain_high": head.high if head else None,
        "final/cost_usd": summary.totals.usd,
        "final/llm_calls": summary.totals.llm_calls,
        "final/tokens": summary.totals.tokens,
        **{
            f"final/agents/{agent}/{name}": value
            for agent, did in summary.totals.by_agent.items()
            for name, value in did.items()
        },
        **{f"evaluations/{one.stage}": one.reward for one in summary.evaluations},
        **{
            f"evaluations/{grid.stage}/{'/'.join(filter(None, (cell['prompts'], cell['model'])))}": cell.get("reward")
            for grid in summary.grids
            for cell in grid.cells
        },
    }


def note(summary: RunSummary) -> str:
    """Headline first: MLflow folds a note after four lines."""
    told = " · ".join(map(_sentence, summary.headlines))
    lines = [f"**{summary.name}** {summary.status}" + (f": {told}" if told else "")]
    lines += [
        *summary.notes,
        f"Cost ${summary.totals.usd:.4f}, {summary.totals.llm_calls} LLM calls, run {summary.run}",
    ]
    return "\n\n".join(lines)


def _sentence(head: Headline) -> str:
    if head.gain is None or head.baseline is None or head.final is None:
        return f"reward {head.final or 0.0:.3f}"
    sure = "" if head.low is None or head.high is None else f" (95% interval {head.low:+.3f} to {head.high:+.3f})"
    return f"{head.baseline:.3f} → {head.final:.3f} on {head.split}, gain {head.gain:+.3f}{sure}"


def candidates_table(search: Lineage) -> str:
    """A search's candidates as a table artifact, in the form that ``mlflow.log_table`` writes.

    That call itself appends to a table that is there, so that a repeat would double every row.
    """
    rows = [_candidate_row(node) for node in search.nodes.values()]
    data = [list(row.values()) for row in rows]
    return json.dumps({"columns": list(rows[0]) if rows else [], "data": data}, ensure_ascii=False)


def cells_table(grid: Grid) -> str:
    """A grid's cells in the same form."""
    names = ["prompts", "model", "n"]
    names += [name + end for name in ("reward", "gain", "interaction") for end in ("", "_low", "_high")]
    return json.dumps({"columns": names, "data": [[cell.get(name) for name in names] for cell in grid.cells]})


def _candidate_row(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "outcome": node.outcome,
        "parents": ", ".join(map(str, node.parents)),
        "on_path": node.on_path,
        "val": node.val,
        "gain": node.gain,
        "better": len(node.better),
        "worse": len(node.worse),
        "batch_before": node.acceptance.get("before"),
        "batch_after": node.acceptance.get("after"),
        "rollouts": node.took.get("rollouts"),
        "usd": node.took.get("usd"),
        "prompt_tokens": node.prompt_tokens,
        "components": ", ".join(node.components),
        "way": node.way,
        "reason": node.reason,
        "critique": node.critique,
        "diff": "\n".join(node.changes.values()),
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as params."""
    found: dict[str, str] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found.update(flat(entry, f"{prefix}{name}."))
        elif entry is not None:
            found[key(prefix + str(name))] = str(entry)[:500]
    return found


def key(name: str) -> str:
    """A metric or param name that MLflow takes."""
    return re.sub(r"[^\w.\-/ ]", "_", name)[:250]
