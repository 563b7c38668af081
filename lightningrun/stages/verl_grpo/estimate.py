"""verl's advantages of whatever is compared: of rollouts, or of single calls where each has a reward of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def padded(flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``flat``, cut into sequences of ``sizes``, as rows of one tensor; and where there are tokens."""
    counts = torch.tensor(sizes)
    mask = torch.arange(int(counts.max()))[None] < counts[:, None]
    return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat), mask


def estimated(
    estimator: Callable[..., Any], algo: Any, groups: Sequence[int], sizes: Sequence[int], earned: Sequence[float]
) -> Tensor:
    """What one of verl's estimators gives each token of sequences that earned ``earned`` at their ends.

    Flat, sequence after sequence; those of one group are compared. ``algo``: verl's configuration of the algorithm.
    """
    import numpy as np

    _, mask = padded(torch.zeros(sum(sizes)), sizes)
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(sizes)), torch.tensor(sizes) - 1] = torch.tensor(earned)
    options = {
        "index": np.array(groups),
        "norm_adv_by_std_in_grpo": algo.norm_adv_by_std_in_grpo,
        "config": algo,
    }
    takes = inspect.signature(estimator).parameters
    found, _ = estimator(
        token_level_rewards=rewards,
        response_mask=mask.float(),
        **{name: value for name, value in options.items() if name in takes},
    )
    flat: Tensor = found[mask]
    return flat


def by_call(estimator: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """``estimator`` for verl's trainer, with each run of tokens that the policy said as a sequence of its own.

    verl's trainer gives it whole trajectories, [sequences, tokens]; a call's reward is at its last token.
    """

    def of_calls(
        token_level_rewards: Tensor, response_mask: Tensor, config: Any, index: Sequence[Any], **_: Any
    ) -> tuple[Tensor, Tensor]:
        mask = response_mask.bool()
        numbers = {uid: number for number, uid in enumerate(dict.fromkeys(index))}
        groups, sizes, earned = [], [], []
        for row, said in enumerate(mask):
            edges = torch.nn.functional.pad(said.int(), (1, 1)).diff()
            begins, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
            for begin, end in zip(begins, ends, strict=True):
                groups.append(numbers[index[row]])
                sizes.append(end - begin)
                earned.append(float(token_level_rewards[row, begin:end].sum()))
        found = torch.zeros_like(token_level_rewards)
        found[mask] = estimated(estimator, config, groups, sizes, earned).to(found.dtype)
        return found, found

    return of_calls
