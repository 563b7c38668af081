"""What is asked of the engine: one execution of the agent on one task, with these prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from lightningrun.files import digest
from lightningrun.types import Task


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """``sample`` tells the repeats of one task apart. Equal keys are one rollout, executed once in a stage."""

    task: Task
    prompts: Mapping[str, str]
    sample: int = 0
    role: str = ""
    """Which model of the recipe answers the agent, where that is not the stage's policy."""
    model: str = ""
    """Tells apart what different models answer within a stage."""

    @property
    def key(self) -> str:
        key = f"{digest(dict(self.prompts))[:12]}/{self.task.split}/{self.task.id}/{self.sample}"
        return f"{key}/{self.model}" if self.model else key

    def seed(self, recipe_seed: int) -> int:
        """The agent's seed (31 bits): the same for every prompt, so that candidates meet the same luck."""
        text = f"{recipe_seed}\0{self.task.id}\0{self.sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
