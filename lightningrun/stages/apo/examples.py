"""Which good rollouts a prompt may show as examples, and how many of them fit."""

from __future__ import annotations

from collections.abc import Sequence

from lightningrun.stages.apo.candidates import Candidate
from lightningrun.stages.apo.demos import Demo, passing, with_demos
from lightningrun.stages.apo.guards import estimate_tokens
from lightningrun.stages.apo.search import Setting


def example_pools(setting: Setting, candidate: Candidate, least: int) -> dict[str, dict[str, Demo]]:
    """Prompt -> training row -> example, from what the candidate is known to do well on train.

    Each is short enough to be shown alone, and quotes no gold answer of another split. ``least``: so many are taken
    from graded rewards even if none reached the top.
    """
    config = setting.config
    good = passing(setting.evaluation.of(candidate, config.train), setting.top, least)
    pools: dict[str, dict[str, Demo]] = {}
    for name in setting.optimize:
        shown = [demo for demo in (setting.demonstrate(one, name, candidate.prompts) for one in good) if demo]
        fit = [demo for demo in shown if fitting(setting, "", [demo])]
        allowed = [demo for demo in fit if not setting.guards.quoted_gold(demo.text, (config.train,))]
        pools[name] = {demo.task_id: demo for demo in allowed}
    return pools


def fitting(setting: Setting, text: str, demos: Sequence[Demo]) -> list[Demo]:
    """As many of the examples, from the first on, as fit into a prompt with ``text``."""
    kept = list(demos)
    while kept and estimate_tokens(with_demos(text, kept)) > setting.config.guards.max_prompt_tokens:
        kept.pop()
    return kept
