"""A rollout as a tree that a person can read: agents, their calls to models, tools, and the framework's own steps.

Two sources are joined: our record of each call, which is complete and has its cost, and the OpenTelemetry spans of the
agent's framework, where it exports any. A call stands under the span that its request names (``traceparent``), else
under the one around it in time. Without spans, tools are read off the calls: what one asked for and a later one brings
the result of; and where several agents are named, each one's turns stand under its name. Imports no mlflow.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightningrun.files import read_journal, read_record
from lightningrun.tracking.journal import SPANS
from lightningrun.types import AgentSpan, Json, LLMCall, Rollout, RolloutStatus, Usage

JOURNAL = "journal.jsonl"
UNNAMED = "unnamed"
"""Who made calls that name nobody, beside others that do."""
_SLACK_S = 0.0002
"""Clocks are the same; times are rounded."""
_KINDS = {
    "llm": "llm", "chat": "llm", "chat_model": "llm", "completion": "llm", "text_completion": "llm",
    "generate_content": "llm", "tool": "tool", "execute_tool": "tool", "agent": "agent", "invoke_agent": "agent",
    "create_agent": "agent", "retriever": "retriever", "embedding": "embedding", "embeddings": "embedding",
}  # fmt: skip
_KIND_ATTRIBUTES = ("openinference.span.kind", "traceloop.span.kind", "gen_ai.operation.name", "mlflow.spanType")
"""In which OpenInference, OpenLLMetry, OpenTelemetry's own conventions and MLflow say what a span is."""
_INPUTS = ("input.value", "gen_ai.tool.call.arguments", "tool_arguments", "gen_ai.input.messages",
           "traceloop.entity.input", "mlflow.spanInputs")  # fmt: skip
_OUTPUTS = ("output.value", "gen_ai.tool.call.result", "tool_response", "gen_ai.output.messages",
            "traceloop.entity.output", "mlflow.spanOutputs")  # fmt: skip
_TOOL_NAMES = ("gen_ai.tool.name", "tool.name", "traceloop.entity.name")


@dataclass(slots=True, eq=False)
class Node:
    """``kind``: agent | llm | tool | retriever | embedding | step. ``asked`` and ``said`` are inputs and outputs."""

    kind: str
    name: str
    start: float
    duration_s: float
    error: str = ""
    asked: Json = None
    said: Json = None
    call: LLMCall | None = None
    """A call of ours; its usage and cost count."""
    span: AgentSpan | None = None
    reward: float | None = None
    """Of this call alone, where the reward function gave steps."""
    children: list[Node] = field(default_factory=list)

    @property
    def end(self) -> float:
        return self.start + self.duration_s

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """Itself and what is under it, with depths, as read from top to bottom."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    @property
    def usage(self) -> Usage:
        return sum((node.call.usage for _, node in self.walk() if node.call is not None), Usage())

    @property
    def cost_usd(self) -> float:
        return sum(node.call.cost_usd or 0.0 for _, node in self.walk() if node.call is not None)


def executed(run_dir: Path, stage: str) -> tuple[Path, dict[str, Rollout]]:
    """Key -> rollout of a stage, and the folder of the run that executed them: of a reused stage an earlier run's."""
    made = {}
    with contextlib.suppress(OSError, ValueError):
        made = json.loads((run_dir / "stages" / stage / "outputs" / "manifest.json").read_text("utf-8"))
    home = run_dir.parent / str(made.get("run", run_dir.name))
    if home.name == run_dir.name or not (home / JOURNAL).is_file():
        home, made = run_dir, {}
    name = made.get("stage", stage)
    events = (event for _, event in read_journal(home / JOURNAL))
    records = (event["rollout"] for event in events if event["kind"] == "rollout" and event["stage"] == name)
    return home, {record["key"]: Rollout.from_json(record) for record in records}


def read_tree(run_dir: Path, rollout: Rollout) -> Node:
    """The tree of a rollout that ``run_dir`` executed; what is damaged or gone is left out."""
    calls = [LLMCall.from_json(record) for record in _records(run_dir / "calls.jsonl", rollout.call_refs)]
    refs = () if rollout.span_ref is None else (rollout.span_ref,)
    told = [AgentSpan(**span) for record in _records(run_dir / SPANS, refs) for span in record["spans"]]
    return tree(rollout, calls, told)


def _records(path: Path, refs: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
        for ref in refs:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append(read_record(stream.fileno(), ref))
    return found


def tree(rollout: Rollout, calls: Sequence[LLMCall], spans: Sequence[AgentSpan] = ()) -> Node:
    """The rollout's node, with all the others under it in order of their times."""
    begins = [rollout.started_at or min((call.started_at for call in calls), default=0.0)]
    failed = rollout.status is not RolloutStatus.SUCCEEDED
    root = Node("agent", "agent", begins[0], rollout.duration_s, rollout.error if failed else "", said=rollout.output)
    framework = _nested(root, spans)
    steps = rollout.steps if len(rollout.steps) == len(calls) else (None,) * len(calls)
    parents: dict[int, Node] = {}
    for place, (call, reward) in enumerate(zip(calls, steps, strict=True)):
        parents[place] = parent = _maker(call, framework) or root
        node = Node("llm", call.model or call.role, call.started_at, call.duration_s, call.error, call=call)
        node.asked, node.said, node.reward = dict(call.request), call.response, reward
        parent.children.append(node)
    for place, tool in _tools(calls):
        if not any(_is_same_tool(tool, node) for node in framework.values()):
            parent = parents[place]
            tools = _parent_of(parent, root) if parent.kind == "llm" else parent
            tools.children.append(tool)
    root.asked = {"task": rollout.task_id, "question": question(calls)}
    for _, node in root.walk():
        node.children.sort(key=lambda child: child.start)
    if len({call.agent for call in calls}) > 1:
        root.children = list(_by_agent(root.children))
    return root


def words(node: Node) -> tuple[str, str]:
    """What a node was asked and what it said, as text: of a call, its last message and the answer. Nothing of a step
    between, whose whole state frameworks tell, and of a framework's own word on a call that we have."""
    if node.kind == "step" or (node.kind == "llm" and any(child.call is not None for child in node.children)):
        return "", ""
    if node.call is None:
        asked = node.asked.get("question") if isinstance(node.asked, Mapping) and "task" in node.asked else node.asked
        return _text(asked), _text(node.said)
    messages = node.call.request.get("messages") or [{}]
    try:
        answer = (node.call.response or {})["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        answer = {}
    functions = [one.get("function") or {} for one in _wanted(node.call)]
    tools = [f"{function.get('name')}({function.get('arguments') or ''})" for function in functions]
    return _text(messages[-1].get("content")), "\n".join(filter(None, [_text(answer.get("content")), *tools]))


def _text(value: Json) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def question(calls: Sequence[LLMCall]) -> str:
    """The last thing that the first call was told by its user."""
    messages = calls[0].request.get("messages") or [] if calls else []
    said = [m.get("content") for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""


def _nested(root: Node, spans: Sequence[AgentSpan]) -> dict[str, Node]:
    """Put the framework's spans under each other, those whose parent is not there under ``root``; returns all by id."""
    nodes = {span.id: _step(span) for span in spans}
    for span in spans:
        above, seen = span.parent, {span.id}
        while above in nodes and above not in seen:  # a circle of parents hangs from the root
            seen.add(above)
            above = nodes[above].span.parent  # type: ignore[union-attr]
        parent = nodes.get(span.parent, root) if above not in nodes else root
        parent.children.append(nodes[span.id])
    return nodes


def _step(span: AgentSpan) -> Node:
    said = span.attributes
    words = next((str(said[name]) for name in _KIND_ATTRIBUTES if said.get(name)), "").strip('"').lower()
    kind = _KINDS.get(words) or ("tool" if "gen_ai.tool.name" in said else "step")
    asked, answered = (next((said[name] for name in names if name in said), None) for names in (_INPUTS, _OUTPUTS))
    return Node(kind, span.name, span.started_at, span.duration_s, span.error, asked, answered, span=span)


def _maker(call: LLMCall, framework: Mapping[str, Node]) -> Node | None:
    """The span that made a call: the one it names, else the shortest around it, one that calls a model first."""
    if call.span in framework:
        return framework[call.span]
    end = call.started_at + call.duration_s
    around = [
        node for node in framework.values() if node.start - _SLACK_S <= call.started_at and end <= node.end + _SLACK_S
    ]
    free = [node for node in around if node.kind == "llm" and not any(child.call for child in node.children)]
    return min(free or around, key=lambda node: node.duration_s, default=None)


def _tools(calls: Sequence[LLMCall]) -> Iterator[tuple[int, Node]]:
    """(place of the call that asked for it, tool): a tool ran in the agent between two calls."""
    for place, call in enumerate(calls):
        end = call.started_at + call.duration_s
        for wanted in _wanted(call):
            for later in calls[place + 1 :]:
                results = _results(later)
                if later.started_at >= end - _SLACK_S and wanted.get("id") in results:
                    function = wanted.get("function") or {}
                    took_s = max(0.0, later.started_at - end)
                    node = Node("tool", str(function.get("name") or "tool"), end, took_s)
                    node.asked, node.said = function.get("arguments"), results[wanted["id"]]
                    yield place, node
                    break


def _wanted(call: LLMCall) -> list[Mapping[str, Any]]:
    try:
        wanted = (call.response or {})["choices"][0]["message"].get("tool_calls") or []
    except (KeyError, IndexError, TypeError, AttributeError):
        return []
    return [one for one in wanted[:100] if isinstance(one, Mapping)]


def _results(call: LLMCall) -> dict[Json, Json]:
    messages = [m for m in call.request.get("messages") or () if isinstance(m, Mapping) and m.get("role") == "tool"]
    return {message.get("tool_call_id"): message.get("content") for message in messages}


def _is_same_tool(tool: Node, node: Node) -> bool:
    """Whether the framework tells of the tool itself."""
    if node.kind != "tool" or node.span is None:
        return False
    names = [node.name, *(node.span.attributes.get(name) for name in _TOOL_NAMES)]
    within = node.start < tool.end + _SLACK_S and tool.start < node.end + _SLACK_S
    return within and any(tool.name in str(name) for name in names if name)


def _parent_of(node: Node, root: Node) -> Node:
    return next((above for _, above in root.walk() if node in above.children), root)


def _by_agent(nodes: Sequence[Node]) -> Iterator[Node]:
    """Calls in a row of one agent, and the tools between, under a node with its name."""
    turn: Node | None = None
    for node in nodes:
        agent = (node.call.agent or UNNAMED) if node.call is not None else turn.name if turn is not None else ""
        if node.span is not None or not agent:
            turn = None
            yield node
        elif turn is None or agent != turn.name:
            turn = Node("agent", agent, node.start, node.duration_s, children=[node])
            yield turn
        else:
            turn.children.append(node)
            turn.duration_s = max(turn.end, node.end) - turn.start
