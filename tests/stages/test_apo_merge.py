"""Two candidates of different branches become one that has what each of them had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from world import Answer, HiddenRules, context, rows

from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.merging import Pair, combined, pick_pair
from lightningrun.stages.apo.stage import run
from lightningrun.types import Task

ROOT = Candidate(0, {"a": "a", "b": "b"}, (), {"x": 0.0, "y": 0.0})


def test_each_prompt_comes_from_the_side_that_changed_it() -> None:
    one = Candidate(1, {"a": "A", "b": "b"}, (0,), {"x": 1.0, "y": 0.0})
    other = Candidate(2, {"a": "a", "b": "B"}, (0,), {"x": 0.0, "y": 1.0})
    assert combined(Pair(one, other, ROOT), ["a", "b"]) == ({"a": "A", "b": "B"}, [])
    rival = Candidate(3, {"a": "C", "b": "B"}, (0,), {"x": 0.0, "y": 1.0})
    assert combined(Pair(one, rival, ROOT), ["a", "b"]) == ({"a": "A", "b": "B"}, ["a"])


def test_only_pairs_of_different_branches_that_each_win_somewhere_are_picked() -> None:
    one = Candidate(1, {"a": "A", "b": "b"}, (0,), {"x": 1.0, "y": 0.0})
    child = Candidate(2, {"a": "AA", "b": "b"}, (1,), {"x": 0.0, "y": 1.0})
    other = Candidate(3, {"a": "a", "b": "B"}, (0,), {"x": 0.0, "y": 1.0})
    known = {each.id: each for each in (ROOT, one, child, other)}
    assert pick_pair([ROOT, one, child], known, ()) is None
    assert pick_pair([ROOT, one, other], known, ()) == Pair(one, other, ROOT)
    assert pick_pair([ROOT, one, other], known, {(1, 3)}) is None


async def test_a_search_merges_and_tells_both_parents(tmp_path: Path) -> None:
    """Half of the rows need amber, half basil; the coach only ever says one of them, unless asked to merge."""

    def needs(task: Task) -> str:
        return "amber" if int(task.id[-1]) % 2 else "basil"

    def student(prompts: Any, task: Task, sample: int) -> Answer:
        right = needs(task) in prompts["p"]
        return Answer(float(right), "" if right else f"{needs(task)} was missing")

    def coach(question: str, again: int) -> str:
        if "Version 2:" in question:
            assert "amber" in question and "basil" in question
            return "```\nSay amber and basil.\n```"
        first = question.partition("[feedback] ")[2].partition(" ")[0]
        return f"```\nSay {first}.\n```"

    splits = {"train": rows("train", 40), "val": rows("val", 40)}
    given = {
        "merge": {"enabled": True},
        "parent": {"strategy": "pareto"},
        "reflection": {"rounds": 1, "batch": 3, "dedupe_by": "none"},
        "proposals": {"per_parent": 4},
    }
    config = ApoConfig.model_validate({"type": "apo", "budget": {"max_rollouts": 600}, **given})
    ctx = context(tmp_path, config, {"p": "Say it."}, splits, student, coach, seed=4)
    result = await run(ctx, {})
    assert result.outputs["prompts"].value == {"p": "Say amber and basil."}
    merged = [e for e in ctx.journal.events() if e["kind"] == "candidate" and e["way"] == "merge" and e["val"]]
    assert len(merged[0]["parents"]) == 2
    assert merged[0]["acceptance"]["after"] > merged[0]["acceptance"]["before"]


async def test_merging_keeps_to_the_budget_and_repeats_itself(tmp_path: Path) -> None:
    config = ApoConfig.model_validate(
        {"type": "apo", "merge": {"enabled": True, "max": 2}, "budget": {"max_rollouts": 400}}
    )
    seen = []
    for shuffle in (0, 1):
        ctx = HiddenRules(6).context(tmp_path / str(shuffle), config, shuffle=shuffle)
        result = await run(ctx, {})
        assert ctx.engine.executed == result.metrics["rollouts"] <= 400
        seen.append(result.metrics)
    assert seen[0] == seen[1]
