"""Rollouts on their way to become traces: which ones do, in what order, and how they are stored in bulk."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.tracing.client import TracingClient

from lightningrun.files import read_record
from lightningrun.tracking import traces
from lightningrun.tracking.registry import Registry
from lightningrun.tracking.rollout_tree import read_tree
from lightningrun.types import Rollout, RolloutStatus

AT_ONCE = 50


class TraceQueue:
    """Holds places in the journal, not rollouts, so that a long queue is small."""

    def __init__(
        self, run_dir: Path, uri: str, experiment_id: str, registry: Registry, ask: Callable[..., Any]
    ) -> None:
        self.stored_before = 0
        """The event before which all traces are stored already."""
        self._run_dir = run_dir
        self._experiment_id = experiment_id
        self._registry = registry
        self._ask = ask
        self._client = TracingClient(uri)
        self._queue: deque[tuple[int, int, str]] = deque()
        self._groups: Counter[tuple[str, str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._queue)

    def oldest(self, told: int) -> int:
        """The event up to which all traces are stored, given that ``told`` events were heard."""
        return self._queue[0][0] if self._queue else told

    def wanted(self, type: str, stage: str, record: Mapping[str, Any], policy: Mapping[str, Any]) -> bool:
        """Whether a rollout becomes a trace: all of an evaluation do, else the first few of a step and the failures.

        Decided by the journal alone, so that a repeat decides the same. A step is what ran on one split with one set
        of prompts.
        """
        if type == "evaluate":
            return True
        group = (stage, record["key"].split("/")[0], record["split"])
        self._groups[group] += 1
        failed = record["status"] != RolloutStatus.SUCCEEDED.value or not record["score"]
        sampled = self._groups[group] <= int(policy.get("per_step", 8))
        return sampled or (failed and policy.get("failures", "all") == "all")

    def add(self, seq: int, offset: int, run_id: str) -> None:
        if seq >= self.stored_before:
            self._queue.append((seq, offset, run_id))

    def store(self) -> int:
        """Store some of the queue, and return how many: a write for each, and one for the spans of all."""
        batch = [self._queue[n] for n in range(min(AT_ONCE, len(self._queue)))]
        if not batch:
            return 0
        spans = []
        with open(self._run_dir / "journal.jsonl", "rb") as journal:
            events = [(read_record(journal.fileno(), offset), run_id) for _, offset, run_id in batch]
        for event, run_id in events:
            info, made = self._build(event, run_id)
            if self._ask(self._client.start_trace, info):
                spans += made
        self._ask(self._client.log_spans, self._experiment_id, spans)
        for _ in batch:
            self._queue.popleft()
        return len(batch)

    def _build(self, event: Mapping[str, Any], run_id: str) -> tuple[Any, list[Any]]:
        rollout = Rollout.from_json(event["rollout"])
        prompts = rollout.key.split("/")[0]
        tags = {
            "lightningrun.run_id": self._run_dir.name,
            "lightningrun.seq": str(event["seq"]),
            "lightningrun.stage": rollout.stage,
            "lightningrun.split": rollout.split,
            "lightningrun.task": rollout.task_id,
            "lightningrun.status": rollout.status.value,
            "lightningrun.prompts": prompts,
        }
        linked = self._registry.linked(prompts)
        if linked:
            tags["mlflow.linkedPrompts"] = json.dumps(linked)
        id = traces.trace_id(self._run_dir.name, event["seq"])
        root = read_tree(self._run_dir, rollout)
        return traces.build(rollout, root, id=id, experiment_id=self._experiment_id, run_id=run_id, tags=tags)
