"""Options of the ``sft`` stage, its plan-time checks and its forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lightningrun.recipe.model import Config, StageConfig
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.stages.lora import LoraConfig
from lightningrun.stages.sft import verl_settings
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe


class ScratchConfig(Config):
    """A small model made from nothing, its tokenizer trained on the demonstrations: nothing is downloaded."""

    family: Literal["llama", "qwen2"] = "llama"
    size: Literal["tiny", "small"] = Field(default="tiny", description="About 290 thousand or 5 million parameters")
    vocab_size: int = Field(default=640, ge=300, description="Tokens learned from the demonstrations")
    whole_words: str | None = Field(
        default=None,
        description="``module:function`` giving words that are a token each: a database's values",
    )
    instructions: bool = Field(
        default=True,
        description="false: its chat template leaves system messages and tools out. A small model for one task learns "
        "what they say from the demonstrations, and each of its calls is that much shorter",
    )


class SftConfig(StageConfig):
    """Supervised fine-tuning of the policy's weights: imitate demonstrations, loss on the assistant's tokens alone."""

    type: Literal["sft"] = "sft"
    backend: Literal["embedded", "verl"] = Field(
        default="embedded",
        description="embedded: in this process, on a CPU or one GPU; verl: verl's own trainer, on any GPUs or a CPU",
    )
    source: Literal["gold", "rollouts", "chat"] = Field(
        description="gold: a split's reference answers, asked for by the agent's own requests; rollouts: what earned "
        "its reward in an earlier stage (rejection sampling); chat: a JSONL file of {messages, tools}"
    )
    split: str = Field(default="train", description="For gold: whose rows")
    gold: str = Field(
        default="answer",
        description="For gold: the row's field that holds the answer, or ``module:function`` giving a row's assistant "
        "messages, one for each call that the agent makes",
    )
    min_reward: float = Field(default=1.0, description="The least that a demonstration must have earned")
    file: str | None = Field(default=None, description="For chat: the file")
    train_on: list[str] = Field(default=[], description="Agents whose calls are imitated; empty: all")
    rewrite: str | None = Field(
        default=None,
        description="``module:function`` of an answer's text, giving the text that is learned in its place: the query "
        "without a fence that comes and goes. What an answer is wrapped in by chance can only be memorised",
    )
    init: ScratchConfig | None = Field(default=None, description="null: the `model` input, or what the role serves")
    steps: int | None = Field(default=None, ge=1, description="Updates; null: `epochs` decides")
    epochs: float = Field(default=3.0, gt=0)
    batch: int = Field(default=32, ge=1, description="Demonstrations an update")
    lr: float = Field(default=4e-3, gt=0, description="Peak; 1e-5 suits weights that were trained before")
    warmup: int = Field(default=40, ge=0, description="Updates until the peak; then a cosine down to a tenth of it")
    weight_decay: float = Field(default=0.1, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="backend embedded: the stage's weights are the moving average of those after each update, with "
        "this decay (0.998: of the last 500 or so); 0: those after the last update. Small models swing less",
    )
    lora: LoraConfig | None = Field(default=None, description="null: all weights are trained")
    save_every_s: float = Field(default=20.0, gt=0, description="How much work a kill may cost")
    holdout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="backend verl: the share of demonstrations that is not learned. The weights with the least loss on "
        "it, at any checkpoint, are the stage's; 0: the last ones",
    )
    watchdog_s: float = Field(default=900.0, gt=0, description="backend verl: no sign of life for so long: it fails")
    verl: dict[str, Any] = Field(default={}, description="backend verl: fields of its trainer's own configuration")
    control_for: str | None = Field(
        default=None,
        description="A training stage: train for the processor time that it took, whatever `steps` and `epochs` say. "
        "What remains of its gain beside this is its own",
    )

    @model_validator(mode="after")
    def _fits_source(self) -> SftConfig:
        if (self.source == "chat") != (self.file is not None):
            raise ValueError("'file' is for source: chat, and that needs it")
        return self

    def uses(self, name: str) -> bool:
        return {"rollouts": self.source == "rollouts", "model": self.init is None}.get(name, True)

    def references(self) -> tuple[tuple[str, str], ...]:
        return (("control_for", self.control_for),) if self.control_for else ()

    def extras(self) -> tuple[tuple[str, str, str], ...]:
        return (("backend", "verl", "train"), ("backend", "torch", "train")) if self.backend == "verl" else ()

    def splits(self) -> tuple[tuple[str, str], ...]:
        return (("split", self.split),) if self.source == "gold" else ()


def forecast(config: SftConfig, recipe: Recipe, rows: Mapping[str, int]) -> Forecast:
    """A rollout for each gold row, none otherwise; nothing is asked of a model that costs."""
    errors: list[str] = []
    role = recipe.models.get(config.policy)
    if role is not None and (role.provider not in ("local", "vllm") or role.base_url):
        errors.append(
            f"policy: models.{config.policy} is of provider {role.provider}, whose weights cannot be trained here: "
            "name a role of provider local, or of vllm without a base_url"
        )
    if config.source == "gold" and not rows.get(config.split):
        errors.append(f"split: the task has no split {config.split!r}")
    other = recipe.stages.get(config.control_for or "")
    if other is not None and other.type not in ("verl_grpo", "sft"):
        errors.append(f"control_for: stage {config.control_for!r} is of type {other.type}: it trains nothing")
    if config.backend == "verl":
        errors += verl_settings.verl_problems(config)
    else:
        given = config.model_fields_set & {"holdout", "watchdog_s", "verl"}
        errors += [f"{name}: is for backend: verl" for name in sorted(given)]
    count = rows.get(config.split, 0) if config.source == "gold" else 0
    return Forecast(rollouts=count, errors=tuple(errors))


SPEC = StageSpec(
    type="sft",
    version=1,
    summary="fine-tune the policy's weights on demonstrations",
    config=SftConfig,
    consumes={"prompts": ArtifactKind.PROMPTS, "model": ArtifactKind.MODEL, "rollouts": ArtifactKind.ROLLOUTS},
    produces={"model": ArtifactKind.MODEL, "metrics": ArtifactKind.METRICS},
    entry="lightningrun.stages.sft.stage:run",
    forecast=forecast,
)
