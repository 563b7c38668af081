"""The fork server loads installed packages once for all slots, and never the user's own modules."""

from __future__ import annotations

import sys
from pathlib import Path

from lightningrun.agents.imports import packages_of
from tests.rollouts.plant import Plant, agent, recipe

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def test_packages_are_found_through_local_modules_without_running_them(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import yaml, helper_of_agent\n"
        "from lightningrun import Reward\n"
        "if TYPE_CHECKING:\n    import pandas\n"
        "def solve():\n    import sqlite3\n"
        "raise SystemExit('must not be run')\n"
    )
    (tmp_path / "helper_of_agent.py").write_text("from aiohttp import web\nraise SystemExit('must not be run')\n")
    found = packages_of([f"{tmp_path}/agent.py:solve"])
    assert {"yaml", "sqlite3", "aiohttp", "aiohttp.web"} <= set(found)
    assert not {"pandas", "helper_of_agent", "lightningrun"} & set(found)


def test_a_broken_or_absent_module_is_left_to_the_slot(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("import yaml\nx = (")
    assert packages_of([f"{tmp_path}/agent.py:solve", "nowhere.at.all:solve"]) == []


ROOT = Path(__file__).resolve().parents[2]


async def test_a_package_that_starts_threads_is_left_to_the_slots(tmp_path: Path) -> None:
    installed = tmp_path / "lib" / VERSION / "site-packages"
    installed.mkdir(parents=True)
    (installed / "quiet_package.py").write_text("import os\npid = os.getpid()\n")
    thread = "threading.Thread(target=time.sleep, args=[600], daemon=True).start()"
    (installed / "threadful_package.py").write_text(f"import os, threading, time\npid = os.getpid()\n{thread}\n")
    (tmp_path / "agent.py").write_text(
        "import os, quiet_package, threadful_package\n"
        "pid = os.getpid()\n"
        "def solve(question):\n"
        "    return [os.getpid() == pid, quiet_package.pid == pid, threadful_package.pid == pid]\n"
        "def wrapped(question, llm):\n"
        "    from tests.rollouts.agents_for_tests import ask\n"
        "    ask(question, llm)\n"
        "    return solve(question)\n"
    )
    env = {"PYTHONUSERBASE": str(tmp_path), "PYTHONPATH": f"{installed}:{ROOT}"}
    reward = {"function": agent("from_args"), "args": {"kind": "plain", "value": 1}}
    config = recipe({"entrypoint": f"{tmp_path}/agent.py:wrapped", "env": env}, reward=reward)
    async with Plant(tmp_path, config) as plant:
        (rollout,) = await plant.roll(1)
        assert rollout.output == [True, False, True], rollout.error
