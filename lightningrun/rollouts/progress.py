"""What a stage's rollouts came to so far, shown at most ten times a second."""

from __future__ import annotations

import time

from lightningrun.tracking.journal import RunJournal
from lightningrun.types import Rollout, RolloutStatus

_SHOW_EVERY_S = 0.1


class Progress:
    """Counts of one stage; ``done`` includes what was answered from the journal, ``executed`` does not."""

    def __init__(self, stage: str, journal: RunJournal) -> None:
        self._stage = stage
        self._journal = journal
        self._started = time.monotonic()
        self._shown = 0.0
        self.expected = 0
        self.done = 0
        self.executed = 0
        self.by_status = dict.fromkeys(RolloutStatus, 0)
        self._scores = 0.0
        self._calls = 0
        self._tokens = 0
        self._cost_usd = 0.0

    def add(self, rollout: Rollout, executed: bool) -> None:
        self.done += 1
        self.executed += executed
        self.by_status[rollout.status] += 1
        self._scores += rollout.score or 0.0
        self._calls += rollout.llm_calls
        self._tokens += rollout.usage.total_tokens
        self._cost_usd += rollout.cost_usd
        self.show()

    def show(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < _SHOW_EVERY_S:
            return
        self._shown = now
        scored = sum(count for status, count in self.by_status.items() if status.scored)
        left = max(0, self.expected - self.done)
        self._journal.flash(
            "progress",
            stage=self._stage,
            done=self.done,
            total=max(self.expected, self.done),
            unit="rollouts",
            reward=self._scores / scored if scored else None,
            calls=self._calls,
            tokens=self._tokens,
            cost_usd=self._cost_usd,
            eta_s=(now - self._started) / self.executed * left if self.executed else None,
        )
