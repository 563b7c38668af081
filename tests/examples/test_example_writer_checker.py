"""Two agents in LangGraph, one of them improved; and the framework's own spans joined with our record of its calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightningrun.tracking.rollout_tree import Node, read_tree
from lightningrun.types import Rollout
from tests.examples.example_run import ROOT, ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(700)]
EXAMPLE = ROOT / "examples" / "writer_checker"


def above(root: Node) -> dict[str, set[str]]:
    """Agent of a call -> names of the framework's node two levels up: its step, then its model."""
    parents = {child: node for _, node in root.walk() for child in node.children}
    found: dict[str, set[str]] = {}
    for _, node in root.walk():
        if node.call is not None:
            found.setdefault(node.call.agent, set()).add(parents[parents[node]].name)
    return found


def test_only_the_writer_is_improved_and_every_call_stands_where_it_was_made(tmp_path: Path) -> None:
    run = ran("writer_checker", tmp_path)
    prompts = run.folder / "stages/apo/outputs/prompts"
    assert (prompts / "checker.md").read_text().strip() == (EXAMPLE / "checker.md").read_text().strip()
    assert (prompts / "writer.md").read_text().strip() != (EXAMPLE / "writer.md").read_text().strip()
    assert run.reward("final") >= run.reward("baseline") + 0.1, run.said
    rollouts = [Rollout.from_json(record) for record in run.rollouts()]
    assert all(set(rollout.agents) == {"writer", "checker"} for rollout in rollouts)
    for rollout in rollouts[:40]:
        assert rollout.span_ref is not None
        assert above(read_tree(run.folder, rollout)) == {"writer": {"write"}, "checker": {"check"}}
    sent_back = [rollout for rollout in rollouts if rollout.llm_calls > 2]
    assert sent_back, "the checker had something to do"
    code = (EXAMPLE / "agent.py").read_text()
    assert all((EXAMPLE / f"{name}.md").read_text() in code for name in ("writer", "checker"))
    assert "lightningrun" not in code
