"""Whatever an agent does, that rollout fails; the next one runs in a fresh slot and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightningrun.errors import GatewayBypassed, UsageError
from lightningrun.types import RolloutStatus
from tests.rollouts.plant import Plant, agent, recipe

SOLO = {"execution": {"workers": 1}}


async def fails(folder: Path, name: str, count: int = 2, **options: Any) -> str:
    """Run an agent that fails on every row; returns the error of the last."""
    async with Plant(folder, recipe({"entrypoint": agent(name), **options}, **SOLO)) as plant:
        rollouts = await plant.roll(count)
        assert [(r.status, r.score) for r in rollouts] == [(RolloutStatus.FAILED, 0.0)] * count
        assert all(rollout.feedback == rollout.error for rollout in rollouts)
        return rollouts[-1].error


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "ValueError: no idea about q1\n  agents_for_tests.py:"),
        ("quitting", "SystemExit: I quit"),
        ("interrupting", "KeyboardInterrupt"),
        ("exiting", "crashed: the process exited with code 3"),
        ("huge", "at most 4,194,304 are kept"),
        ("not_json", "returned a dict that JSON cannot hold"),
        ("nan", "returned a float that JSON cannot hold"),
        ("silent", "no answer: it returned None"),
        ("wants_more", "asks for 'country'; available are args, llm, prompts, question"),
    ],
)
async def test_an_agent_that_fails_is_scored_as_failed(tmp_path: Path, name: str, said: str) -> None:
    assert said in await fails(tmp_path, name)


async def test_a_segfault_is_named_with_the_last_words(tmp_path: Path) -> None:
    error = await fails(tmp_path, "crashing")
    assert "SIGSEGV" in error and "about to crash" in error


@pytest.mark.parametrize("name", ["hanging", "spinning"])
async def test_an_agent_that_never_returns_is_killed_in_time(tmp_path: Path, name: str) -> None:
    began = time.monotonic()
    assert "no answer within 1.5 s" in await fails(tmp_path, name, timeout_s=1.5)
    assert time.monotonic() - began < 15
    assert no_process_mentions(str(tmp_path))


async def test_memory_is_bounded(tmp_path: Path) -> None:
    assert "MemoryError" in await fails(tmp_path, "greedy", memory_mb=600)


async def test_garbage_on_stdout_is_kept_up_to_a_limit_and_disturbs_nothing(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("chatty")}, **SOLO)) as plant:
        assert [rollout.score for rollout in await plant.roll(3)] == [1.0] * 3
    log = tmp_path / "logs" / "agent-1.log"
    assert 1 << 20 <= log.stat().st_size < (1 << 20) + 200
    assert log.read_bytes().startswith(b"garbage garbage")


@pytest.mark.parametrize("name", ["leaving", "leaving_and_hanging"])
async def test_what_an_agent_leaves_behind_is_killed(tmp_path: Path, name: str) -> None:
    pids = tmp_path / "pids"
    options = {"entrypoint": agent(name), "args": {"pids": str(pids)}, "timeout_s": 5 if "hang" in name else 20}
    async with Plant(tmp_path, recipe(options, **SOLO)) as plant:
        count = 1 if "hang" in name else 2
        rollouts = await plant.roll(count)
        status = RolloutStatus.FAILED if "hang" in name else RolloutStatus.SUCCEEDED
        assert [rollout.status for rollout in rollouts] == [status] * count
        left = [int(line) for line in pids.read_text().split()]
        assert len(left) == 2 * count
        await gone(left)
        warnings = [event["message"] for event in plant.seen if event["kind"] == "log"]
        assert len(warnings) == (0 if "hang" in name else 1)


async def test_a_fork_that_returns_into_the_slot_does_not_answer_twice(tmp_path: Path) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("forking")}, **SOLO)) as plant:
        assert [rollout.output for rollout in await plant.roll(3)] == ["q0", "q1", "q2"]


@pytest.mark.parametrize("isolation", ["process", "inline"])
async def test_an_answer_without_a_call_stops_the_stage(tmp_path: Path, isolation: str) -> None:
    async with Plant(tmp_path, recipe({"entrypoint": agent("bypassing"), "isolation": isolation})) as plant:
        with pytest.raises(GatewayBypassed, match=r"task 't\d' \(train\) without one LLM call.*OPENAI_BASE_URL"):
            await plant.roll(2)
        assert plant.recorded() == {}


@pytest.mark.parametrize(
    ("isolation", "name", "said"),
    [
        ("inline", "quitting", "SystemExit: I quit"),
        ("inline", "interrupting", "KeyboardInterrupt"),
        ("inline", "raising", "ValueError: no idea"),
        ("inline", "not_json", "JSON cannot hold"),
        ("inline", "hanging", "no answer within 1.5 s"),
    ],
)
async def test_inline_agents_fail_without_harm_to_the_run(tmp_path: Path, isolation: str, name: str, said: str) -> None:
    assert said in await fails(tmp_path, name, isolation=isolation, timeout_s=1.5)


@pytest.mark.parametrize("isolation", ["process", "inline"])
@pytest.mark.parametrize("source", ["raise RuntimeError('no licence')", "import nowhere_to_be_found", "x = ("])
async def test_a_module_that_cannot_be_imported_is_said_at_once(tmp_path: Path, source: str, isolation: str) -> None:
    (tmp_path / "broken.py").write_text(f"{source}\ndef solve(question): pass\n")
    broken = recipe({"entrypoint": f"{tmp_path}/broken.py:solve", "isolation": isolation})
    with pytest.raises(UsageError, match=r"importing the agent failed: \w+Error"):
        async with Plant(tmp_path, broken):
            pass


def no_process_mentions(text: str) -> bool:
    for process in psutil.process_iter():
        try:
            if any(text in part for part in process.cmdline()) and process.pid != os.getpid():
                return False
        except psutil.Error:
            continue
    return True


async def gone(pids: list[int]) -> None:
    for _ in range(100):
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"still alive: {alive}")
