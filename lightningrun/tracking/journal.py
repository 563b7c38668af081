"""The run's journal: every event of a run, written first and shown, mirrored and replayed afterwards.

``emit`` appends one record to ``journal.jsonl`` and then tells the observers (terminal, ``--json``), which read the
same record. ``flash`` tells the observers only: progress that is worth a screen but not a disk.

A record is ``{"seq", "ts" (Unix seconds), "kind", "stage" (or null), ...}``; ``EVENTS`` lists the kinds and fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightningrun.files import Journal, read_journal

Observer = Callable[[dict[str, Any]], None]

EVENTS: dict[str, str] = {
    "run_started": "run, name, recipe_digest, seed, notes, stages (id -> type), argv, warnings",
    "run_resumed": "run, argv, changes",
    "run_finished": "status (succeeded|failed|interrupted), exit_code, error, metrics, duration_s",
    "stage_started": "type, ordinal, attempt, key, reason, inputs, forecast (rollouts, llm_calls by role, cost_usd)",
    "stage_reused": "type, ordinal, key, reason, inputs, metrics, outputs, cost",
    "stage_skipped": "type, ordinal, reason",
    "stage_finished": "status (succeeded|failed), metrics, outputs, cost (role: calls, tokens, usd), duration_s, error",
    "rollout": "rollout (types.Rollout as JSON)",
    "metric": "step, values (name -> number)",
    "candidate": "one step of a prompt search: id, step, parents (two for a merge), component (comma-joined), "
    "components, algorithm, way (rewrite|edits|merge|demos|beam; `kind` is the event's own), diff, prompts, coach, "
    "critique, acceptance (before, after, n), verdict (seed|accepted|rejected|invalid|duplicate, then "
    "promoted|not_promoted), reason, val (mean, n, scores by row), incumbent, spend (so far), prompt_tokens",
    "prompt": "name, text, digest, label (seed|best|candidate), promoted, metrics",
    "gate": "met, checks (list of name, value, bound, met)",
    "artifact": "name, path (relative to the run folder)",
    "log": "level (info|warning|error), message",
}
FLASHES: dict[str, str] = {
    "progress": "done, total, unit, reward, calls, tokens, cost_usd, eta_s",
    "note": "message: shown although it is kept as a log of level info",
}


SPANS = "spans.jsonl"
"""Beside the journal: what agents' frameworks told of rollouts; ``Rollout.span_ref`` says where."""


class RunJournal:
    """The append side of a run's journal. Used from one thread (the runner's event loop)."""

    def __init__(
        self,
        path: Path,
        observers: tuple[Observer, ...] = (),
        mask: Callable[[str], str] | None = None,
    ) -> None:
        self._journal = Journal(path, mask)
        self._mask = mask
        self._spans: Journal | None = None
        self._observers = observers
        self.damaged = self._journal.damaged
        self._seq = 1 + max((record["seq"] for _, record in read_journal(path)), default=-1)

    def observe(self, observer: Observer) -> None:
        """Tell ``observer`` of every event from now on."""
        self._observers = (*self._observers, observer)

    def emit(self, kind: str, *, stage: str | None = None, **fields: Any) -> dict[str, Any]:
        """Append one event and show it. Raises ``DiskFull`` if it could not be written; then nobody was told."""
        assert kind in EVENTS, kind
        record = {"seq": self._seq, "ts": round(time.time(), 4), "kind": kind, "stage": stage, **fields}
        self._journal.append(record)
        self._seq += 1
        self._tell(record)
        return record

    def flash(self, kind: str, *, stage: str | None = None, **fields: Any) -> None:
        """Show something that need not be kept."""
        assert kind in FLASHES, kind
        if self._observers:
            self._tell({"ts": time.time(), "kind": kind, "stage": stage, **fields})

    def keep_spans(self, record: dict[str, Any]) -> int:
        """Append one rollout's spans to their file and return their place in it. Raises ``DiskFull``."""
        if self._spans is None:
            self._spans = Journal(self._journal.path.with_name(SPANS), self._mask)
        return self._spans.append(record)

    def _tell(self, record: dict[str, Any]) -> None:
        for observer in self._observers:
            observer(record)

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event so far, from the file."""
        for _, record in read_journal(self._journal.path):
            yield record

    def sync(self) -> None:
        self._journal.sync()

    def close(self) -> None:
        self._journal.close()
        if self._spans is not None:
            self._spans.close()
