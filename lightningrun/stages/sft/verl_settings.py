"""``backend: verl``: the stage's options as the configuration of verl's own SFT trainer, and what that cannot do."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.stages.verl_process.configuration import (
    CPU_ENGINE,
    CPU_MODEL,
    PADDED,
    TOKENS_A_PASS,
    Tree,
    gpu_count,
    merge,
    problems,
    tokens_of_context,
    verl_defaults,
)

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig
    from lightningrun.stages.sft.config import SftConfig

TRAINER = "sft_trainer_engine"
"""The name of verl's configuration."""
_SAVES = 10
"""How often a training is saved, where the recipe does not say."""

OURS = {
    "data.max_length": "models.<policy>.context",
    "data.train_batch_size": "batch",
    "model.path": "models.<policy>.name",
    "optim.clip_grad": "max_grad_norm",
    "optim.lr": "lr",
    "optim.lr_warmup_steps": "warmup",
    "optim.total_training_steps": "steps",
    "optim.weight_decay": "weight_decay",
    "trainer.total_epochs": "epochs",
    "trainer.total_training_steps": "steps",
}
"""What has an option of the stage: path in verl's configuration -> that option."""
FIXED = (
    "checkpoint.load_contents", "checkpoint.save_contents", "data.apply_chat_template_kwargs", "data.custom_cls",
    "data.enable_thinking_default", "data.enable_thinking_key", "data.ignore_input_ids_mismatch", "data.messages_key",
    "data.pad_mode", "data.tools_key", "data.train_files", "data.train_max_samples", "data.truncation",
    "data.val_files", "data.val_max_samples", "model.external_lib", "trainer.default_hdfs_dir",
    "trainer.default_local_dir", "trainer.device", "trainer.logger", "trainer.max_ckpt_to_keep", "trainer.nnodes",
    "trainer.n_gpus_per_node", "trainer.resume_from_path", "trainer.resume_mode", "trainer.test_freq",
)  # fmt: skip
"""What is decided by how the stage runs verl: above all, which tokens it is given."""


def verl_problems(config: SftConfig) -> Iterator[str]:
    """What verl's trainer does not do, or calls otherwise."""
    if config.control_for:
        yield "control_for: goes by the processor time of updates in this process: take backend: embedded"
    if config.ema:
        yield "ema: verl's trainer keeps no average of its weights: take backend: embedded"
    if "save_every_s" in config.model_fields_set:
        yield "save_every_s: verl saves every so many updates: verl.trainer.save_freq"
    if config.lora is not None and config.lora.alpha % 1:
        yield "lora.alpha: verl takes whole numbers"
    gpus = gpu_count()
    if gpus > 1 and config.batch % gpus:
        yield f"batch: {config.batch} cannot be shared out to {gpus} GPUs"
    often = config.verl.get("trainer", {}).get("save_freq", 1)
    if not isinstance(often, int) or often < 1:
        yield "verl.trainer.save_freq: a number of updates"
    yield from problems(config.verl, verl_defaults(TRAINER), OURS, FIXED)


def save_every(config: SftConfig, steps: int) -> int:
    """Updates from one checkpoint, and evaluation, to the next."""
    return int(config.verl.get("trainer", {}).get("save_freq") or math.ceil(steps / _SAVES))


def configuration(config: SftConfig, role: ModelConfig, base: Path, gpus: int, batch: int, steps: int) -> Tree:
    """All that the stage says to verl, but where things lie. ``gpus`` is 0 on a machine without."""
    context = tokens_of_context(role, base)
    often = save_every(config, steps)
    tree: Tree = {
        "data": {
            "train_batch_size": batch, "max_length": context, "pad_mode": "no_padding", "num_workers": 0,
            "use_dynamic_bsz": True, "max_token_len_per_gpu": max(TOKENS_A_PASS, context),
            "custom_cls": {"path": "pkg://lightningrun.stages.sft.verl_dataset", "name": "Encoded"},
        },
        "model": {"path": str(base)},
        "engine": {"strategy": "fsdp2"},
        "optim": {
            "lr": config.lr, "lr_warmup_steps": config.warmup, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.1,
            "zero_indexed_step": False,  # else the first update has the rate 0
            "weight_decay": config.weight_decay, "betas": [0.9, 0.98], "clip_grad": config.max_grad_norm,
        },
        "checkpoint": {"save_contents": ["model", "optimizer", "extra", "hf_model"]},
        "trainer": {
            "total_training_steps": steps, "total_epochs": steps + 1, "save_freq": often,
            "test_freq": often if config.holdout else -1, "max_ckpt_to_keep": None, "resume_mode": "auto",
            "logger": ["file"], "project_name": "lightningrun", "experiment_name": "sft", "nnodes": 1,
            "n_gpus_per_node": max(1, gpus), "device": "cuda" if gpus else "cpu",
        },
    }  # fmt: skip
    if config.lora is not None:
        tree["model"] |= {
            "lora_rank": config.lora.rank,
            "lora_alpha": int(config.lora.alpha),
            "target_modules": config.lora.targets,
        }
    if not gpus:
        merge(tree, {"model": CPU_MODEL, "engine": CPU_ENGINE})
    elif importlib.util.find_spec("flash_attn") is None:
        merge(tree["model"], PADDED)
    merge(tree, config.verl)
    return tree
