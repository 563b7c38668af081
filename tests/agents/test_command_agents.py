from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightningrun.types import Rollout, RolloutStatus
from tests.rollouts.plant import Plant, recipe

ASK = """
import json, os, sys, urllib.request
task = json.load(sys.stdin)
assert task == json.loads(os.environ["LIGHTNINGRUN_TASK"])
prompts = json.load(open(os.environ["LIGHTNINGRUN_PROMPTS"]))
body = {"model": os.environ["OPENAI_MODEL"], "messages": [
    {"role": "system", "content": prompts["system"]}, {"role": "user", "content": task["question"]}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions", data=json.dumps(body).encode(),
    headers={"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
print("thinking ...")
"""


async def roll(folder: Path, code: str, count: int = 3, **options: Any) -> list[Rollout]:
    (folder / "program.py").write_text(ASK + code)
    command = [sys.executable, str(folder / "program.py")]
    async with Plant(folder, recipe({"command": command, **options})) as plant:
        return await plant.roll(count)


@pytest.mark.parametrize("printing", ["print(answer)", "print(json.dumps(answer))"])
async def test_the_last_line_is_the_answer(tmp_path: Path, printing: str) -> None:
    rollouts = await roll(tmp_path, printing)
    assert [(r.output, r.score, r.llm_calls) for r in rollouts] == [(f"q{n}", 1.0, 1) for n in range(3)]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no route')", "ended with code 1; the end of its stderr"),
        ("sys.exit(9)", "ended with code 9"),
        ("import time; time.sleep(600)", "no answer within 3 s"),
    ],
)
async def test_a_program_that_fails_is_a_failed_rollout(tmp_path: Path, code: str, said: str) -> None:
    (rollout,) = await roll(tmp_path, code, 1, timeout_s=3)
    assert rollout.status is RolloutStatus.FAILED and said in rollout.error


async def test_a_program_that_cannot_be_started_is_a_failed_rollout(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"command": [str(tmp_path / "nowhere")]})) as plant:
        (rollout,) = await plant.roll(1)
        assert rollout.status is RolloutStatus.FAILED and "FileNotFoundError" in rollout.error
