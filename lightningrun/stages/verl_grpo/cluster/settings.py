"""The stage's options as verl's own configuration, and the check of a recipe's ``verl:`` block against it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.stages.verl_grpo.cluster.plugin import BY_CALL, LOSS, ROLLOUT
from lightningrun.stages.verl_process.configuration import (
    CPU_ENGINE,
    CPU_MODEL,
    PADDED,
    TOKENS_A_PASS,
    Tree,
    merge,
    problems,
    tokens_of_context,
    verl_defaults,
)

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig
    from lightningrun.stages.verl_grpo.config import GrpoConfig

OURS = {
    "actor_rollout_ref.actor.grad_clip": "max_grad_norm",
    "actor_rollout_ref.actor.kl_loss_coef": "kl.coef",
    "actor_rollout_ref.actor.optim.clip_grad": "max_grad_norm",
    "actor_rollout_ref.actor.optim.lr": "lr",
    "actor_rollout_ref.actor.use_kl_loss": "kl.coef",
    "actor_rollout_ref.model.path": "models.<policy>.name",
    "actor_rollout_ref.rollout.n": "group_size",
    "actor_rollout_ref.rollout.temperature": "sampling.temperature",
    "actor_rollout_ref.rollout.val_kwargs": "eval",
    "algorithm.adv_estimator": "algorithm",
    "data.train_batch_size": "batch",
    "trainer.test_freq": "eval.every",
    "trainer.total_training_steps": "steps",
}
"""What has an option of the stage: path in verl's configuration -> that option."""
FIXED = (
    "actor_rollout_ref.model.external_lib", "actor_rollout_ref.rollout.agent.agent_loop_config_path",
    "actor_rollout_ref.rollout.agent.default_agent_loop", "data.train_files", "data.val_files",
    "ray_kwargs.ray_init._node_ip_address", "ray_kwargs.ray_init._temp_dir", "ray_kwargs.ray_init.address",
    "trainer.default_local_dir", "trainer.logger",
    "trainer.resume_mode", "trainer.resume_from_path", "trainer.use_v1", "trainer.val_before_train",
    "trainer.total_epochs", "trainer.nnodes",
)  # fmt: skip
"""What is decided by how the stage runs verl."""


def verl_problems(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a ``verl:`` block: keys that verl has not, and what the stage itself decides."""
    yield from problems(given, verl_defaults("_generated_ppo_trainer"), OURS, FIXED)


def configuration(config: GrpoConfig, role: ModelConfig, base: Path, gpus: int, by_call: bool = False) -> Tree:
    """All that the stage says to verl, but where things lie. ``gpus`` is 0 on a machine without; ``by_call``: single
    calls have rewards of their own. A critic judges each token anyway."""
    estimator = "gae" if config.algorithm == "ppo" else config.algorithm
    context = tokens_of_context(role, base)
    longest = min(config.sampling.max_tokens or role.max_tokens or context // 2, context - 1)
    weighed = config.loss == "per_rollout_mean"
    optimizer = {
        "lr": config.lr, "lr_warmup_steps": config.warmup, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.1,
        "weight_decay": 0.0, "betas": [0.9, 0.98], "clip_grad": config.max_grad_norm,
    }  # fmt: skip
    tree: Tree = {
        "algorithm": {"adv_estimator": BY_CALL + estimator if by_call and estimator != "gae" else estimator},
        "data": {
            "train_batch_size": config.batch, "max_prompt_length": context - longest, "max_response_length": longest,
            "dataloader_num_workers": 0, "shuffle": False, "validation_shuffle": False,
            "filter_overlong_prompts": False,
        },
        "actor_rollout_ref": {
            "model": {"path": str(base)},
            "actor": {
                "strategy": "fsdp2", "optim": optimizer, "grad_clip": config.max_grad_norm,
                "ppo_mini_batch_size": config.batch, "use_dynamic_bsz": True,
                "ppo_max_token_len_per_gpu": max(TOKENS_A_PASS, context),
                "loss_agg_mode": "seq-mean-token-mean" if weighed else "token-mean",
                "policy_loss": {"loss_mode": LOSS if weighed else "vanilla"},
                "use_kl_loss": config.kl.coef > 0, "kl_loss_coef": config.kl.coef,
                "checkpoint": {"save_contents": ["model", "optimizer", "extra", "hf_model"]},
            },
            "rollout": {
                "name": "vllm" if gpus else ROLLOUT, "mode": "async", "n": config.group_size,
                "temperature": config.sampling.temperature, "max_model_len": context,
                "tensor_model_parallel_size": 1, "calculate_log_probs": True,
                "agent": {"num_workers": 2 if gpus else 1, "default_agent_loop": "lightningrun"},
                "val_kwargs": {"n": config.eval.samples},
            },
        },
        "reward": {"num_workers": 0},
        "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 2 if gpus else 1}}},
        "trainer": {
            "n_gpus_per_node": max(1, gpus), "nnodes": 1, "device": "cuda" if gpus else "cpu",
            "total_training_steps": config.steps, "total_epochs": 1, "val_before_train": True,
            "test_freq": config.eval.every, "save_freq": config.eval.every, "max_actor_ckpt_to_keep": 2,
            "max_critic_ckpt_to_keep": 2, "resume_mode": "auto", "logger": ["file"], "project_name": "lightningrun",
            "experiment_name": "verl_grpo",
        },
    }  # fmt: skip
    if not config.verl.get("algorithm", {}).get("filter_groups"):  # only verl's own buffer replaces groups
        sampler = {"path": "pkg://lightningrun.stages.verl_grpo.cluster.sampler", "name": "QuickReplayBuffer"}
        tree["trainer"]["v1"] = {"sampler": {"custom_sampler": sampler}}
    if estimator == "gae":
        tree["critic"] = {
            "strategy": "fsdp2", "model": {"path": str(base)}, "optim": optimizer, "grad_clip": config.max_grad_norm,
            "use_dynamic_bsz": True, "ppo_max_token_len_per_gpu": max(TOKENS_A_PASS, context),
        }  # fmt: skip
    if config.lora is not None:
        model = {
            "lora_rank": config.lora.rank,
            "lora_alpha": int(config.lora.alpha),
            "target_modules": config.lora.targets,
        }
        tree["actor_rollout_ref"]["model"] |= model
    if not gpus:
        merge(tree, _on_the_cpu(estimator == "gae"))
    elif importlib.util.find_spec("flash_attn") is None:
        for part in ("actor_rollout_ref", "critic") if estimator == "gae" else ("actor_rollout_ref",):
            merge(tree[part]["model"], PADDED)
    merge(tree, config.verl)
    return tree


def _on_the_cpu(critic: bool) -> Tree:
    """No compiler, no flash attention, no bfloat16."""
    actor = {"fsdp_config": CPU_ENGINE, "use_torch_compile": False}
    tree: Tree = {
        "actor_rollout_ref": {
            "model": {**CPU_MODEL, "lora": {"merge": True}},
            "actor": actor,
            "ref": actor,
            "rollout": {"free_cache_engine": False, "dtype": "float32"},
        },
        "ray_kwargs": {
            "ray_init": {"num_cpus": 8, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 256 << 20}
        },
    }
    return {**tree, "critic": {"model": CPU_MODEL, "fsdp": CPU_ENGINE}} if critic else tree
