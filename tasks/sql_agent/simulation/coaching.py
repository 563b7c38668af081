"""The simulated coach: finds the prompt and the failures in whatever it is sent, guesses at causes, rewrites.

It knows no optimiser's format. The prompt is the block (tag, fence or section) that is introduced as a prompt or as
instructions; the failures are the rest. It attends to three problems at most, is on a wrong track about one time in
five, and copies the prompt not quite faithfully.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.sql_agent.simulation.advice import CAUSES, FADS, OPENINGS, REGRETS, Cause

_WRONG_TRACK = 0.2
_VAGUE = 0.2
_LOSES_A_LINE = 0.04
_LOSES_A_PLACEHOLDER = 0.04
_FORGETS_THE_PROMPT = 0.01
_REPEATS_ITSELF = 0.35
_SEES_A_REGRET = 0.6
_ATTENTION = (2, 2, 3, 3, 3)
"""How many problems one reply deals with: one of these."""

_TAG = re.compile(r"<(?P<tag>[A-Za-z][\w-]*)(?P<more>[^<>\n]*)>\n?(?P<text>.*?)\n?</(?P=tag)>", re.DOTALL)
_FENCE = re.compile(r"^(?P<ticks>`{3,})[^\n]*\n(?P<text>.*?)\n?^(?P=ticks)`*\s*$", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(
    r"^(?P<head>[^\n]*\b(?:prompt|instructions?)\b[^\n]*):?\s*\n(?P<text>.+?)(?=^\s*(?:#+ |-{3,}|={3,}|[^\n]{0,40}"
    r"(?:failure|example|trace|feedback|critique)s?\b[^\n]*:?\s*$)|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_IS_PROMPT = re.compile(r"prompt|instruction", re.IGNORECASE)
_IS_CURRENT = re.compile(r"current|existing|original|present|baseline|provided|following|used", re.IGNORECASE)
_IS_EVIDENCE = re.compile(
    r"failure|example|trace|feedback|critique|question|inputs?|outputs?|answer|result", re.IGNORECASE
)
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
_SCHEMA = re.compile(r"create table.*?\n?\)", re.IGNORECASE | re.DOTALL)
_CASES = re.compile(
    r"(?im)^(?=\s*(?:<(?:failure|example|trace|case|run)\b|#+ *(?:example|failure|trace|case|run|sample)\b|-{3,}\s*$"
    r"|(?:failure|example|case|trace|run|sample)s? *#?\d+))"
)
_QUESTIONS = re.compile(r"(?im)^(?=[\W_]*(?:question|input|task)\b)")
_WANTS_PROMPT = re.compile(
    r"(?:new|revised|improved|updated|better|rewritten|edited|optimi[sz]ed) (?:\w+ ){0,2}(?:prompt|instruction)"
    r"|rewrite|\brevise\b",
    re.IGNORECASE,
)
_WANTS_CRITIQUE = re.compile(r"critique|critici[sz]e|analy[sz]e|diagnos|what (?:is|went) wrong", re.IGNORECASE)
_WANTS_TAG = re.compile(
    r"(?:inside|within|between|in) (?:the )?`?<([\w-]*(?:prompt|instruction)[\w-]*)>", re.IGNORECASE
)


@dataclass(frozen=True)
class Found:
    """A prompt found in a request."""

    text: str
    start: int
    end: int
    score: int


def reply(request: dict[str, Any]) -> str:
    """Answer a chat request with a critique, and with a whole new prompt in a fence if one was asked for."""
    text = "\n\n".join(_text(message) for message in request.get("messages", []))
    rng = _dice(request, text)
    prompt = find_prompt(text)
    if prompt is None:
        return "I cannot find a prompt in what you sent. Please show me the prompt and some runs that went wrong."
    rest = text[: prompt.start] + "\n" + text[prompt.end :]
    suspects = _pick(_suspects(_cases(rest, prompt.text)) or _named(rest), rng)
    critique = _critique(suspects, rng)
    asked = rest if len(rest) < 4000 else rest[:2000] + rest[-2000:]
    if _WANTS_CRITIQUE.search(asked) and not _WANTS_PROMPT.search(asked):
        return critique
    if rng.random() < _FORGETS_THE_PROMPT:
        return f"{critique}\n\nI would address these points in the next version of the prompt."
    revised = _revise(prompt.text, suspects, rest, rng)
    tag = _WANTS_TAG.search(asked)
    if tag:
        return f"{critique}\n\n<{tag[1]}>\n{revised}\n</{tag[1]}>"
    fence = "````" if "```" in revised else "```"
    return f"{critique}\n\n{fence}\n{revised}\n{fence}"


def find_prompt(text: str) -> Found | None:
    """The block most likely to be the current prompt, by how it is introduced and what it holds."""
    return max(_blocks(text), key=lambda found: (found.score, -found.start), default=None)


def _blocks(text: str) -> Iterator[Found]:
    for found in _TAG.finditer(text):
        yield from _judged(found, f"{found['tag']} {found['more']}", _before(text, found.start()))
    for found in _FENCE.finditer(text):
        yield from _judged(found, "", _before(text, found.start()))
    for found in _SECTION.finditer(text):
        yield from _judged(found, "", found["head"], strong=False)


def _judged(found: re.Match[str], name: str, introduction: str, strong: bool = True) -> Iterator[Found]:
    body = found["text"]
    score = 2 if strong else 0
    score += 4 * bool(_IS_PROMPT.search(name)) + 3 * bool(_IS_PROMPT.search(introduction))
    score += bool(_IS_CURRENT.search(name + introduction)) + 3 * bool(_PLACEHOLDER.search(body))
    score += bool(re.match(r"\s*(?:you are|you're|your task|answer|write)\b", body, re.IGNORECASE))
    score -= 6 * bool(_IS_EVIDENCE.search(name)) + 3 * bool(re.search(r"feedback", body, re.IGNORECASE))
    score -= 2 * bool(_IS_EVIDENCE.search(introduction) and not _IS_PROMPT.search(introduction))
    if score >= 4 and len(body.split()) >= 4:
        yield Found(body.strip("\n"), found.start("text"), found.end("text"), score)


def _before(text: str, position: int) -> str:
    """The line or two that introduce a block."""
    return "\n".join(text[max(0, position - 200) : position].strip().splitlines()[-2:])


def _cases(rest: str, prompt: str) -> list[str]:
    """The failures one by one, without what they repeat of the prompt."""
    repeated = {line.strip() for line in prompt.splitlines() if len(line.strip()) > 20}
    kept = [line for line in _SCHEMA.sub("", rest).splitlines() if line.strip() not in repeated]
    text = "\n".join(kept)
    cases = _CASES.split(text)
    if len(cases) < 3:
        cases = _QUESTIONS.split(text)
    return [case for case in cases[1:] if case.strip()]


def _suspects(cases: Sequence[str]) -> dict[str, float]:
    """Cause -> how much speaks for it."""
    weights: dict[str, float] = {}
    for case in cases:
        for cause in CAUSES:
            if cause.asked.search(case) and cause.seen.search(case):
                weight = 0.2 if cause.done.search(case) else 1.0
                weights[cause.name] = weights.get(cause.name, 0.0) + weight
    return weights


def _named(critique: str) -> dict[str, float]:
    """Causes that somebody else's critique names."""
    return {cause.name: 1.0 for cause in CAUSES if cause.known_by.search(critique)}


def _pick(weights: dict[str, float], rng: random.Random) -> list[Cause]:
    by_name = {cause.name: cause for cause in CAUSES}
    left = dict(weights)
    picked = []
    for _ in range(rng.choice(_ATTENTION)):
        if left:
            name = rng.choices(list(left), weights=list(left.values()))[0]
            del left[name]
            picked.append(by_name[name])
    return picked


def _critique(suspects: Sequence[Cause], rng: random.Random) -> str:
    if not suspects:
        return "The answers do not match what was asked, though I see no single cause."
    return "\n".join([rng.choice(OPENINGS), *(f"- {cause.critique}" for cause in suspects)])


def _revise(prompt: str, suspects: Sequence[Cause], rest: str, rng: random.Random) -> str:
    lines = [line for line in prompt.splitlines() if not _is_regretted(line, rest, rng)]
    if rng.random() < _LOSES_A_LINE:
        lost = [i for i, line in enumerate(lines) if line.strip() and not _PLACEHOLDER.search(line)]
        if len(lost) > 1:
            del lines[rng.choice(lost)]
    if rng.random() < _LOSES_A_PLACEHOLDER:
        lines = [_PLACEHOLDER.sub("(see the table's definition)", line) for line in lines]
    new = [remedy for cause in suspects for remedy in _remedy(cause, prompt, rng)]
    if not suspects:
        new = [rng.choice(FADS)]
    return "\n".join(_insert(lines, list(dict.fromkeys(new)), rng)).strip("\n")


def _is_regretted(line: str, rest: str, rng: random.Random) -> bool:
    suspect = any(words.search(line) and signs.search(rest) for words, signs in REGRETS)
    return suspect and not _PLACEHOLDER.search(line) and rng.random() < _SEES_A_REGRET


def _remedy(cause: Cause, prompt: str, rng: random.Random) -> list[str]:
    if rng.random() < _WRONG_TRACK:
        return [rng.choice(FADS) if rng.random() < 0.6 else rng.choice(rng.choice(CAUSES).remedies)]
    if cause.known_by.search(prompt) and rng.random() > _REPEATS_ITSELF:
        return []
    choice = cause.vague if rng.random() < _VAGUE else cause.remedies
    fresh = [remedy for remedy in choice if remedy not in prompt]
    return [rng.choice(fresh)] if fresh else []


def _insert(lines: list[str], new: list[str], rng: random.Random) -> list[str]:
    """New rules go after the last rule if there is a list, else before the closing paragraph."""
    added = [f"- {remedy}" for remedy in new]
    rules = [i for i, line in enumerate(lines) if re.match(r"\s*[-*] ", line)]
    if rules:
        return [*lines[: rules[-1] + 1], *added, *lines[rules[-1] + 1 :]]
    if not added:
        return lines
    heading = rng.choice(("Rules:", "Keep in mind:", "Guidelines:"))
    last = max((i for i, line in enumerate(lines) if not line.strip()), default=len(lines))
    return [*lines[:last], "", heading, *added, *lines[last:]]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def _dice(request: dict[str, Any], text: str) -> random.Random:
    digest = hashlib.sha256(json.dumps([request.get("seed"), text]).encode("utf-8", "replace")).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
