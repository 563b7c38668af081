"""The tree of a rollout: where calls, tools and a framework's spans stand; and the same tree as MLflow has it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from lightningrun.tracking.report import render
from lightningrun.tracking.rollout_tree import Node, tree
from lightningrun.tracking.summary import summarise
from lightningrun.tracking.sync import sync
from lightningrun.types import AgentSpan, LLMCall, Rollout, RolloutStatus, Usage
from tests.tracking.conftest import query, uri_of
from tests.tracking.fake_run import SEED_PROMPT, FakeRun, rows

ROLLOUT = Rollout("k/test/t1/0", "s", "t1", "test", 0, RolloutStatus.SUCCEEDED, 1.0, started_at=100.0, duration_s=20.0)


def call(start: float, end: float, agent: str = "", wants: tuple[str, ...] = (), has: tuple[str, ...] = (),
         span: str = "") -> LLMCall:  # fmt: skip
    """A call that asks for the tools ``wants`` and is told what the tools ``has`` gave."""
    messages = [{"role": "user", "content": "How many?"}]
    messages += [{"role": "tool", "tool_call_id": name, "content": f"result of {name}"} for name in has]
    tools = [{"id": name, "function": {"name": name, "arguments": f"{{{name}}}"}} for name in wants]
    response = {"choices": [{"message": {"content": None if tools else "said", "tool_calls": tools}}]}
    return LLMCall("id", "policy", "model", "s", "k", {"messages": messages}, response, started_at=start,
                   duration_s=end - start, usage=Usage(10, 2), cost_usd=0.5, agent=agent, span=span)  # fmt: skip


def span(id: int, parent: int, start: float, end: float, name: str, **attributes: Any) -> AgentSpan:
    told = {key.replace("__", "."): value for key, value in attributes.items()}
    return AgentSpan(f"{id:016x}", f"{parent:016x}" if parent else "", "t", name, start, end - start, attributes=told)


def lines(root: Node) -> list[str]:
    return [f"{'  ' * (depth - 1)}{node.kind} {node.name}{'*' if node.call else ''}" for depth, node in root.walk()][1:]


def test_tools_are_read_off_the_calls_whenever_their_results_come() -> None:
    calls = [call(100, 101, wants=("a", "b")), call(102, 103, has=("a",), wants=("c",)), call(105, 106, has=("b",))]
    root = tree(ROLLOUT, calls)
    assert lines(root) == ["llm model*", "tool a", "tool b", "llm model*", "llm model*"], "what c gave nobody was told"
    a, b = (node for _, node in root.walk() if node.kind == "tool")
    assert (a.start, a.end, a.asked, a.said) == (101, 102, "{a}", "result of a")
    assert (b.start, b.end) == (101, 105)
    assert (root.usage, root.cost_usd) == (Usage(30, 6), 1.5)


def test_turns_of_several_agents_stand_under_their_names() -> None:
    calls = [call(100, 101, "writer", wants=("a",)), call(102, 103, "writer", has=("a",)), call(104, 105, "checker"),
             call(106, 107), call(108, 109, "writer")]  # fmt: skip
    root = tree(ROLLOUT, calls)
    assert lines(root) == [
        "agent writer", "  llm model*", "  tool a", "  llm model*", "agent checker", "  llm model*",
        "agent unnamed", "  llm model*", "agent writer", "  llm model*",
    ]  # fmt: skip
    first = root.children[0]
    assert (first.start, first.end, first.usage.total_tokens, first.cost_usd) == (100, 103, 24, 1.0)
    assert lines(tree(ROLLOUT, [call(100, 101, "writer"), call(102, 103, "writer")])) == ["llm model*", "llm model*"]


def test_calls_stand_in_the_span_around_them_or_the_one_they_name() -> None:
    spans = [
        span(1, 0, 100, 110, "graph"),
        span(2, 1, 101, 105, "node"),
        span(3, 2, 101, 103, "chat gpt", gen_ai__operation__name="chat"),
        span(4, 3, 101.4, 102.6, "POST"),
        span(5, 1, 104, 109, "other"),
    ]
    calls = [call(101.5, 102.5), call(104.5, 104.8), call(104.2, 104.9, span=f"{5:016x}"), call(111, 112)]
    root = tree(ROLLOUT, calls, spans)
    assert lines(root) == [
        "step graph", "  step node", "    llm chat gpt", "      step POST", "      llm model*", "    llm model*",
        "  step other", "    llm model*", "llm model*",
    ]  # fmt: skip


def test_branches_that_run_at_once_each_keep_their_own_call() -> None:
    spans = [span(n, 0, 100 + n / 10, 105 - n / 10, f"chat {n}", openinference__span__kind="LLM") for n in (1, 2)]
    calls = [call(101, 102), call(101.5, 102.5)]
    assert lines(tree(ROLLOUT, calls, spans)) == ["llm chat 1", "  llm model*", "llm chat 2", "  llm model*"]


def test_a_tool_that_the_framework_tells_of_is_not_told_twice() -> None:
    spans = [
        span(1, 0, 99, 120, "agent run", openinference__span__kind="AGENT"),
        span(2, 1, 101.5, 101.8, "running tool", gen_ai__tool__name="a", gen_ai__tool__call__arguments="{x}"),
    ]
    calls = [call(100, 101, wants=("a", "b")), call(102, 103, has=("a", "b"))]
    root = tree(ROLLOUT, calls, spans)
    assert lines(root) == ["agent agent run", "  llm model*", "  tool b", "  tool running tool", "  llm model*"]


def test_odd_spans_hang_from_the_root_each_once() -> None:
    spans = [span(1, 2, 100, 101, "a"), span(2, 1, 102, 103, "b"), span(3, 3, 104, 105, "c"), span(4, 9, 106, 107, "d"),
             span(5, 4, 50, 60, "e"), span(6, 1, 108, 109, "f")]  # fmt: skip
    root = tree(ROLLOUT, [], spans)
    assert sorted(node.name for _, node in root.walk()) == ["a", "agent", "b", "c", "d", "e", "f"]


def test_steps_are_the_rewards_of_the_calls() -> None:
    calls = [call(100, 101), call(102, 103)]
    root = tree(replace(ROLLOUT, steps=(0.5, -1.0)), calls)
    assert [node.reward for _, node in root.walk()] == [None, 0.5, -1.0]
    assert [node.reward for _, node in tree(replace(ROLLOUT, steps=(0.5,)), calls).walk()][1:] == [None, None]


def traced_run(runs_dir: Path) -> FakeRun:
    """One evaluation of one failed rollout: two agents, one framework, two calls and a tool."""
    run = FakeRun(runs_dir, rows_per_split=1)
    run.start()
    run.emit("stage_started", "baseline", type="evaluate", ordinal=1, attempt=1, key="k", reason="")
    record = run.rollout("baseline", SEED_PROMPT, rows("test", 1)[0], "test", good=False)
    refs = [run.calls.append(one.to_json()) for one in
            (call(101, 102, "writer", wants=("run_sql",)), call(103, 104, "checker", has=("run_sql",)))]  # fmt: skip
    spans = [span(1, 0, 100, 105, "graph", secret="<script>alert(1)</script>"),
             span(2, 1, 100.5, 102.5, "writer", openinference__span__kind="AGENT")]  # fmt: skip
    place = run.journal.keep_spans({"spans": [asdict(one) for one in spans]})
    told = {**record, "key": "p/test/traced/0", "task_id": "traced", "call_refs": refs, "span_ref": place,
            "steps": [0.25, 0.75], "started_at": 100.0, "duration_s": 6.0,
            "agents": {"writer": {"calls": 1}, "checker": {"calls": 1}}}  # fmt: skip
    run.emit("rollout", "baseline", rollout=told)
    run.finish_stage("baseline", {"reward": 0.0, "n": 1}, {})
    run.emit("run_finished", status="succeeded", exit_code=0, error="", metrics={}, duration_s=1.0)
    return run


def test_mlflow_has_the_tree_with_tokens_cost_latency_and_rewards(runs_dir: Path) -> None:
    run = traced_run(runs_dir)
    sync(run.path, environ={})
    ((id,),) = query(runs_dir, "SELECT request_id FROM trace_info WHERE client_request_id = 'p/test/traced/0'")
    spans = MlflowClient(uri_of(runs_dir)).get_trace(id).data.spans
    names = {one.span_id: one.name for one in spans}
    assert sorted((names.get(one.parent_id, ""), one.name, one.span_type) for one in spans) == [
        ("", "agent", "AGENT"), ("agent", "graph", "CHAIN"), ("graph", "model", "CHAT_MODEL"),
        ("graph", "writer", "AGENT"), ("writer", "model", "CHAT_MODEL"), ("writer", "run_sql", "TOOL"),
    ]  # fmt: skip
    by_name = {(one.name, one.attributes.get("lightningrun.agent", "")): one for one in spans}
    first = by_name["model", "writer"]
    assert first.attributes["mlflow.chat.tokenUsage"] == {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    assert first.attributes["mlflow.llm.cost"] == {"total_cost": 0.5}
    assert (first.attributes["lightningrun.latency_s"], first.attributes["lightningrun.step_reward"]) == (1.0, 0.25)
    assert first.inputs["messages"][0]["content"] == "How many?"
    assert by_name["run_sql", ""].inputs == "{run_sql}" and by_name["run_sql", ""].outputs == "result of run_sql"
    assert by_name["agent", ""].attributes["lightningrun.agents"]["writer"] == {"calls": 1}
    assert by_name["writer", ""].attributes["lightningrun.tokens"] == 12


def test_the_report_shows_failed_rollouts_as_trees(tmp_path: Path) -> None:
    page = render(summarise(traced_run(tmp_path).path))
    card = page[page.index("Rollouts that failed") :]
    assert card.index("graph") < card.index("writer → model") < card.index("run_sql") < card.index("checker → model")
    assert "result of run_sql" in card and "reward 0.250" in card and "<script" not in page
