"""Threads that inline agents run in: used again, never waited for, ended with the pool."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from lightningrun.agents.threads import Threads
from tests.rollouts.plant import Plant, recipe


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_an_idle_thread_is_used_again_and_a_hung_one_holds_up_nobody() -> None:
    threads = Threads("threads-under-test")
    seen: list[int] = []
    released, hung = threading.Event(), threading.Event()

    def work() -> None:
        seen.append(threading.get_ident())

    for count in range(1, 6):
        threads.start(work)
        while len(seen) < count or not threads._idle:
            time.sleep(0.001)
    assert len(set(seen)) == 1
    threads.start(lambda: (hung.set(), released.wait(10))[0])
    assert hung.wait(5)
    threads.start(work)
    while len(seen) < 6:
        time.sleep(0.001)
    assert seen[5] != seen[0], "its thread is still busy"
    threads.close()
    released.set()
    end = time.monotonic() + 5
    while "threads-under-test" in names() and time.monotonic() < end:
        time.sleep(0.01)
    assert "threads-under-test" not in names()


async def test_waiting_threads_look_seldom_and_a_context_ends_with_its_agent(tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text(
        "import contextvars, sys\n"
        "from openai import AsyncOpenAI\n"
        "before = contextvars.ContextVar('before', default='nothing')\n"
        "async def solve(question, llm):\n"
        "    found = before.get()\n"
        "    before.set(question)\n"
        "    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:\n"
        "        said = [{'role': 'user', 'content': question}]\n"
        "        await client.chat.completions.create(model='policy', messages=said)\n"
        "    return [found, sys.getswitchinterval()]\n"
        "def right(output):\n"
        "    return 1.0\n"
    )
    usual = sys.getswitchinterval()
    config = recipe(
        {"entrypoint": f"{tmp_path}/light.py:solve", "isolation": "inline"},
        reward={"function": f"{tmp_path}/light.py:right"},
        execution={"workers": 1},
    )
    async with Plant(tmp_path, config) as plant:
        told = [rollout.output for rollout in await plant.roll(3)]
    assert [found for found, _ in told] == ["nothing"] * 3
    assert all(interval > usual for _, interval in told)
    assert sys.getswitchinterval() == usual
