"""A runner that is killed leaves no process behind, however its agents hid theirs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lightningrun.errors import StageFailed
from lightningrun.types import RolloutStatus
from tests.rollouts.plant import Plant, agent, recipe

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """
import asyncio, signal, sys
from pathlib import Path
from tests.rollouts.plant import Plant, agent, recipe

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored

async def main():
    folder = Path(sys.argv[1])
    config = recipe({"entrypoint": agent("leaving_and_hanging"), "args": {"pids": str(folder / "pids")}})
    async with Plant(folder, config) as plant:
        await plant.roll(2)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_survives_the_runner(tmp_path: Path, number: signal.Signals) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], env=env, stderr=subprocess.DEVNULL)
    try:
        pids = started(tmp_path / "pids", 4)
        tree = {process.pid for process in psutil.Process(runner.pid).children(recursive=True)} | set(pids)
        assert len(tree) >= 7  # fork server, two agent slots, one reward slot, two children and two detached ones
        runner.send_signal(number)
        runner.wait(20)
        deadline = time.monotonic() + 10
        while alive(tree) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(tree) == set()
        assert list(tmp_path.glob("lightningrun-*")) == []
    finally:
        runner.kill()
        runner.wait()


def started(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = path.read_text().split() if path.exists() else []
        if len(lines) >= count:
            return [int(line) for line in lines]
        time.sleep(0.05)
    raise AssertionError("the agents did not start")


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.add(pid)
        except psutil.Error:
            continue
    return found


def server_of_this_test() -> psutil.Process:
    children = psutil.Process().children()
    return next(child for child in children if "lightningrun.agents.slot_server" in child.cmdline())


async def test_close_ends_running_agents_at_once(tmp_path: Path) -> None:
    config = recipe({"entrypoint": agent("leaving_and_hanging"), "args": {"pids": str(tmp_path / "pids")}})
    async with Plant(tmp_path, config) as plant:
        work = asyncio.create_task(plant.roll(2))
        while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        tree = {process.pid for process in server_of_this_test().children(recursive=True)}
        began = time.monotonic()
        await plant.pool.close()
        assert time.monotonic() - began < 4
        assert alive(tree) == set()
        work.cancel()
        await asyncio.wait([work])


async def test_a_dead_fork_server_is_replaced_once_and_no_rollout_is_blamed(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("good")})) as plant:
        first = server_of_this_test()
        first.kill()
        rollouts = await plant.roll(6)
        assert {rollout.status for rollout in rollouts} == {RolloutStatus.SUCCEEDED}
        server_of_this_test().kill()
        with pytest.raises(StageFailed, match="fork server died twice"):
            await plant.engine().run([*map(renamed, range(6))])


def renamed(number: int):  # type: ignore[no-untyped-def]
    from tests.rollouts.plant import PROMPTS, RolloutRequest, Task

    return RolloutRequest(Task(f"again{number}", "train", {"question": f"a{number}"}), PROMPTS)
