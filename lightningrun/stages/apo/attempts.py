"""One proposal on its way from the coach to a verdict, and the failures that it is written from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.coach import Proposal
from lightningrun.stages.apo.config import ReflectionConfig
from lightningrun.types import Rollout, Task


@dataclass(slots=True)
class Attempt:
    """One proposal. ``index`` counts from 1 and is the id of the candidate that comes of it."""

    index: int
    parent: Candidate
    components: list[str]
    batch: list[Task]
    rng: random.Random
    texts: Mapping[str, str] = field(default_factory=dict)
    """The components as last written."""
    written: bool = False
    """Whether any round gave a usable text."""
    answers: list[Proposal] = field(default_factory=list)
    way: str = "rewrite"
    """How it was written: rewrite, edits or merge."""
    notes: tuple[str, ...] = ()
    """What else is to be said of it."""
    child: Candidate | None = None
    verdict: str = "invalid"
    reason: str = ""
    acceptance: dict[str, float] = field(default_factory=dict)

    @property
    def candidate(self) -> Candidate:
        """The child, or what it would have been: a refused text is shown too."""
        if self.child is not None:
            return self.child
        refused = self.answers[-1].texts if self.answers and not self.written else {}
        return Candidate(self.index, {**self.parent.prompts, **self.texts, **refused}, (self.parent.id,))


def failures(known: Sequence[Rollout], top: float) -> list[Rollout]:
    """The scored rollouts that could have scored better; ``top`` is the best score there is."""
    return [one for one in known if one.status.scored and one.score is not None and one.score < top - 1e-9]


def choose_failures(pool: Sequence[Rollout], top: float, config: ReflectionConfig, rng: random.Random) -> list[Rollout]:
    """Those to show: drawn at random, the worse the likelier, different feedbacks before repeated ones."""
    luck = {one.key: rng.random() ** (1 / max(1e-6, top - (one.score or 0.0))) for one in pool}
    drawn = sorted(pool, key=lambda one: luck[one.key], reverse=True)
    if config.dedupe_by == "feedback":
        firsts = {one.feedback: one.key for one in reversed(drawn)}
        drawn.sort(key=lambda one: firsts[one.feedback] != one.key)
    return drawn[: config.batch]


def in_shares(shown: Sequence[Rollout], batch: int, rounds: int) -> list[list[Rollout]]:
    """Cut into at most ``rounds`` shares of ``batch / rounds``: few failures make fewer shares, not smaller ones."""
    size = -(-batch // rounds)
    return [list(shown[start : start + size]) for start in range(0, len(shown), size)]
