"""The simulated coach: it finds the prompts and the evidence in whatever it is asked, and answers as models do.

It is one and the same for all engines, and knows the form of none of them: a prompt is known by the markers that are
part of its text, evidence by the words of the grader. It attends to three pieces of evidence at most, misreads some,
sometimes has ideas of its own, and loses a little of the prompt whenever it writes it anew.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from itertools import pairwise

from worlds import PLACEHOLDER, World, section, sections

ATTENTION = 3
UNDERSTOOD, MISREAD = 0.7, 0.1
OWN_IDEA = 0.2
FORGOTTEN, PADDING, PLACEHOLDER_LOST = 0.04, 2, 0.05
ODD_KINDS = ("bare", "refusal", "empty", "afterword")

_EVIDENCE = re.compile(r"(missing step|bad habit): ((?:step|habit|only)_[a-z]{6})")
_ADVICE = re.compile(r"\b(add|drop) ((?:step|habit|only)_[a-z]{6})")
_NOT_YET = re.compile(r"\b(do not|don't|without|never|not)\b[^.\n]{0,20}\b(re)?writ\w+")
_WANTS_PROMPT = re.compile(
    r"\brevise the\b|\brewrit\w+|\bnew \w*\s?(prompts?|instructions?)\b|\b(improved|revised) (full )?prompt\b"
    r"|\bwrite (a|the) new\b|\bwhole new\b"
)


def reply(world: World, text: str, luck: object, odd: float = 0.0) -> str:
    """The coach's answer to a request. ``odd`` is the share of answers in an unexpected form."""
    rng = random.Random(f"coach|{world.name}|{luck}|{text}")
    lower = text.lower()
    current = _current(text)
    advice = _ADVICE.findall(lower)
    critique = (
        ". ".join(f"{verb} {token}" for verb, token in advice) if advice else _critique(world, lower, current, rng)
    )
    prose = f"What I would change: {critique or 'no idea'}."
    if not current or not _WANTS_PROMPT.search(_NOT_YET.sub("", lower)):
        return prose
    new = {name: _edited(world, name, body, critique, rng) for name, (body, _, _) in current.items()}
    if rng.random() < odd:
        return _odd(rng.choice(ODD_KINDS), prose, new)
    if "return only" in lower:
        return "\n".join(new.values())
    if len(new) == 1 or _joined(text, current):
        return f"{prose}\n\n```\n" + " ".join(new.values()) + "\n```"
    return prose + "".join(f"\n\n{name}\n```\n{prompt}\n```" for name, prompt in new.items())


def _current(text: str) -> dict[str, tuple[str, int, int]]:
    """Component -> (body, start, end) of the prompt as it stands: the first in the text that is not filled in yet."""
    found: dict[str, tuple[str, int, int]] = {}
    for name, body, start, end in sections(text):
        if name not in found or (PLACEHOLDER in body and PLACEHOLDER not in found[name][0]):
            found[name] = (body, start, end)
    return found


def _joined(text: str, current: Mapping[str, tuple[str, int, int]]) -> bool:
    """Whether the prompts stand together as one text."""
    spans = sorted((start, end) for _, start, end in current.values())
    return all(not text[a[1] : b[0]].strip() for a, b in pairwise(spans))


def _critique(world: World, text: str, current: Mapping[str, object], rng: random.Random) -> str:
    evidence = _EVIDENCE.findall(text)
    rng.shuffle(evidence)
    said: list[str] = []
    seen: set[str] = set()
    for kind, token in evidence:
        if token in seen or world.owner.get(token, "") not in (current or world.components):
            continue
        seen.add(token)
        if len(seen) > ATTENTION:
            break
        luck = rng.random()
        if luck < UNDERSTOOD:
            said.append(("drop " if kind == "bad habit" else "add ") + token)
        elif luck < UNDERSTOOD + MISREAD:
            said.append("add " + rng.choice(world.habits))
    if rng.random() < OWN_IDEA:
        said.append("add " + rng.choice(world.habits))
    return ". ".join(said)


def _edited(world: World, name: str, body: str, critique: str, rng: random.Random) -> str:
    """One prompt rewritten by the advice that concerns it."""
    advice = [(verb, token) for verb, token in _ADVICE.findall(critique) if world.owner.get(token) == name]
    dropped = {token for verb, token in advice if verb == "drop"}
    words = [word for word in body.split() if word not in dropped]
    words = [word for word in words if word not in world.owner or rng.random() >= FORGOTTEN]
    words += [token for token in dict.fromkeys(t for verb, t in advice if verb == "add") if token not in words]
    words += ["please"] * rng.randint(0, PADDING)
    if rng.random() < PLACEHOLDER_LOST:
        words = [word for word in words if word != PLACEHOLDER]
    return section(name, " ".join(words))


def _odd(kind: str, prose: str, new: Mapping[str, str]) -> str:
    """The same answer in a form that was not asked for."""
    prompts = "\n\n".join(new.values())
    if kind == "refusal":
        return "I'm sorry, but I can't help with that."
    if kind == "empty":
        return ""
    if kind == "afterword":
        return f"{prose}\n\n```\n{prompts}\n```\n\nI hope this helps. Let me know what else you need!"
    return f"Here is the new prompt:\n\n{prompts}"
