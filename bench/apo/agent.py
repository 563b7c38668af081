"""The agent and the reward of the benchmark's recipe: one call through the gateway, graded by row and answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(1, str(Path(__file__).resolve().parent))

import worlds

_session: aiohttp.ClientSession | None = None


def messages(prompts: Mapping[str, str], question: str) -> list[dict[str, str]]:
    """One message for each prompt, in the order of their names, with the question filled in."""
    texts = [prompts[name].replace(worlds.PLACEHOLDER, question) for name in sorted(prompts)]
    roles = ["system"] * (len(texts) - 1) + ["user"]
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]  # noqa: B905


async def solve(question: str, prompts: Mapping[str, str], llm: Mapping[str, str]) -> str:
    global _session
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    async with _session.post(
        llm["base_url"] + "/chat/completions",
        json={"model": llm["model"], "messages": messages(prompts, question)},
        headers={"Authorization": f"Bearer {llm['api_key']}"},
    ) as reply:
        reply.raise_for_status()
        return str((await reply.json())["choices"][0]["message"]["content"])


def reward(task: Mapping[str, Any], output: str) -> dict[str, Any]:
    score, feedback = worlds.grade(task, output)
    return {"score": score, "feedback": feedback}
