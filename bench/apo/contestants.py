"""Who takes part, with which settings: each engine at its defaults, and the best of a grid of five.

The grids are measured on development worlds as contestants of their own (``gepa:mb8-best``); ``TUNED`` is what was
found best, by the mean over families and budgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BUDGETS = (100, 250, 500, 1000)
CACHED = {"cache_evaluation": True}
"""GEPA is spared rollouts that it has had already, which its defaults leave off: in its favour."""

GRIDS: dict[str, dict[str, dict[str, Any]]] = {
    "ours": {
        "default": {},
        "pareto": {"parent": {"strategy": "pareto"}},
        "one-round": {"reflection": {"rounds": 1}},
        "batch-5": {"acceptance": {"batch": 5}},
        "batch-12": {"acceptance": {"batch": 12}},
    },
    "gepa": {
        "default": CACHED,
        "mb8-best": {**CACHED, "reflection_minibatch_size": 8, "candidate_selection_strategy": "current_best"},
        "mb8-best-all": {
            **CACHED,
            "reflection_minibatch_size": 8,
            "candidate_selection_strategy": "current_best",
            "module_selector": "all",
        },
        "mb8-merge": {**CACHED, "reflection_minibatch_size": 8, "use_merge": True},
        "mb5-greedy": {**CACHED, "reflection_minibatch_size": 5, "candidate_selection_strategy": "epsilon_greedy"},
    },
    "agentlightning": {
        "default": {},
        "gb8-beam1": {"gradient_batch_size": 8, "beam_width": 1, "branch_factor": 2},
        "gb8-beam2": {"gradient_batch_size": 8, "beam_width": 2, "branch_factor": 2},
        "gb4-beam2": {"beam_width": 2, "branch_factor": 2, "val_batch_size": 10},
        "gb8-beam2-val": {"gradient_batch_size": 8, "beam_width": 2, "branch_factor": 2, "val_batch_size": 40},
    },
}
TUNED = {"ours": "default", "gepa": "mb8-best-all", "agentlightning": "gb8-beam1"}


@dataclass(frozen=True)
class Contestant:
    """One engine with its settings."""

    name: str
    engine: str
    options: dict[str, Any]


def contestant(name: str) -> Contestant:
    """``ENGINE`` at its defaults, ``ENGINE-tuned``, or ``ENGINE:SETTING`` of its grid. Raises KeyError."""
    engine, _, setting = name.partition(":")
    if not setting:
        engine, _, tuned = name.partition("-")
        setting = TUNED[engine] if tuned else "default"
    return Contestant(name, engine, GRIDS[engine][setting])
