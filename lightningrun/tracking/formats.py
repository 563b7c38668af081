"""Numbers as people read them: short, with units."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def count(value: float) -> str:
    """12345 -> '12.3k'."""
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.1f}{unit}"
    return f"{value:,.0f}"


def usd(value: float | None) -> str:
    """Dollars to a sensible number of places; unknown prices say so."""
    if value is None:
        return "price unknown"
    return f"${value:.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def took(seconds: float) -> str:
    """As ``duration``, for what may be quick."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)


def number(value: Any, sign: str = "") -> str:
    """A metric: floats to three places, the rest as they are."""
    return f"{value:{sign}.3f}" if isinstance(value, float) else str(value)


def interval(low: Any, high: Any, sign: str = "") -> str:
    return f" [{number(low, sign)}, {number(high, sign)}]" if low is not None and high is not None else ""


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def merged(lines: Iterable[str]) -> list[str]:
    """``policy: x`` and ``coach: x`` as one line ``policy, coach: x``."""
    subjects: dict[str, list[str]] = {}
    for line in lines:
        subject, colon, text = line.partition(": ")
        subjects.setdefault(text if colon else line, []).extend([subject] if colon else [])
    return [f"{', '.join(names)}: {text}" if names else text for text, names in subjects.items()]


def spent(cost: Mapping[str, Mapping[str, Any]]) -> str:
    """A stage's or run's ``role -> {calls, prompt_tokens, completion_tokens, usd}`` in one phrase."""
    calls = total(cost, "calls")
    return f"{plural(int(calls), 'call')}, {usd(total(cost, 'usd'))}" if calls else "no calls"


def total(cost: Mapping[str, Mapping[str, Any]], part: str) -> float:
    """One part of a cost over all roles."""
    return sum(role.get(part) or 0 for role in cost.values())


def headline(metrics: Mapping[str, Any]) -> str:
    """The few metrics of a stage that matter in one line."""
    if "seed_val" in metrics and "best_val" in metrics:
        verdict = "promoted" if metrics.get("promoted") else "seed kept"
        return f"val {number(metrics['seed_val'])} → {number(metrics['best_val'])}, {verdict}"
    if "reward" in metrics:
        return f"reward {number(metrics['reward'])}{interval(metrics.get('reward_low'), metrics.get('reward_high'))}"
    shown = [f"{name} {number(value)}" for name, value in metrics.items() if isinstance(value, (int, float))]
    return ", ".join(shown[:3])


def unified_diff(before: str, after: str, old: str, new: str) -> str:
    """What changed in a text; ``old`` and ``new`` name the two."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), old, new, lineterm=""))


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """(kind, text) of each line of a unified diff: add | cut | at | same, and name for the text that changed."""
    kinds = {"+": "add", "-": "cut", "@": "at"}
    lines, found = diff.splitlines(), []
    for n, line in enumerate(lines):
        # A heading is two lines before the first hunk; alone they may be a text's own lines that begin with dashes.
        if _is_heading(lines[n : n + 3]):
            continue
        if n and _is_heading(lines[n - 1 : n + 2]):
            found.append(("name", line.removeprefix("+++ ")))
        else:
            found.append((kinds.get(line[:1], "same"), line))
    return found


def _is_heading(lines: list[str]) -> bool:
    return [line[:3] for line in lines] == ["---", "+++", "@@ "]
