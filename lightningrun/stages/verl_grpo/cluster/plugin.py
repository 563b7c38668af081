"""What verl loads in each of its processes (entry point ``verl.plugins``). Does nothing unless ``DEVICE`` is set.

With a device: our rollout server and our loss get their names in verl's registries; on ``cpu`` the platform too.
"""

from __future__ import annotations

import os

from lightningrun.stages.verl_process.configuration import DEVICE

ROLLOUT = "lightningrun"
"""The name of our rollout server: ``actor_rollout_ref.rollout.name``."""
LOSS = "per_rollout_mean"
"""The name of our policy loss: ``actor_rollout_ref.actor.policy_loss.loss_mode``."""


def _register() -> None:
    from verl.trainer.ppo.core_algos import register_policy_loss
    from verl.workers.rollout import base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from lightningrun.stages.verl_grpo.cluster.losses import per_rollout_mean

    def replica() -> type:
        from lightningrun.stages.verl_grpo.cluster.rollout import EngineReplica

        return EngineReplica

    register_policy_loss(LOSS)(per_rollout_mean)
    RolloutReplicaRegistry.register(ROLLOUT, replica)
    base._ROLLOUT_REGISTRY[ROLLOUT, "async"] = "lightningrun.stages.verl_grpo.cluster.rollout.EngineAdapter"


if os.environ.get(DEVICE) == "cpu":
    from lightningrun.stages.verl_process import cpu

    cpu.install()
if os.environ.get(DEVICE):
    _register()
