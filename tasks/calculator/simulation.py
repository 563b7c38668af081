"""A stand-in for a model, so that the recipe runs with no key, no cost and no network.

THIS IS A SIMULATION: figures measured with it say nothing of language models. It sees the chat request and nothing
else. It recognises the wordings of ``stories.py``, works one step a turn with the calculator if it is offered one, and
now and then slips: a step with the wrong operation, or an answer by heart. A pure function of the request.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any

from tasks.calculator.agent import tool_call
from tasks.calculator.arithmetic import CalculatorError
from tasks.calculator.stories import STORIES, worked

_SLIP = 0.04
_BY_HEART = 0.03
_WRONG = {"+": "-", "-": "+", "*": "+", "/": "*"}


def student(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a chat-completions request: a call of the calculator, or the number."""
    messages = request.get("messages", [])
    question = next((str(m.get("content") or "") for m in messages if m.get("role") == "user"), "")
    seen = [str(m.get("content") or "") for m in messages if m.get("role") == "tool"]
    digest = hashlib.sha256(json.dumps([request.get("seed"), messages]).encode()).digest()
    rng = random.Random(digest)
    understood = _understand(question)
    if understood is None:
        return _completion({"role": "assistant", "content": "I do not understand the question."})
    steps, values = understood
    if not request.get("tools") or (not seen and rng.random() < _BY_HEART * len(steps)):
        return _completion({"role": "assistant", "content": _guess(steps, values, rng)})
    if len(seen) < len(steps):
        expression = steps[len(seen)].format(**values)
        for number, result in enumerate(seen, 1):
            expression = expression.replace(f"@{number}", result)
        if rng.random() < _SLIP:
            expression = re.sub(r" ([-+*/]) ", lambda found: f" {_WRONG[found[1]]} ", expression)
        call = tool_call(f"call_{len(seen) + 1}", expression)
        return _completion({"role": "assistant", "content": None, "tool_calls": [call]})
    return _completion({"role": "assistant", "content": seen[-1]})


def _understand(question: str) -> tuple[tuple[str, ...], dict[str, str]] | None:
    for story in STORIES:
        for wording in story.wordings:
            pattern = re.sub(r"\\\{([a-e])\\\}", r"(?P<\1>\\d+)", re.escape(wording)).replace(r"\{name\}", r"\w+")
            if found := re.fullmatch(pattern, question.strip()):
                return story.steps, found.groupdict()
    return None


def _guess(steps: tuple[str, ...], values: dict[str, str], rng: random.Random) -> str:
    """By heart: nearly right."""
    try:
        number = float(worked(steps, values)[1])
    except CalculatorError:
        return "0"
    return str(round(number) + rng.choice((-10, -2, -1, 1, 2, 10)))


def _completion(message: dict[str, Any]) -> dict[str, Any]:
    reason = "tool_calls" if message.get("tool_calls") else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "simulated", "object": "chat.completion", "created": 0, "model": "student", "choices": [choice]}
