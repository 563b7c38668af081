"""Simulated worlds for prompt optimisers: a student with hidden rules, a grader, and the truth about any prompt.

A world is a function of (family, number). Its student does better the more of the hidden steps its prompt names; each
question needs a few of them. Harmful habits, overlong prompts and a lost ``{question}`` make it worse. What an engine
can learn is what a real one could: answers, scores, and the feedback of a grader who knows the question and sees the
answer, never the prompt. The truth, ``World.true``, is the expected score on 1,500 rows that no engine is given.

Families:

additive      each step helps where it is needed, and that is all
conflicting   two kinds of questions; steps for one kind hurt the other unless a qualifier stands in the prompt too
graded        the score is how good the answer is, in [0, 1], read by a noisy judge
null          the prompt to start from already names every step
pairs         steps come in pairs; half a pair is worse than none
two_prompts   two prompts, each with steps that work only there; a question needs steps of one or of both

Only the standard library is imported: contestants in other environments import this file too.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

FAMILIES = ("additive", "conflicting", "graded", "pairs", "two_prompts", "null")
DEVELOPMENT = range(100, 116)
"""World numbers that algorithms may be tuned on. All others are held out."""

TRAIN, VAL, TEST = 60, 40, 1500
STEPS = HABITS = 10
BEST = 0.92
"""The student's score at best: even with every step it is wrong sometimes."""
WITHOUT_STEP = 0.15
WITH_HABIT = 0.6
UNQUALIFIED = 0.5
HALF_A_PAIR, HALF_ELSEWHERE = 0.06, 0.8
FREE_WORDS, WORDS_SCALE = 24, 60
JUDGE_SIGMA = 0.2
EXPLAINED = 0.7
"""Share of imperfect answers for which the grader can say what was wrong."""

_TOKEN = re.compile(r"\b(?:step|habit|only)_[a-z]{6}\b")
_SECTION = re.compile(r"\[(\w+) begins\](.*?)\[\1 ends\]", re.DOTALL)
_ANSWER = re.compile(r"I used: (.*?)\. Draft \w+\. Result: (-?\d+)", re.DOTALL)
PLACEHOLDER = "{question}"


def draw(*parts: object) -> float:
    """A number in [0, 1) that is a function of its arguments."""
    data = "|".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") / 2**64


def sections(text: str) -> list[tuple[str, str, int, int]]:
    """(component, body, start, end) of every marked prompt in a text."""
    return [(found[1], found[2], found.start(), found.end()) for found in _SECTION.finditer(text)]


def section(component: str, body: str) -> str:
    """A whole prompt: its body between the markers by which student and coach know it."""
    return f"[{component} begins] {body.strip()} [{component} ends]"


@dataclass(frozen=True)
class Reading:
    """What the student takes from its prompts: the tokens that work, and what the length costs."""

    used: frozenset[str]
    factor: float


@dataclass
class World:
    """One world; ``make`` is the way to get it."""

    family: str
    number: int
    components: tuple[str, ...]
    owner: dict[str, str] = field(default_factory=dict)
    """Token -> the component in which it works."""
    steps: list[str] = field(default_factory=list)
    habits: list[str] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    seed_prompts: dict[str, str] = field(default_factory=dict)
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.family}-{self.number}"

    def read(self, prompts: Mapping[str, str]) -> Reading:
        """What the student takes from its prompts (as they are before the question is filled in)."""
        used: set[str] = set()
        factor = 1.0
        for component in self.components:
            text = prompts.get(component, "")
            if PLACEHOLDER not in text:
                return Reading(frozenset(), 0.0)
            part, words = self._read_one(component, text)
            used |= part
            factor *= math.exp(-max(0, words - FREE_WORDS) / WORDS_SCALE)
        return Reading(frozenset(used), factor)

    def _read_one(self, component: str, text: str) -> tuple[set[str], int]:
        tokens = {token for token in _TOKEN.findall(text) if self.owner.get(token) == component}
        return tokens, len(text.split()) - 4 * len(_SECTION.findall(text))

    def quality(self, reading: Reading, row: Mapping[str, Any]) -> float:
        """The expected score on one row."""
        value = BEST * reading.factor
        if not value:
            return 0.0
        used = reading.used
        if self.pairs:
            for pair in self.pairs:
                have = sum(token in used for token in pair)
                if pair[0] in row["need"]:
                    value *= (WITHOUT_STEP, HALF_A_PAIR, 1.0)[have]
                elif have == 1:
                    value *= HALF_ELSEWHERE
        else:
            for token in row["need"]:
                if token not in used:
                    value *= WITHOUT_STEP
        for token in row["hurt"]:
            if token in used:
                value *= WITH_HABIT
        for token in row["clash"]:
            if token in used and qualifier(token) not in used:
                value *= UNQUALIFIED
        return value

    def true(self, prompts: Mapping[str, str]) -> float:
        """The expected score of the prompts on the test rows."""
        reading = self.read(prompts)
        rows = self.splits["test"]
        return sum(self.quality(reading, row) for row in rows) / len(rows)

    def answer(self, reading: Reading, row: Mapping[str, Any], luck: object) -> str:
        """What the student says. ``luck`` tells draws of the same question apart."""
        quality = self.quality(reading, row)
        key = (self.name, ",".join(sorted(reading.used)), f"{reading.factor:.6f}", row["id"], luck)
        if self.family == "graded":
            off = round(1000 * (1 - quality))
        else:
            off = 0 if draw(*key, "right") < quality else 1 + int(998 * draw(*key, "off"))
        used = " ".join(sorted(reading.used)) or "nothing"
        return f"I used: {used}. Draft {int(2**40 * draw(*key, 'draft')):010x}. Result: {row['answer'] - off}"


def qualifier(step: str) -> str:
    """The token that keeps a step from hurting the other kind of questions."""
    return "only_" + step.partition("_")[2]


def grade(row: Mapping[str, Any], answer: str) -> tuple[float, str]:
    """(score, feedback) from the row and the answer alone, as a reward function sees them."""
    found = _ANSWER.search(answer or "")
    if not found:
        return 0.0, "no result"
    used = set(found[1].split())
    off = row["answer"] - int(found[2])
    if row["judge"] == "exact":
        score = float(off == 0)
    else:
        noise = random.Random(f"judge|{row['id']}|{answer}").gauss(0, JUDGE_SIGMA)
        score = round(min(1.0, max(0.0, 1 - off / 1000 + noise)), 2)
    if row["judge"] == "exact" and score:
        return score, "correct"
    flaws = list(_flaws(row, used))
    luck = draw("grader", row["id"], answer)
    if not flaws or draw("explain", row["id"], answer) >= EXPLAINED:
        return score, "not good enough" if row["judge"] != "exact" else "wrong"
    kind, token = flaws[int(luck * len(flaws))]
    where = f" ({row['owner'][token]})" if row["owner"] else ""
    return score, f"{'wrong' if row['judge'] == 'exact' else 'could be better'}; {kind}: {token}{where}"


def _flaws(row: Mapping[str, Any], used: set[str]) -> Iterable[tuple[str, str]]:
    for token in row["need"]:
        if token not in used:
            yield "missing step", token
    for token in row["hurt"]:
        if token in used:
            yield "bad habit", token
    for token in row["clash"]:
        if token in used and qualifier(token) not in used:
            yield "bad habit", token
            yield "missing step", qualifier(token)
    for pair in row["pairs"]:
        half = [token for token in pair if token in used]
        if len(half) == 1 and pair[0] not in row["need"]:
            yield "bad habit", half[0]


@lru_cache(maxsize=64)
def make(family: str, number: int, test_rows: int = TEST) -> World:
    """The world of a family and a number. Raises ValueError for an unknown family."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}: {', '.join(FAMILIES)}")
    rng = random.Random(f"{family}/{number}")
    components = ("planner", "solver") if family == "two_prompts" else ("system",)
    world = World(family, number, components)
    world.steps = [_token("step", rng) for _ in range(STEPS)]
    world.habits = [_token("habit", rng) for _ in range(HABITS)]
    for tokens in (world.steps, world.habits):
        world.owner.update({token: components[i % len(components)] for i, token in enumerate(tokens)})
    if family == "pairs":
        world.pairs = [world.steps[i : i + 2] for i in range(0, STEPS, 2)]
    clashing = [step for i, step in enumerate(world.steps) if i % 5 < 3] if family == "conflicting" else []
    world.owner.update({qualifier(step): components[0] for step in clashing})
    for split, count in (("train", TRAIN), ("val", VAL), ("test", test_rows)):
        world.splits[split] = [_row(world, clashing, f"{split}{i}", rng) for i in range(count)]
    for component in components:
        mine = [step for step in world.steps if world.owner[step] == component]
        known = mine if family == "null" else world.pairs[0] if world.pairs else mine[:1]
        if family == "two_prompts" and component == "solver":
            known = []
        world.seed_prompts[component] = section(component, " ".join([f"You are an agent. {PLACEHOLDER}", *known]))
    return world


def _token(kind: str, rng: random.Random) -> str:
    return f"{kind}_" + "".join(rng.choice("bcdfghjklmnpqrstvwxz") for _ in range(6))


def _row(world: World, clashing: list[str], name: str, rng: random.Random) -> dict[str, Any]:
    """One question: the steps it needs (early steps are needed more often), and what hurts it."""
    kind = rng.randrange(2)
    if world.pairs:
        units = world.pairs
        count = rng.choices([1, 2], [0.6, 0.4])[0]
    elif world.family == "conflicting":
        units = [[step] for i, step in enumerate(world.steps) if i % 2 == kind]
        count = rng.choices([1, 2, 3], [0.5, 0.35, 0.15])[0]
    else:
        units = [[step] for step in world.steps]
        count = rng.choices([1, 2, 3], [0.5, 0.35, 0.15])[0]
    weights = [(1 + i) ** -0.5 for i in range(len(units))]
    chosen: set[int] = set()
    while len(chosen) < count:
        chosen.add(rng.choices(range(len(units)), weights)[0])
    other = [step for step in clashing if world.steps.index(step) % 2 != kind]
    return {
        "id": name,
        "question": f"case {name}",
        "answer": rng.randrange(1000, 10000),
        "need": sorted(token for i in chosen for token in units[i]),
        "hurt": [habit for habit in world.habits if rng.random() < 0.35],
        "clash": [step for step in other if rng.random() < 0.6],
        "pairs": world.pairs,
        "owner": world.owner if len(world.components) > 1 else {},
        "judge": "noisy" if world.family == "graded" else "exact",
    }
