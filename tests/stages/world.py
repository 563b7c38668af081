"""A small world for the stages' tests: an engine, a model service and data, all in memory but for the real journal.

They are real implementations of what a stage asks for: finished rollouts are emitted before they are returned and
found again in the journal, the service numbers its calls and remembers answers by content, both can be told to answer
in any order.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightningrun.files import digest
from lightningrun.rollouts.engine import RolloutRequest
from lightningrun.stages.base import StageContext
from lightningrun.tracking.journal import RunJournal
from lightningrun.types import LLMCall, Rollout, RolloutStatus, Task


def chance(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@dataclass
class Answer:
    """What one rollout yields."""

    score: float | None
    feedback: str = ""
    status: RolloutStatus = RolloutStatus.SUCCEEDED
    messages: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


Student = Callable[[Mapping[str, str], Task, int], Answer]
CoachReply = Callable[[str, int], str]
"""(the question, how often the same question was asked before) -> the answer."""


class WorldService:
    """Calls in memory, answers remembered by content."""

    def __init__(self, coach: CoachReply) -> None:
        self.coach = coach
        self.calls: list[LLMCall] = []
        self.paid = 0
        self.answers: dict[str, tuple[str, int]] = {}
        self.limits: tuple[Any, Mapping[str, int]] | None = None

    def restarted(self, coach: CoachReply | None = None) -> WorldService:
        """The service of the next process: it knows all calls of this one and has paid for none."""
        service = WorldService(coach or self.coach)
        service.calls, service.answers = list(self.calls), dict(self.answers)
        return service

    def open_stage(self, stage: str, limits: Any = None, role_limits: Mapping[str, int] | None = None) -> None:
        self.limits = (limits, role_limits or {})

    def read(self, ref: int) -> LLMCall:
        return self.calls[ref]

    def record(self, role: str, owner: str, messages: list[dict[str, Any]], text: str) -> int:
        response = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        number = len(self.calls)
        self.calls.append(LLMCall(str(number), role, role, "apo", owner, {"messages": messages}, response))
        return number

    def session(self, *, stage: str, owner: str, sample: int = 0, default_role: str = "policy") -> WorldSession:
        return WorldSession(self, owner, sample)


class WorldSession:
    def __init__(self, service: WorldService, owner: str, sample: int) -> None:
        self.service, self.owner, self.sample = service, owner, sample
        self.refs: list[int] = []
        self.cost_usd = 0.0

    async def chat(self, body: dict[str, Any], *, role: str | None = None) -> dict[str, Any]:
        question = "\n".join(message["content"] for message in body["messages"])
        key = digest([body, self.sample])
        if key not in self.service.answers:
            text = self.service.coach(question, self.sample)
            self.service.paid += 1
            ref = self.service.record(role or "", self.owner, body["messages"], text)
            self.service.answers[key] = text, ref
        await asyncio.sleep(0)
        self.refs.append(self.service.answers[key][1])
        return dict(self.service.calls[self.refs[-1]].response or {})


class WorldEngine:
    """Runs the student; ``shuffle`` changes the order in which rollouts complete."""

    def __init__(self, student: Student, service: WorldService, journal: RunJournal, shuffle: int = 0) -> None:
        self.student, self.service, self.journal = student, service, journal
        self.order = random.Random(shuffle) if shuffle else None
        self.executed = 0
        self.limit: Callable[[int], None] = lambda executed: None
        self.memo = {
            event["rollout"]["key"]: Rollout.from_json(event["rollout"])
            for event in journal.events()
            if event["kind"] == "rollout"
        }

    async def run(self, requests: Sequence[RolloutRequest], *, total: int | None = None) -> list[Rollout]:
        order = list(requests)
        if self.order:
            self.order.shuffle(order)
        done = {request.key: self._one(request) for request in order}
        await asyncio.sleep(0)
        return [done[request.key] for request in requests]

    def _one(self, request: RolloutRequest) -> Rollout:
        if request.key in self.memo:
            return self.memo[request.key]
        self.limit(self.executed)
        self.executed += 1
        task = request.task
        answer = self.student(request.prompts, task, request.sample)
        asked = [{"role": "user", "content": str(task.fields.get("q", task.id))}, *answer.messages]
        ref = self.service.record("policy", request.key, asked, "an answer")
        rollout = Rollout(
            request.key, "apo", task.id, task.split, request.sample, answer.status, answer.score, answer.feedback,
            metrics=answer.metrics, call_refs=(ref,), llm_calls=1, tags=task.tags,
        )  # fmt: skip
        self.journal.emit("rollout", stage="apo", rollout=rollout.to_json())
        self.memo[request.key] = rollout
        return rollout


def rows(split: str, count: int, **fields: Any) -> tuple[Task, ...]:
    return tuple(
        Task(f"{split}{i}", split, {"id": f"{split}{i}", "q": f"question {split}{i}", **fields}) for i in range(count)
    )


def context(
    folder: Path,
    config: Any,
    prompts: Mapping[str, str],
    splits: Mapping[str, Sequence[Task]],
    student: Student,
    coach: CoachReply = lambda question, again: "",
    *,
    seed: int = 0,
    shuffle: int = 0,
    reward_range: tuple[float, float] | None = None,
    objective: Mapping[str, float] | None = None,
    service: WorldService | None = None,
) -> StageContext:
    """A context over a real journal in ``folder``; opening the same folder again is a resume."""
    folder.mkdir(parents=True, exist_ok=True)
    journal = RunJournal(folder / "journal.jsonl")
    service = service or WorldService(coach)
    outputs = folder / "outputs"
    outputs.mkdir(exist_ok=True)
    recipe = SimpleNamespace(
        agent=SimpleNamespace(prompts=dict(prompts)),
        models={"policy": None, "coach": None},
        reward=SimpleNamespace(range=reward_range, objective=objective),
        stages={},
    )
    data = SimpleNamespace(splits={name: SimpleNamespace(tasks=tuple(tasks)) for name, tasks in splits.items()})
    engine = WorldEngine(student, service, journal, shuffle)
    return StageContext(
        "apo", config, recipe, seed, data, prompts, journal, engine, service, outputs, {}, {}, folder / "work",  # type: ignore[arg-type]
    )  # fmt: skip


RULES = ("amber", "basil", "cedar", "daisy", "ember", "fjord", "grove", "heron")
HARMFUL = ("nickel", "ochre", "pewter", "quartz")
SEED_PROMPT = "You answer {question} with care."


@dataclass
class HiddenRules:
    """Rows need rules that only the feedback of failures mentions; the coach is forgetful and makes things up."""

    number: int = 0
    null: bool = False
    graded: bool = False

    def needs(self, task: Task) -> list[str]:
        first = int(chance(self.number, task.id, "need") ** 1.5 * len(RULES))
        return [RULES[first]] + ([RULES[(first * 3 + 1) % len(RULES)]] if chance(task.id, "two") < 0.3 else [])

    @property
    def prompts(self) -> dict[str, str]:
        return {"system": f"{SEED_PROMPT} {' '.join(RULES)}" if self.null else SEED_PROMPT}

    def quality(self, prompt: str, task: Task) -> float:
        """The chance of success: what a prompt is really worth on a row."""
        missing = sum(rule not in prompt for rule in self.needs(task))
        return 0.92 * 0.15**missing * 0.8 ** sum(word in prompt for word in HARMFUL)

    def true(self, prompts: Mapping[str, str]) -> float:
        fresh = rows("unseen", 300)
        return sum(self.quality(prompts["system"], task) for task in fresh) / len(fresh)

    def student(self, prompts: Mapping[str, str], task: Task, sample: int) -> Answer:
        prompt = prompts["system"]
        worth = self.quality(prompt, task)
        luck = chance(self.number, prompt, task.id, sample)
        score = round(min(1.0, max(0.0, worth + (luck - 0.5) * 0.4)), 3) if self.graded else float(luck < worth)
        missing = [rule for rule in self.needs(task) if rule not in prompt]
        harm = [word for word in HARMFUL if word in prompt]
        hint = f"the rule of {missing[0]} was ignored" if missing else f"{harm[0]} misled you" if harm else "wrong"
        return Answer(score, "right" if score == 1 else hint)

    def coach(self, question: str, again: int) -> str:
        prompt = question.split('<current_prompt name="system">\n')[1].split("\n</current_prompt>")[0]
        words = prompt.split()
        seen = [word for line in question.splitlines() if "[feedback]" in line for word in line.split()]
        for position, rule in enumerate([word for word in dict.fromkeys(seen) if word in RULES][:3]):
            if chance(self.number, question, again, position) < 0.75 and rule not in words:
                words.append(rule)
        words = [word for word in words if not (word in HARMFUL and word in seen)]
        if chance(self.number, question, again, "whim") < 0.25:
            words.append(HARMFUL[int(chance(question, again) * len(HARMFUL))])
        if chance(self.number, question, again, "slip") < 0.05:
            words = [word for word in words if word != "{question}"]
        return f"Some rules were missing.\n```\n{' '.join(words)}\n```"

    def context(self, folder: Path, config: Any, **options: Any) -> StageContext:
        splits = {"train": rows("train", 40), "val": rows("val", 30), **options.pop("more", {})}
        return context(folder, config, self.prompts, splits, self.student, self.coach, **options)
