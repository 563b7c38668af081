"""What a rollout's calls were, token by token: as sampled, never as text that is tokenised again.

A call goes on from an earlier one only where its prompt begins with exactly the tokens that the earlier call was asked
and answered with; otherwise it is a sequence of its own. So nothing is trained on that the policy did not say.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lightningrun.models.local.packing import Segment
from lightningrun.types import LLMCall

TREE_TOKENS = 2048
"""A prompt with many completions is cut into trees of about this size: attention costs length squared."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What stood before (of what is not said already) and what the policy said to it."""

    seen: tuple[int, ...]
    said: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of ``said``, when it was sampled."""
    reward: float | None = None
    """Of the call that said it, where the reward function gave ``steps``."""


Trajectory = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout as it is trained on. ``group`` is the place of its row in the batch."""

    group: int
    reward: float
    trajectories: tuple[Trajectory, ...]
    truncated: bool = False

    @property
    def turns(self) -> Iterator[Turn]:
        return (turn for trajectory in self.trajectories for turn in trajectory)

    @property
    def by_call(self) -> bool:
        """Whether its calls have rewards of their own."""
        return any(turn.reward is not None for turn in self.turns)

    @property
    def rewards(self) -> list[float]:
        """What each turn is trained by."""
        return [self.reward if turn.reward is None else turn.reward for turn in self.turns]

    @property
    def tokens(self) -> int:
        return sum(len(turn.said) for turn in self.turns)


def sample_of(
    calls: Sequence[LLMCall],
    policy: str,
    agents: Collection[str],
    group: int,
    reward: float,
    steps: Sequence[float] = (),
) -> Sample:
    """The rollout that made ``calls``, in their order. ``agents``: whose calls are trained on; empty: all.

    ``steps``: rewards of the single calls, if there are any.
    """
    own = {
        place: call
        for place, call in enumerate(calls)
        if call.sampled is not None and call.role == policy and (not agents or call.agent in agents)
    }
    rewards = [steps[place] for place in own] if len(steps) == len(calls) else None
    return Sample(group, reward, tuple(merged(own.values(), rewards)), any(_cut(call) for call in own.values()))


def merged(calls: Iterable[LLMCall], rewards: Iterable[float] | None = None) -> list[Trajectory]:
    """The calls as sequences, each as long as its prompts go on exactly. ``rewards``: one for each call."""
    done: list[tuple[list[int], list[Turn]]] = []
    for call, reward in zip(calls, itertools.repeat(None) if rewards is None else rewards, strict=False):
        assert call.sampled is not None
        prompt = list(call.sampled["prompt_ids"])
        choices = [choice for choice in call.sampled["choices"] if choice["ids"]]
        ids, turns = _earlier(prompt, done) if len(choices) == 1 else ([], [])
        for choice in choices:
            turn = Turn(tuple(prompt[len(ids) :]), tuple(choice["ids"]), tuple(choice["logprobs"]), reward)
            if turns:
                turns.append(turn)
                ids[:] = [*prompt, *choice["ids"]]
            else:
                done.append(([*prompt, *choice["ids"]], [turn]))
    return [tuple(turns) for _, turns in done]


def _earlier(prompt: Sequence[int], done: list[tuple[list[int], list[Turn]]]) -> tuple[list[int], list[Turn]]:
    """The longest sequence that ``prompt`` goes on from; empty if there is none."""
    fitting = [(ids, turns) for ids, turns in done if len(ids) < len(prompt) and prompt[: len(ids)] == ids]
    return max(fitting, key=lambda found: len(found[0]), default=([], []))


def _cut(call: LLMCall) -> bool:
    choices = (call.response or {}).get("choices") or ()
    return any(choice.get("finish_reason") == "length" for choice in choices)


def forest(trajectories: Iterable[Trajectory]) -> tuple[list[list[Segment]], list[list[tuple[int, int]]]]:
    """Trees in which whatever trajectories begin with alike stands once; and for each trajectory, for each turn, the
    tree and the segment of what was said."""
    trees: list[list[Segment]] = []
    sizes: list[int] = []
    nodes: dict[tuple[int, int | None, tuple[int, ...], bool], int] = {}
    newest: dict[tuple[int, ...], int] = {}
    places: list[list[tuple[int, int]]] = []

    def node(tree: int, parent: int | None, ids: tuple[int, ...], learn: bool) -> int:
        key = (tree, parent, ids, learn)
        if key not in nodes:
            nodes[key] = len(trees[tree])
            trees[tree].append(Segment(ids, parent, learn))
            sizes[tree] += len(ids)
        return nodes[key]

    for trajectory in trajectories:
        root = trajectory[0].seen
        tree = newest.get(root, -1)
        if tree < 0 or sizes[tree] + sum(len(turn.said) for turn in trajectory) > max(TREE_TOKENS, len(root)):
            tree = newest[root] = len(trees)
            trees.append([])
            sizes.append(0)
        parent: int | None = None
        path: list[tuple[int, int]] = []
        for turn in trajectory:
            if turn.seen or parent is None:
                parent = node(tree, parent, turn.seen, False)
            parent = node(tree, parent, turn.said, True)
            path.append((tree, parent))
        places.append(path)
    return trees, places
