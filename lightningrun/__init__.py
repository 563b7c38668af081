"""lightningrun: one YAML recipe turns an agent, a dataset and a reward into a better agent, and keeps the proof.

import lightningrun
run = lightningrun.load("recipes/sql_agent.yaml", ["stages.apo.budget.max_rollouts=200"]).run()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightningrun.runner import Experiment as Experiment
    from lightningrun.runner import load as load
    from lightningrun.types import Reward as Reward

__version__ = "0.1.0"
__all__ = ["Experiment", "Reward", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: `lightningrun --help` must not pay for what it does not need."""
    if name == "Reward":
        from lightningrun.types import Reward

        return Reward
    if name in ("Experiment", "load"):
        from lightningrun import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'lightningrun' has no attribute {name!r}")
