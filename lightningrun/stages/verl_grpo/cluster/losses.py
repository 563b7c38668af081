"""A policy loss in which every rollout weighs the same, however many sequences and tokens it has.

verl's losses are means over tokens or over sequences; an agent whose history is rewritten makes several sequences of
one rollout. The agent loop gives each token the share 1/(tokens of its rollout) under the name that verl keeps for
importance weights, and verl's clipped loss, summed with them, is the mean over rollouts.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

SHARES = "rollout_is_weights"
"""Field of a sequence: what each of its tokens weighs. verl's name, which its losses multiply by."""


def per_rollout_mean(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's ``vanilla`` loss, [sequences, tokens], as the sum over rollouts of their mean, by verl's batch size.

    Sequences that verl adds to fill a batch bear the shares of another, longer one: cut off here, and masked.
    """
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    assert rollout_is_weights is not None, "the agent loop gives shares"
    shares = rollout_is_weights[:, : log_prob.shape[1]]
    mode = "seq-mean-token-sum"
    found: tuple[Tensor, dict[str, Any]] = get_policy_loss_fn("vanilla")(  # type: ignore[no-untyped-call]
        old_log_prob, log_prob, advantages, response_mask, mode, config, shares
    )
    return found
