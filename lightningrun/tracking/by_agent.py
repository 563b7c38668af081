"""What each agent of several did, from the rollouts that it took part in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightningrun.tracking.rollout_tree import UNNAMED

TOLD = Mapping[str, Mapping[str, float]]
"""As ``Rollout.agents``."""


def by_agent(told: Iterable[TOLD]) -> dict[str, dict[str, float]]:
    """Agent -> ``calls``, ``tokens``, ``cost_usd``, ``errors``, and ``latency_s``, the mean of its calls.

    Empty where fewer than two agents made calls: then the totals say the same.
    """
    sums: dict[str, dict[str, float]] = {}
    for agents in told:
        for agent, did in agents.items():
            mine = sums.setdefault(agent or UNNAMED, {})
            for name, value in did.items():
                mine[name] = mine.get(name, 0) + value
    if len(sums) < 2:
        return {}
    return {
        agent: {
            **{name: did.get(name, 0) for name in ("calls", "tokens", "cost_usd", "errors")},
            "latency_s": did.get("seconds", 0.0) / max(1, did.get("calls", 0)),
        }
        for agent, did in sorted(sums.items())
    }
