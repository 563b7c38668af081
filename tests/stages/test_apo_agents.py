"""Two agents with a prompt each: the coach sees who said what, and is asked about both prompts or one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from world import Answer, context, rows

from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.stage import run
from lightningrun.stages.apo.traces import describe_failure
from lightningrun.types import LLMCall, Rollout, RolloutStatus, Task

SEED = {"planner": "Plan it.", "reader": "Read.", "writer": "Write it."}
SKILLS = {"planner": "amber", "writer": "cedar"}
TASK = Task("train0", "train", {"id": "train0"})
FAILED = Rollout("k", "apo", "train0", "train", 0, RolloutStatus.SUCCEEDED, 0.0, "wrong")


def call(agent: str, answer: str, *earlier: str) -> LLMCall:
    """A call of ``agent``, whose conversation so far is its prompt, then user and assistant in turns."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(earlier)]
    messages = [{"role": "system", "content": SEED.get(agent, "Help.")}, *turns]
    response = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
    return LLMCall("1", "policy", "m", "apo", "k", {"messages": messages}, response, agent=agent)


def test_the_trace_says_who_asks_and_tells_each_conversation_once() -> None:
    calls = [
        call("planner", "Look first.", "How many?"),
        call("writer", "Which table?", "Look first."),
        call("planner", "Table t.", "How many?", "Look first.", "Which table?"),
        call("", "Polished.", "Seven"),
    ]
    told = describe_failure(FAILED, TASK, calls, SEED, 1000).split("\n[score]")[0].splitlines()
    assert told == [
        "[agent 'planner' asks]", "[system] (the prompt 'planner')", "[user] How many?", "[assistant] Look first.",
        "[agent 'writer' asks]", "[system] (the prompt 'writer')", "[user] Look first.", "[assistant] Which table?",
        "[agent 'planner' asks]", "[user] Which table?", "[assistant] Table t.",
        "[an unnamed agent asks]", "[system] Help.", "[user] Seven", "[assistant] Polished.",
    ]  # fmt: skip


def test_one_agent_is_not_named_unless_there_are_others() -> None:
    alone = [call("planner", "Yes.", "Well?")]
    assert "asks]" not in describe_failure(FAILED, TASK, alone, {"planner": SEED["planner"]}, 1000)
    assert "[agent 'planner' asks]" in describe_failure(FAILED, TASK, alone, SEED, 1000)


def student(prompts: Any, task: Task, sample: int) -> Answer:
    """Every other row needs the planner's skill, the rest the writer's."""
    name = sorted(SKILLS)[int(task.id.lstrip("trainvl")) % 2]
    known = SKILLS[name] in prompts[name]
    return Answer(float(known), "" if known else f"the {name} lacks {SKILLS[name]}")


def coach(question: str, again: int) -> str:
    """Rewrites the prompts that it is shown, by what failures say of each."""
    texts = {}
    for name in SEED:
        if f'<current_prompt name="{name}">' in question:
            text = question.split(f'<current_prompt name="{name}">\n')[1].split("\n</current_prompt>")[0]
            skill = SKILLS.get(name, "")
            texts[name] = f"{text} Mind {skill}." if f"the {name} lacks {skill}" in question else text
    return "Something is lacking.\n" + "\n".join(f"{name}\n```\n{text}\n```" for name, text in texts.items())


@pytest.mark.parametrize("selector", ["all", "round_robin"])
async def test_two_of_three_prompts_are_improved(tmp_path: Path, selector: str) -> None:
    given = {"component_selector": selector, "optimize": ["planner", "writer"]}
    config = ApoConfig.model_validate({"type": "apo", "budget": {"max_rollouts": 500}, **given})
    splits = {"train": rows("train", 24), "val": rows("val", 24)}
    ctx = context(tmp_path, config, SEED, splits, student, coach)
    result = await run(ctx, {})
    best = result.outputs["prompts"].value
    assert result.metrics["promoted"] is True
    assert "amber" in best["planner"] and "cedar" in best["writer"]
    assert best["reader"] == SEED["reader"]
    asked = [one.request["messages"][0]["content"] for one in ctx.service.calls if one.role == "coach"]  # type: ignore[attr-defined]
    shown = {tuple(name for name in SEED if f'<current_prompt name="{name}">' in question) for question in asked}
    assert shown == ({("planner", "writer")} if selector == "all" else {("planner",), ("writer",)})
    made = [event for event in ctx.journal.events() if event["kind"] == "candidate" and event["way"]]
    assert {event["component"] for event in made} >= {", ".join(names) for names in shown}
