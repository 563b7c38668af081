"""Student and coach of every simulated world behind one OpenAI-compatible endpoint on loopback.

    python bench/apo/simulation.py       prints its port; GET /stats/RUN, POST /forget/RUN

The model's name says it all: ``student@additive-100@RUN`` and ``coach@additive-100@RUN``, with options as in
``coach@additive-100+ms=100+odd=0.1+same=1@RUN``: milliseconds a call takes, share of odd answers of the coach, and
whether equal questions get equal answers (otherwise each repetition within a RUN is an independent draw).

A student is sent one message for each prompt, with ``{question}`` filled in. Calls are counted here, by RUN.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import coach
import worlds
from endpoint import Endpoint

_CASE = re.compile(r"\bcase ((?:train|val|test)\d+)\b")


@dataclass
class Run:
    """What one run of a contestant has asked for."""

    calls: Counter[str] = field(default_factory=Counter)
    asked: Counter[bytes] = field(default_factory=Counter)
    first: float = 0.0
    last: float = 0.0
    coached: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each call of the coach."""

    def in_sequence(self) -> int:
        """The most calls of the coach of which none overlaps another: the length of its critical path."""
        count, free = 0, 0.0
        for began, ended in sorted(self.coached, key=lambda call: call[1]):
            if began >= free:
                count, free = count + 1, ended
        return count

    def stats(self) -> dict[str, float]:
        repeats = self.asked.total() - len(self.asked)
        return {
            "student": self.calls["student"], "coach": self.calls["coach"], "coach_in_sequence": self.in_sequence(),
            "first": self.first, "last": self.last, "repeats": repeats,
        }  # fmt: skip


class Simulation(Endpoint):
    """The endpoint of the speed benchmark, answering as students and coaches do."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.runs: dict[str, Run] = {}
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}

    async def answer(self, path: str, body: bytes) -> dict[str, Any]:
        what, _, name = path.strip("/").partition("/")
        if what == "stats":
            return self.runs.get(name, Run()).stats()
        if what == "forget":
            self.runs.pop(name, None)
            return {}
        request = json.loads(body)
        role, world, options, name = parse_model(request["model"])
        run = self.runs.setdefault(name, Run())
        began = time.time()
        run.first = run.first or began
        if "ms" in options:
            await asyncio.sleep(options["ms"] / 1000)
        texts = [_text(message.get("content")) for message in request["messages"]]
        text = self._reply(run, role, world, options, texts)
        run.calls[role] += 1
        run.last = time.time()
        if role == "coach":
            run.coached.append((began, run.last))
        return _completion(request["model"], text, len(body))

    def _reply(self, run: Run, role: str, world: worlds.World, options: dict[str, float], texts: list[str]) -> str:
        key = hashlib.blake2b("\0".join([role, *texts]).encode(), digest_size=12).digest()
        luck = run.asked[key] if not options.get("same") else 0
        run.asked[key] += 1
        if role == "coach":
            return coach.reply(world, "\n\n".join(texts), luck, options.get("odd", 0.0))
        case = next((found[1] for found in map(_CASE.search, texts) if found), "")
        row = self._row(world, case)
        if row is None:
            return "What is the question?"
        filled = [text.replace(row["question"], worlds.PLACEHOLDER) for text in texts]
        return world.answer(world.read(dict(zip(world.components, filled))), row, luck)  # noqa: B905

    def _row(self, world: worlds.World, case: str) -> dict[str, Any] | None:
        rows = self.rows.get(world.name)
        if rows is None:
            rows = self.rows[world.name] = {row["id"]: row for split in world.splits.values() for row in split}
        return rows.get(case)


def parse_model(name: str) -> tuple[str, worlds.World, dict[str, float], str]:
    """(role, world, options, run) of a model's name."""
    role, where, run = name.split("@")
    place, *settings = where.split("+")
    family, _, number = place.rpartition("-")
    options = {key: float(value) for key, _, value in (setting.partition("=") for setting in settings)}
    return role, worlds.make(family, int(number)), options, run


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _completion(model: str, text: str, size: int) -> dict[str, Any]:
    said = max(1, len(text) // 4)
    return {
        "id": "chatcmpl-apo",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text}}
        ],
        "usage": {"prompt_tokens": size // 4, "completion_tokens": said, "total_tokens": size // 4 + said},
    }


async def main() -> None:
    simulation = Simulation()
    server = await asyncio.start_server(simulation.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
