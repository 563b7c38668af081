"""The ``lora`` option of the stages that train weights in this process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lightningrun.recipe.model import Config

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Config):
    """Train thin matrices beside the weights instead of the weights themselves; what is saved is merged."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0, description="The change is weighted by alpha / rank")
    targets: list[Target] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Which projections of every layer",
    )
