from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rollouts.plant import PROMPTS, Plant, agent, recipe


@pytest.mark.parametrize("isolation", ["process", "inline"])
async def test_an_agent_gets_what_its_signature_asks_for(tmp_path: Path, isolation: str) -> None:
    args = {"style": "plain", "limit": 3}
    config = recipe({"entrypoint": agent("tell_all"), "isolation": isolation, "args": args})
    async with Plant(tmp_path, config) as plant:
        (rollout,) = await plant.roll(1, extra=[1, 2])
        told = rollout.output
        assert told["question"] == "q0"
        assert told["task"] == {"question": "q0", "extra": [1, 2]}
        assert told["prompts"] == PROMPTS
        assert told["args"] == args
        assert (told["style"], told["optional"], told["model"]) == ("plain", "default", "policy")
        assert isinstance(told["seed"], int)
        assert not Path(told["workdir"]).exists()  # noqa: ASYNC240


async def test_keywords_get_everything_that_costs_nothing(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("takes_any"), "args": {"style": "x"}})) as plant:
        (rollout,) = await plant.roll(1)
        assert rollout.output == ["args", "llm", "prompts", "question", "seed", "style", "task"]


async def test_no_key_reaches_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "sk-canary-6d1f"
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHON_TOKEN", "ODD"):
        monkeypatch.setenv(name, canary)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    config = recipe({"entrypoint": agent("environment"), "env": {"MY_SETTING": "on", "HTTP_PROXY": "http://proxy:1"}})
    async with Plant(tmp_path, config) as plant:
        (rollout,) = await plant.roll(1)
        env = rollout.output
        assert canary not in repr(env)
        assert env["LC_ALL"] == "C.UTF-8" and env["MY_SETTING"] == "on" and env["PATH"] == os.environ["PATH"]
        assert env["OPENAI_BASE_URL"] == env["OPENAI_API_BASE"] and env["OPENAI_BASE_URL"].endswith("/v1")
        assert env["OPENAI_API_KEY"] == plant.gateway.token and env["OPENAI_MODEL"] == "policy"
        assert "127.0.0.1" in env["NO_PROXY"]


async def test_a_slot_keeps_its_url_and_its_loop_for_life(tmp_path: Path) -> None:
    (tmp_path / "lasting.py").write_text(
        "import asyncio, os\nfrom openai import AsyncOpenAI\n"
        "client = AsyncOpenAI()\nloops = set()\n"
        "async def solve(question):\n"
        "    loops.add(id(asyncio.get_running_loop()))\n"
        "    asyncio.create_task(asyncio.sleep(600))\n"
        "    message = {'role': 'user', 'content': question}\n"
        "    reply = await client.chat.completions.create(model='any', messages=[message])\n"
        "    return [reply.choices[0].message.content, len(loops), os.environ['OPENAI_BASE_URL']]\n"
        "def reward(output, question):\n"
        "    return float(output[0] == question)\n"
    )
    reward = {"function": f"{tmp_path}/lasting.py:reward"}
    config = recipe({"entrypoint": f"{tmp_path}/lasting.py:solve"}, reward=reward, execution={"workers": 2})
    async with Plant(tmp_path, config) as plant:
        rollouts = await plant.roll(12)
        assert {rollout.score for rollout in rollouts} == {1.0}
        assert {rollout.output[1] for rollout in rollouts} == {1}
        assert len({rollout.output[2] for rollout in rollouts}) <= 2


async def test_random_numbers_of_an_agent_do_not_depend_on_the_slot(tmp_path: Path) -> None:
    reward = {"function": agent("from_args"), "args": {"kind": "plain", "value": 1}}
    drawn = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        config = recipe({"entrypoint": agent("seeded")}, reward=reward, execution={"workers": workers})
        async with Plant(folder, config) as plant:
            drawn.append([rollout.output for rollout in await plant.roll(6)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 6
