from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.examples.example_run import ran

pytestmark = [pytest.mark.examples, pytest.mark.timeout(1000)]


def test_langchain_and_langgraph(tmp_path: Path) -> None:
    ran("langgraph", tmp_path).must_have_improved()


def test_the_same_graph_is_trained(tmp_path: Path) -> None:
    """A model made from nothing learns to answer in the graph's place of a model, tool calls and all."""
    short = (
        "stages.apo.budget.max_rollouts=200", "stages.sft.steps=200", "stages.grpo.steps=2", "stages.grpo.batch=4",
        "stages.grpo.eval.every=2", "task.data.rl_val.limit=20", "task.data.weights_test.limit=40",
    )  # fmt: skip
    run = ran("langgraph", tmp_path, *short, recipe="train.yaml")
    first = [
        call["response"]["choices"][0]["message"] for call in run.records("calls.jsonl") if asks(call, "imitated", 2)
    ]
    assert sum(bool(message.get("tool_calls")) for message in first) >= 30, (
        "of 40 questions: it learned to use the tool"
    )
    tried = [rollout for rollout in run.rollouts() if rollout["stage"] == "grpo"]
    assert len(tried) >= 2 * 4 * 8 and {rollout["status"] for rollout in tried} == {"succeeded"}
    assert any(asks(call, "grpo", 4) for call in run.records("calls.jsonl")), "what the tool said was in a request"


def asks(call: dict[str, Any], stage: str, messages: int) -> bool:
    """Whether a stage asked the small model, with so many messages."""
    return (call.get("stage"), call["role"], len(call["request"]["messages"])) == (stage, "small", messages)
