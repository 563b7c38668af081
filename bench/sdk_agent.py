"""The agent that the benchmark runs: one chat call by the plain OpenAI SDK, its client built while it is imported."""

from __future__ import annotations

import os

from openai import OpenAI

client = OpenAI()
MODEL = os.environ.get("OPENAI_MODEL", "fake")


def solve(q: str, prompts: dict[str, str]) -> str | None:
    message = {"role": "user", "content": prompts["system"].format(q=q)}
    reply = client.chat.completions.create(model=MODEL, messages=[message])
    return reply.choices[0].message.content


def reward(output: str) -> float:
    return float(output == "right")
