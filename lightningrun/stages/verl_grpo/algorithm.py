"""verl's own advantages and losses, on plain tensors: [sequences, tokens], padded.

Nothing of them is written anew here: estimators and policy losses are taken from verl's registries, aggregated and
penalised by verl's functions, as ``verl.workers.utils.losses.ppo_loss`` does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightningrun.errors import Missing, StageFailed, UsageError
from lightningrun.stages.verl_grpo.estimate import estimated, padded
from lightningrun.stages.verl_grpo.trajectories import Sample

if TYPE_CHECKING:
    from lightningrun.stages.verl_grpo.config import GrpoConfig

_AGGREGATION = {"per_rollout_mean": "seq-mean-token-mean", "token_mean": "token-mean"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss is made of, one number for each token that the policy said, sequence after sequence."""

    sizes: Sequence[int]
    """Tokens of each sequence of the loss."""
    advantages: Tensor
    old: Tensor
    """Log-probabilities under the weights that sampled."""
    start: Tensor | None = None
    """Log-probabilities under the weights of the stage's beginning, if the loss holds the policy near them."""


class Algorithm:
    """verl's configuration and functions for a stage. Loading verl takes some ten seconds of processor time."""

    def __init__(self, config: GrpoConfig) -> None:
        """Raises Missing, UsageError if verl does not take a value."""
        os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")
        try:
            from verl.trainer.config import AlgoConfig
            from verl.trainer.ppo import core_algos
            from verl.workers.config import FSDPActorConfig, PolicyLossConfig
        except ImportError as error:
            hint = "pip install 'lightningrun[train]'"
            raise Missing(f"verl cannot be imported: {error}", hint=hint) from error
        self._verl: Any = core_algos
        given = {part: dict(values) for part, values in config.verl.items()}
        actor = {
            "loss_agg_mode": _AGGREGATION[config.loss],
            "use_kl_loss": config.kl.coef > 0,
            "kl_loss_coef": config.kl.coef,
            "ppo_mini_batch_size": config.batch,
            **given.get("actor", {}),
        }
        if "clip_ratio" in actor:
            actor = {"clip_ratio_low": actor["clip_ratio"], "clip_ratio_high": actor["clip_ratio"], **actor}
        try:
            if "policy_loss" in actor:
                actor["policy_loss"] = PolicyLossConfig(**actor["policy_loss"])
            self.actor: Any = FSDPActorConfig(
                strategy="fsdp2", rollout_n=config.group_size, ppo_micro_batch_size_per_gpu=1, **actor
            )
            self._algo: Any = AlgoConfig(adv_estimator=config.algorithm, **given.get("algorithm", {}))
            self._estimator = self._verl.get_adv_estimator_fn(config.algorithm)
            self._policy_loss = self._verl.get_policy_loss_fn(self.actor.policy_loss.loss_mode)
        except (TypeError, ValueError, AssertionError) as error:
            raise UsageError(f"verl refuses this configuration: {error}", where="verl") from error
        self.one_update = self.actor.ppo_epochs == 1 and self.actor.ppo_mini_batch_size >= config.batch
        self.plain = not (self.one_update and config.kl.coef == 0 and not self.actor.entropy_coeff)
        """Whether the loss depends on more than the advantages: on how far the weights have moved, or on entropy."""

    def advantages(self, samples: Sequence[Sample]) -> Tensor:
        """verl's advantage of each token that was said, sample after sample. Raises StageFailed if one is no number.

        A rollout is one sequence with its reward at the last token. Where the reward function gave ``steps``, each
        call is one, with its own, and the calls of a row's rollouts are compared with each other.
        """
        rows = [(sample.group, sample.tokens, sample.reward) for sample in samples]
        if any(sample.by_call for sample in samples):
            rows = [
                (sample.group, len(turn.said), reward)
                for sample in samples
                for turn, reward in zip(sample.turns, sample.rewards, strict=True)
            ]
        groups, sizes, earned = (list(column) for column in zip(*rows, strict=True))
        flat = estimated(self._estimator, self._algo, groups, sizes, earned)
        if not torch.isfinite(flat).all():
            raise StageFailed(f"verl's {self._algo.adv_estimator} gave an advantage that is no number")
        return flat

    def loss(self, terms: Terms, logp: Tensor, entropy: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """verl's loss at ``logp`` (one number a token, as ``terms``), with gradient, and its metrics."""
        actor = self.actor
        rows, mask = padded(logp, terms.sizes)
        info = {
            "dp_size": 1,
            "batch_num_tokens": len(logp),
            "global_batch_size": len(terms.sizes),
            "loss_scale_factor": actor.loss_scale_factor,
        }
        actor.global_batch_info.update(info)
        loss, metrics = self._policy_loss(
            old_log_prob=padded(terms.old, terms.sizes)[0],
            log_prob=rows,
            advantages=padded(terms.advantages, terms.sizes)[0],
            response_mask=mask,
            loss_agg_mode=actor.loss_agg_mode,
            config=actor,
        )
        if entropy is not None and actor.entropy_coeff:
            table = padded(entropy, terms.sizes)[0]
            loss = loss - actor.entropy_coeff * self._verl.agg_loss(table, mask, actor.loss_agg_mode, **info)
        if terms.start is not None:
            apart = self.divergence(rows, padded(terms.start, terms.sizes)[0])
            loss = loss + actor.kl_loss_coef * self._verl.agg_loss(apart, mask, actor.loss_agg_mode, **info)
        return loss, {"clip_fraction": float(metrics.get("actor/pg_clipfrac", 0.0))}

    def divergence(self, logp: Tensor, start: Tensor) -> Tensor:
        """verl's estimate of the divergence, token by token."""
        found: Tensor = self._verl.kl_penalty(logp, start, self.actor.kl_loss_type)
        return found

    def slope(self, terms: Terms, logp: Tensor, entropy: Tensor | None = None) -> tuple[Tensor, Tensor | None, float]:
        """How the loss changes with each token's log-probability and entropy; and the share of clipped tokens."""
        leaf = logp.detach().requires_grad_()
        other = None if entropy is None else entropy.detach().requires_grad_()
        loss, metrics = self.loss(terms, leaf, other)
        inputs = [leaf] if other is None else [leaf, other]
        slopes = torch.autograd.grad(loss, inputs, allow_unused=True)
        return (
            torch.zeros_like(leaf) if slopes[0] is None else slopes[0],
            (slopes[1] if len(slopes) > 1 else None),
            metrics["clip_fraction"],
        )


def known_fields(of: type) -> frozenset[str]:
    """Names of the fields of one of verl's dataclasses."""
    return frozenset(field.name for field in fields(of))
