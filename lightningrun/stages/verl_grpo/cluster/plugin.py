"""What verl loads in each of its processes (entry point ``verl.plugins``). Does nothing unless ``DEVICE`` is set.

With a device: our rollout server, loss and estimators for single calls get their names in verl's registries; on ``cpu``
the platform too.
"""

from __future__ import annotations

import os

from lightningrun.stages.verl_process.configuration import DEVICE

ROLLOUT = "lightningrun"
"""The name of our rollout server: ``actor_rollout_ref.rollout.name``."""
LOSS = "per_rollout_mean"
"""The name of our policy loss: ``actor_rollout_ref.actor.policy_loss.loss_mode``."""
BY_CALL = "lightningrun_by_call_"
"""Begins the name under which verl's trainer finds one of its own estimators, applied to single calls."""
ESTIMATORS = (
    "grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "reinforce_plus_plus",
    "reinforce_plus_plus_baseline", "opo", "gpg",
)  # fmt: skip
"""verl's advantage estimators that compare by rewards alone, and so can compare single calls."""


def _register() -> None:
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, register_adv_est, register_policy_loss
    from verl.workers.rollout import base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from lightningrun.stages.verl_grpo.cluster.losses import per_rollout_mean
    from lightningrun.stages.verl_grpo.estimate import by_call

    def replica() -> type:
        from lightningrun.stages.verl_grpo.cluster.rollout import EngineReplica

        return EngineReplica

    for name in ESTIMATORS:
        register_adv_est(BY_CALL + name)(by_call(get_adv_estimator_fn(name)))  # type: ignore[no-untyped-call]
    register_policy_loss(LOSS)(per_rollout_mean)
    RolloutReplicaRegistry.register(ROLLOUT, replica)
    base._ROLLOUT_REGISTRY[ROLLOUT, "async"] = "lightningrun.stages.verl_grpo.cluster.rollout.EngineAdapter"


if os.environ.get(DEVICE) == "cpu":
    from lightningrun.stages.verl_process import cpu

    cpu.install()
if os.environ.get(DEVICE):
    _register()
