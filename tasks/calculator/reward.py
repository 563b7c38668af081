"""The reward: is the number in the answer exactly the right one? How it was found does not matter."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-\u2212]?[0-9][0-9,]*(?:\.[0-9]+)?(?!\w)")
_LAST_CHARS = 500
_MAX_DIGITS = 30


def exact(task: dict[str, Any], output: Any) -> dict[str, Any]:
    """Score one answer: 1.0 if the last number in it equals the reference, else 0.0.

    Args:
        task: a row with ``answer``, the number as text.
        output: ``{"answer": ...}`` or the bare text. Thousands may be set off by commas; ``51.0`` is ``51``.
    """
    said = output.get("answer") if isinstance(output, dict) else output
    found = _NUMBER.findall(str(said if said is not None else "")[-_LAST_CHARS:])
    if not found:
        return _wrong("The answer holds no number. It must end with the result in plain digits.")
    text = found[-1].replace(",", "").replace("\u2212", "-")
    if len(text) > _MAX_DIGITS:
        return _wrong(f"The number in the answer has more than {_MAX_DIGITS} digits.")
    if Fraction(text) != Fraction(task["answer"]):
        return _wrong(f"Wrong number: answered {text}, expected {task['answer']}.")
    return {"score": 1.0, "feedback": "Correct."}


def _wrong(feedback: str) -> dict[str, Any]:
    return {"score": 0.0, "feedback": feedback}
