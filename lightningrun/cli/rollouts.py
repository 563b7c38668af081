"""One rollout on the terminal: the tree of its agents, calls and tools, with what was said, and the reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import UsageError
from lightningrun.tracking.formats import count, number, plural, took, usd
from lightningrun.tracking.rollout_tree import Node, executed, read_tree, words
from lightningrun.types import Json, Rollout

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

_MARKS = {"agent": "●", "llm": "◆", "tool": "⚙", "step": "○", "retriever": "⌕", "embedding": "≈"}
_LINE = 400
"""Characters shown of what was asked or said; `calls.jsonl` has it whole."""


def show_rollout(run_dir: Path, stage: str, wanted: str) -> None:
    """Print it. Raises UsageError if the stage executed none of that name here, or several."""
    from lightningrun.cli import summaries

    home, made = executed(run_dir, stage)
    rollout = _find(made, stage, wanted)
    summaries.show(_title(rollout, home if home != run_dir else None), _tree(read_tree(home, rollout)))


def _find(made: Mapping[str, Rollout], stage: str, wanted: str) -> Rollout:
    found = [one for key, one in made.items() if wanted in (key, one.task_id)] or [
        one for key, one in made.items() if wanted in key
    ]
    if len(found) == 1:
        return found[0]
    some = "; ".join(f"{one.key} ({one.status.value}, {one.score})" for one in (found or list(made.values()))[:6])
    if found:
        raise UsageError(f"{wanted!r} is {len(found)} rollouts of stage {stage!r}", hint=f"name one by its key: {some}")
    hint = f"it has, among others: {some}" if made else "it has none"
    raise UsageError(f"stage {stage!r} executed no rollout {wanted!r}", hint=hint)


def _title(rollout: Rollout, home: Path | None) -> Text:
    from rich.text import Text

    score = "no score" if rollout.score is None else f"reward {number(float(rollout.score))}"
    style = "bold green" if rollout.score and rollout.score > 0 else "bold red"
    text = Text.assemble(
        (f"{rollout.stage} / {rollout.task_id}", "bold"), "  ", (f"{rollout.status.value}, {score}", style)
    )
    metrics = ", ".join(f"{name} {number(value)}" for name, value in rollout.metrics.items())
    text.append(f"\n{rollout.key}" + (f", executed in run {home.name}" if home else ""), "dim")
    for label, said in (("metrics", metrics), ("feedback", rollout.feedback), ("error", rollout.error)):
        if said and not (label == "error" and said in rollout.feedback):
            text.append(f"\n{label}: {said}", "red" if label == "error" else "")
    return text


def _tree(root: Node) -> Tree:
    from rich.tree import Tree

    trees: list[Tree] = []
    for depth, node in root.walk():
        label = _label(node, root.start)
        del trees[depth:]
        trees.append(trees[-1].add(label) if trees else Tree(label, guide_style="dim"))
    return trees[0]


def _label(node: Node, start: float) -> Text:
    from rich.text import Text

    name = node.name
    if node.call is not None and node.call.agent:
        name = f"{node.call.agent} → {node.name}"
    text = Text.assemble((f"{_MARKS[node.kind]} ", "cyan"), (name, "bold" if node.kind != "step" else ""))
    facts = [f"+{took(max(0.0, node.start - start))}", took(node.duration_s)]
    if node.usage.total_tokens and node.kind in ("agent", "llm"):
        usage = node.usage
        facts.append(f"{count(usage.prompt_tokens)} → {count(usage.completion_tokens)} tokens")
    if node.cost_usd:
        facts.append(usd(node.cost_usd))
    if node.call is not None:
        facts += ["from the record"] * node.call.cached
        facts += [f"{plural(node.call.attempts, 'attempt')}"] * (node.call.attempts > 1)
    if node.reward is not None:
        facts.append(f"reward {number(node.reward)}")
    text.append(f"  {' · '.join(facts)}", "dim")
    if node.error:
        text.append(f"\n! {_short(node.error)}", "red")
    asked, said = words(node)
    for arrow, what in (("→", asked), ("←", said)):
        if what:
            text.append(f"\n{arrow} {_short(what)}", "" if arrow == "←" else "dim")
    return text


def _short(value: Json) -> str:
    text = " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
    return text if len(text) <= _LINE else f"{text[: _LINE // 2]} … {text[-_LINE // 2 :]}"
