"""Did you mean: the nearest of the names that would have been right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The name in ``known`` most like ``name``, or an empty string if none is near."""
    names = list(known)
    by_lower = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower()[:200], list(by_lower), 1, 0.6)
    return by_lower[close[0]] if close else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that suggests the nearest name; where none is near and there are few, all of them."""
    names = [str(candidate) for candidate in known]
    near = nearest(name, names)
    if near:
        return f"did you mean '{near}'?"
    return f"there is {', '.join(names)}" if 0 < len(names) <= 8 else ""
