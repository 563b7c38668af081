"""What a search writes to the journal: every candidate with its lineage, the curves, the prompts.

A resumed search runs again from its first step with the effects remembered. Events that the journal already holds for
the same work (the same key of the stage) are not written twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightningrun.files import digest
from lightningrun.stages.apo.attempts import Attempt
from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.coach import Proposal
from lightningrun.stages.apo.guards import estimate_tokens
from lightningrun.tracking.journal import RunJournal

_KINDS = ("candidate", "metric", "prompt", "log")
_WAYS = {"textual_gradient_beam": "beam", "bootstrap_fewshot": "demos"}
"""How an algorithm writes candidates, where a proposal does not say it itself."""
_DECIDED = "search_stopped_by_clock"


class SearchLog:
    """The journal as one search sees it."""

    def __init__(self, journal: RunJournal, stage: str, algorithm: str = "reflective") -> None:
        self._journal = journal
        self._algorithm = algorithm
        self._stage = stage
        self._written: set[str] = set()
        self._stopped_after: int | None = None
        key = None
        for event in journal.events():
            if event["stage"] != stage:
                continue
            if event["kind"] == "stage_started" and event.get("key") != key:
                key, self._written, self._stopped_after = event.get("key"), set(), None
            elif event["kind"] in _KINDS:
                self._written.add(_identity(event))
                self._stopped_after = event.get(_DECIDED, self._stopped_after)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event, unless an earlier attempt has written the same."""
        identity = _identity({"kind": kind, **fields})
        if identity not in self._written:
            self._written.add(identity)
            self._journal.emit(kind, stage=self._stage, **fields)

    def clock_stopped(self, proposals: int) -> None:
        """Remember that the clock ended the search after so many proposals: the one decision that is not a function
        of the seed and the replies."""
        message = f"budget.timeout_s reached after {proposals} proposals"
        self.emit("log", level="info", message=message, **{_DECIDED: proposals})

    def clock_has_stopped(self, proposals: int) -> bool:
        """Whether an earlier attempt was ended by the clock at this point."""
        return self._stopped_after is not None and proposals >= self._stopped_after

    def warn(self, message: str) -> None:
        self.emit("log", level="warning", message=message)

    def info(self, message: str) -> None:
        self.emit("log", level="info", message=message)

    def candidate(
        self,
        candidate: Candidate,
        parent: Candidate,
        components: Sequence[str],
        verdict: str,
        reason: str,
        incumbent: int,
        spend: Mapping[str, float],
        answers: Sequence[Proposal] = (),
        acceptance: Mapping[str, float] | None = None,
        way: str = "",
    ) -> None:
        """One ``candidate`` event: where it came from, what it changed, what became of it and what that took."""
        val = candidate.val
        self.emit(
            "candidate",
            id=candidate.id,
            step=candidate.id,
            parents=list(candidate.parents),
            component=", ".join(components),
            components=list(components),
            algorithm=self._algorithm,
            way=way,
            diff=unified_diff(parent.prompts, candidate.prompts),
            prompts=dict(candidate.prompts),
            coach=[ref for answer in answers for ref in answer.refs],
            critique="\n\n".join(answer.critique for answer in answers if answer.critique),
            acceptance=dict(acceptance) if acceptance else None,
            verdict=verdict,
            reason=reason,
            val=None if val is None else {"mean": candidate.val_mean, "n": len(val), "scores": val},
            incumbent=incumbent,
            spend=dict(spend),
            prompt_tokens=sum(estimate_tokens(text) for text in candidate.prompts.values()),
        )

    def attempt(self, attempt: Attempt, incumbent: int, spent: Mapping[str, float]) -> None:
        """One decided proposal, and its prompts if it was scored on val."""
        self.candidate(
            attempt.candidate,
            attempt.parent,
            attempt.components,
            attempt.verdict,
            "; ".join([attempt.reason, *attempt.notes]),
            incumbent,
            spent,
            attempt.answers,
            attempt.acceptance,
            _WAYS.get(self._algorithm, attempt.way),
        )
        if attempt.verdict == "accepted" and attempt.candidate.val:
            self.prompts(attempt.candidate, attempt.components, "candidate")

    def verdict(self, winner: Candidate, seed: Candidate, components: Sequence[str], promoted: bool, reason: str,
                spend: Mapping[str, float]) -> None:  # fmt: skip
        """The winner once more, with the confirmation's verdict and its whole difference from the seed."""
        word = "promoted" if promoted else "not_promoted"
        self.candidate(winner, seed, components, word, reason, winner.id if promoted else seed.id, spend)

    def prompts(self, candidate: Candidate, names: Iterable[str], label: str, promoted: bool = False) -> None:
        """One ``prompt`` event for each optimised prompt of a candidate."""
        metrics = {"val_reward": candidate.val_mean} if candidate.val else {}
        for name in names:
            text = candidate.prompts[name]
            self.emit("prompt", name=name, text=text, digest=digest(text), label=label, promoted=promoted,
                      metrics=metrics, candidate=candidate.id)  # fmt: skip


def unified_diff(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Unified diffs of the prompts that differ, one after the other."""
    parts: list[str] = []
    for name, text in after.items():
        old, new = before.get(name, "").splitlines(), text.splitlines()
        parts += difflib.unified_diff(old, new, f"{name} (parent)", f"{name} (candidate)", lineterm="")
    return "\n".join(parts)


def _identity(event: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in event.items() if key not in ("seq", "ts", "stage")})
