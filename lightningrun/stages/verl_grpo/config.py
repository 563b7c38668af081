"""Options of the ``verl_grpo`` stage, its plan-time checks and its forecast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lightningrun.recipe.model import Config, StageConfig
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.stages.lora import LoraConfig
from lightningrun.stages.verl_process.configuration import gpu_count
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe

AlgorithmName = Literal[
    "grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "reinforce_plus_plus",
    "reinforce_plus_plus_baseline", "opo", "gpg", "gae", "ppo",
]  # fmt: skip
"""verl's names of the advantage estimators that need no greedy twin of each rollout and no probabilities of every
token. ``gae``, also called ``ppo``, needs a critic."""
WITH_CRITIC = ("gae", "ppo")

ACTOR_FIELDS = (
    "clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "policy_loss", "loss_agg_mode",
    "loss_scale_factor", "entropy_coeff", "tau_pos", "tau_neg", "kl_loss_type", "ppo_epochs", "ppo_mini_batch_size",
)  # fmt: skip
"""Of verl's ``ActorConfig``: what decides the update here. The others say how a cluster is used."""
LOSS_FIELDS = ("loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef", "dro_beta")
"""Of verl's ``PolicyLossConfig``, under ``policy_loss``."""
ALGORITHM_FIELDS = ("gamma", "norm_adv_by_std_in_grpo")
"""Of verl's ``AlgoConfig``: what the advantage estimators above read."""


class KlConfig(Config):
    """Keep the policy near the weights it began with."""

    coef: float = Field(default=0.0, ge=0, description="Weight of the divergence in the loss; 0: not computed")


class SamplingConfig(Config):
    """How training rollouts are sampled, whatever agent and recipe say. Always from the whole distribution."""

    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int | None = Field(default=None, ge=1, description="Of one completion; null: as agent or recipe say")


class EvalConfig(Config):
    """Evaluations during training, sampled as the recipe says. The weights that do best here are the stage's result."""

    every: int = Field(
        default=10, ge=1, description="Steps from one to the next; also before the first, after the last"
    )
    split: str = "val"
    samples: int = Field(default=1, ge=1, description="Rollouts a row")


class GrpoConfig(StageConfig):
    """Reinforcement learning of the policy's weights with verl's advantages and losses, the agent as it is."""

    type: Literal["verl_grpo"] = "verl_grpo"
    backend: Literal["auto", "inproc", "ray"] = Field(
        default="auto",
        description="inproc: in this process, on a CPU or one GPU; ray: verl's own trainer; auto: ray where there is "
        "more than one GPU",
    )
    algorithm: AlgorithmName = Field(default="grpo", description="verl's name of the advantage estimator")
    split: str = Field(default="train", description="Whose rows are trained on")
    group_size: int = Field(default=8, ge=2, description="Rollouts of a row, compared with each other")
    batch: int = Field(default=32, ge=1, description="Rows a step")
    steps: int = Field(default=80, ge=1)
    lr: float = Field(default=6e-4, gt=0, description="Peak; 1e-6 suits large models that were trained before")
    warmup: int = Field(default=5, ge=0, description="Steps until the peak; then down in a line to a tenth of it")
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora: LoraConfig | None = Field(default=None, description="null: all weights are trained")
    kl: KlConfig = KlConfig()
    sampling: SamplingConfig = SamplingConfig()
    loss: Literal["per_rollout_mean", "token_mean"] = Field(
        default="per_rollout_mean", description="per_rollout_mean: a long rollout weighs as much as a short one"
    )
    aggregate: Literal["trajectory", "transition"] = Field(
        default="trajectory",
        description="trajectory: a rollout's calls are one sequence of the loss; transition: each call is one",
    )
    train_on: list[str] = Field(default=[], description="Agents whose calls are trained; empty: all")
    eval: EvalConfig = EvalConfig()
    resample: float = Field(
        default=1.0,
        ge=1,
        description="Rows whose rollouts all earned the same are replaced by fresh ones, up to so many times `batch`",
    )
    rest: int = Field(default=0, ge=0, description="Passes over the rows that one is left out of once all was right")
    verl: dict[str, Any] = Field(
        default={},
        description="Fields of verl's own configuration; inproc: {actor: {...}, algorithm: {...}}, ray: all of them",
    )
    save_every_s: float = Field(default=20.0, gt=0, description="How much work a kill may cost")
    watchdog_s: float = Field(
        default=900.0, gt=0, description="No rollout or update ended for so long: the stage fails"
    )

    def splits(self) -> tuple[tuple[str, str], ...]:
        return (("split", self.split), ("eval.split", self.eval.split))

    def extras(self) -> tuple[tuple[str, str, str], ...]:
        needed = ("verl", "torch", *(("ray", "transfer_queue") if self.backend == "ray" else ()))
        return tuple(("type", package, "train") for package in needed)

    @property
    def evaluations(self) -> int:
        return 1 + math.ceil(self.steps / self.eval.every)


def backend_of(config: GrpoConfig) -> Literal["inproc", "ray"]:
    """``auto``: verl's own trainer where there is more than one GPU."""
    if config.backend == "auto":
        return "ray" if gpu_count() > 1 else "inproc"
    return config.backend


def verl_problems(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a ``verl:`` block, by verl's own names."""
    known = {"actor": ACTOR_FIELDS, "algorithm": ALGORITHM_FIELDS}
    for part, fields in given.items():
        if part not in known or not isinstance(fields, Mapping):
            yield f"verl.{part}: takes 'actor' and 'algorithm', each with fields of verl's configuration"
            continue
        for name, value in fields.items():
            if name not in known[part]:
                yield f"verl.{part}.{name}: decides nothing on backend inproc; {did_you_mean(name, known[part])}"
            elif name == "policy_loss":
                yield from (
                    f"verl.actor.policy_loss.{inner}: decides nothing; {did_you_mean(inner, LOSS_FIELDS)}"
                    for inner in (value if isinstance(value, Mapping) else {str(value): None})
                    if inner not in LOSS_FIELDS
                )


def ray_problems(config: GrpoConfig) -> Iterator[str]:
    """What verl's own trainer does not do, or calls otherwise."""
    from lightningrun.stages.verl_grpo.cluster import settings

    if config.resample != 1.0 and config.verl.get("algorithm", {}).get("filter_groups"):
        yield "resample: verl.algorithm.filter_groups replaces such rows too: take one of the two"
    if config.lora is not None and config.algorithm in WITH_CRITIC and config.kl.coef:
        yield "kl.coef: verl 0.9.1 cannot do that with adapters and a critic together"
    if config.lora is not None and config.lora.alpha % 1:
        yield "lora.alpha: verl takes whole numbers"
    if config.loss == "per_rollout_mean" and config.verl.get("algorithm", {}).get("rollout_correction"):
        yield "verl.algorithm.rollout_correction: goes with loss: token_mean only; both weigh tokens"
    often = config.verl.get("trainer", {}).get("save_freq", config.eval.every)
    if not isinstance(often, int) or often < 1 or config.eval.every % often:
        yield f"verl.trainer.save_freq: must divide eval.every ({config.eval.every}): weights that do best are kept"
    yield from settings.verl_problems(config.verl)


def forecast(config: GrpoConfig, recipe: Recipe, rows: Mapping[str, int]) -> Forecast:
    """At most: all groups resampled as often as allowed; the evaluations, and one look at what greedy answers give."""
    errors: list[str] = []
    warnings: list[str] = []
    role = recipe.models.get(config.policy)
    backend = backend_of(config)
    if role is not None and role.provider != "local" and (role.provider != "vllm" or role.base_url):
        errors.append(
            f"policy: models.{config.policy} is of provider {role.provider}, whose weights cannot be trained here: "
            "name a role of provider local, or of vllm without a base_url"
        )
    elif role is not None and role.provider == "vllm" and backend == "inproc":
        errors.append(f"backend: inproc trains what provider local serves; for models.{config.policy} take ray")
    have = rows.get(config.split, 0)
    if not have:
        errors.append(f"split: the task has no split {config.split!r}")
    elif have < config.batch:
        errors.append(f"batch: {config.batch} rows a step, and {config.split!r} has {have}")
    if not rows.get(config.eval.split):
        errors.append(f"eval.split: the task has no split {config.eval.split!r}")
    elif config.eval.split == config.split:
        warnings.append("eval.split is the split that is trained on: the best checkpoint is chosen by what it has seen")
    errors += verl_problems(config.verl) if backend == "inproc" else ray_problems(config)
    if backend == "inproc" and config.algorithm in WITH_CRITIC:
        errors.append(f"algorithm: {config.algorithm} has a critic, which backend inproc has not: take backend: ray")
    trained = math.ceil(config.steps * config.batch * config.resample) * config.group_size
    judged = config.evaluations * rows.get(config.eval.split, 0) * config.eval.samples
    count = trained + judged + config.batch
    calls = {config.policy: count, **({"judge": count} if "judge" in recipe.models else {})}
    return Forecast(count, calls, tuple(warnings), tuple(errors))


SPEC = StageSpec(
    type="verl_grpo",
    version=1,
    summary="reinforcement learning of the policy's weights, with verl",
    config=GrpoConfig,
    consumes={"prompts": ArtifactKind.PROMPTS, "model": ArtifactKind.MODEL},
    produces={"model": ArtifactKind.MODEL, "rollouts": ArtifactKind.ROLLOUTS, "metrics": ArtifactKind.METRICS},
    entry="lightningrun.stages.verl_grpo.stage:run",
    forecast=forecast,
)
