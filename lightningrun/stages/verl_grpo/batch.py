"""The rollouts of one step, by row, and what they say of the training's health."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lightningrun.errors import StageFailed
from lightningrun.stages.statistics import mean
from lightningrun.stages.verl_grpo.trajectories import Sample, sample_of
from lightningrun.types import LLMCall, Rollout, RolloutStatus, Task


@dataclass(slots=True)
class Group:
    """The rollouts of one row. Those that reward or infrastructure failed are left out of everything learned."""

    row: Task
    rollouts: Sequence[Rollout]

    @property
    def scores(self) -> list[float]:
        return [one.score for one in self.rollouts if one.status.scored and one.score is not None]

    @property
    def live(self) -> bool:
        scored = [one for one in self.rollouts if one.status.scored]
        return len(self.scores) > 1 and len({reward for one in scored for reward in one.steps or (one.score,)}) > 1

    def all_right(self, success: float) -> bool:
        return bool(self.scores) and min(self.scores) >= success

    def any_right(self, success: float) -> bool:
        return bool(self.scores) and max(self.scores) >= success


def preferred(groups: Sequence[Group], size: int) -> list[Group]:
    """The live groups, then those that can be compared at all, as many as are wanted. In the order of the rows: with
    live ones first, the later mini-batches of an update would have nothing to learn from.
    """
    ranks = [(len(group.scores) < 2, not group.live) for group in groups]
    taken = sorted(range(len(groups)), key=ranks.__getitem__)[:size]
    return [groups[place] for place in sorted(taken)]


@dataclass(slots=True)
class Batch:
    """``size`` groups are trained on; there are more where some were replaced."""

    size: int
    groups: list[Group] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Groups still wanted, so that all have variance."""
        return self.size - sum(group.live for group in self.groups)

    @property
    def ids(self) -> set[str]:
        return {group.row.id for group in self.groups}

    @property
    def chosen(self) -> list[Group]:
        """What is trained on: the loss is always a mean over as many, where there are as many."""
        return [group for group in preferred(self.groups, self.size) if len(group.scores) > 1]

    def samples(self, read: Callable[[int], LLMCall], policy: str, agents: Collection[str]) -> list[Sample]:
        """What is trained on. Raises StageFailed if the policy said none of it."""
        found: list[Sample] = []
        seen: set[str] = set()
        for place, group in enumerate(self.chosen):
            for rollout in group.rollouts:
                if rollout.status.scored and rollout.score is not None:
                    calls = [read(ref) for ref in rollout.call_refs]
                    seen |= {call.agent for call in calls}
                    found.append(sample_of(calls, policy, agents, place, rollout.score, rollout.steps))
        if found and not any(sample.tokens for sample in found):
            raise StageFailed(
                f"no call of {', '.join(agents) or policy} is among the rollouts: nothing can be trained",
                where="train_on",
                hint=f"the agents that called are {', '.join(sorted(filter(None, seen))) or 'without a name'}",
            )
        return found

    def health(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Of the rollouts alone; the update adds its own."""
        rollouts = [rollout for group in self.groups for rollout in group.rollouts]
        scores = [score for group in self.groups for score in group.scores]
        logprobs = [number for sample in samples for turn in sample.turns for number in turn.logprobs]
        count = max(1, len(rollouts))
        return {
            "reward": mean(scores) if scores else 0.0,
            "live": sum(group.live for group in self.groups) / max(1, len(self.groups)),
            "resampled": float(max(0, len(self.groups) - self.size)),
            "failed": sum(one.status is RolloutStatus.FAILED for one in rollouts) / count,
            "excluded": sum(not one.status.scored for one in rollouts) / count,
            "truncated": sum(sample.truncated for sample in samples) / max(1, len(samples)),
            "entropy": -mean(logprobs) if logprobs else 0.0,
            "tokens": float(sum(one.usage.completion_tokens for one in rollouts)),
            "calls": sum(one.llm_calls for one in rollouts) / count,
            **self.extra,
        }
