"""An agent in an interpreter of its own: a second virtual environment with a framework that ours has not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import lightningrun
from lightningrun.agents import interpreter
from lightningrun.errors import LightningError, UsageError
from lightningrun.planning import StagePlan
from lightningrun.types import Rollout
from tests.rollouts.plant import Plant, recipe
from tests.run.project import AGENT, RECIPE, make_project
from tests.run.project import lightningrun as run_cli

AGENT_OF_FRAMEWORK = "import strange_framework\n" + AGENT
OWN = RECIPE.replace("  timeout_s: 20\n", "  timeout_s: 20\n  python: envs/own\n", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment without pip, with one package made by hand."""
    folder = tmp_path_factory.mktemp("envs") / "own"
    venv.create(folder, symlinks=True)
    install(folder, "strange_framework", "1.5.0")
    return folder


def install(folder: Path, name: str, version: str, body: str = "") -> None:
    (place,) = folder.glob("lib/python*/site-packages")
    (place / f"{name}.py").write_text(body)
    (place / f"{name}-{version}.dist-info").mkdir()


@pytest.fixture
def project(tmp_path: Path, made: Path) -> Path:
    """The adder, whose agent needs the framework; its environment is named relative to the recipe."""
    root = make_project(tmp_path / "project", agent=AGENT_OF_FRAMEWORK, recipe=OWN)
    shutil.copytree(made, root / "envs/own", symlinks=True)
    return root


AGENT_AND_REWARD = """
import importlib.util, json, os, shutil, sys, urllib.request
def where():
    known = [n for n in ('strange_framework', 'pydantic', 'aiohttp') if importlib.util.find_spec(n)]
    return [sys.prefix, known]
def solve(question):
    import lightningrun
    body = json.dumps({'model': 'any', 'messages': [{'role': 'user', 'content': question}]}).encode()
    key = 'Bearer ' + os.environ['OPENAI_API_KEY']
    headers = {'Authorization': key, 'Content-Type': 'application/json'}
    url = os.environ['OPENAI_BASE_URL'] + '/chat/completions'
    urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers)).read()
    return [*where(), lightningrun.__version__, shutil.which('python'), list(sys.version_info[:2])]
def reward(output):
    return {'score': 1.0, 'feedback': json.dumps(where())}
"""


async def rolled(tmp_path: Path, python: str) -> Rollout:
    (tmp_path / "split.py").write_text(AGENT_AND_REWARD)
    agent = {"entrypoint": f"{tmp_path}/split.py:solve", "python": python}
    async with Plant(tmp_path, recipe(agent, reward={"function": f"{tmp_path}/split.py:reward"})) as plant:
        (rollout,) = await plant.roll(1)
    assert rollout.error == "" and rollout.llm_calls == 1
    return rollout


async def test_the_agent_is_in_its_own_interpreter_and_the_reward_in_ours(tmp_path: Path, made: Path) -> None:
    rollout = await rolled(tmp_path, str(made))
    prefix, known, version, python, _ = rollout.output
    assert (prefix, known) == (str(made), ["strange_framework"]), "nothing of ours but the package itself"
    assert version == lightningrun.__version__ and python == str(made / "bin/python")
    assert json.loads(rollout.feedback) == [sys.prefix, ["pydantic", "aiohttp"]]


async def test_an_import_that_fails_there_says_where(tmp_path: Path, made: Path) -> None:
    (tmp_path / "late.py").write_text("if True:\n    import absent_framework\ndef solve(question):\n    return 1\n")
    config = recipe({"entrypoint": f"{tmp_path}/late.py:solve", "python": str(made)})
    with pytest.raises(UsageError, match=f"under {made} failed: ModuleNotFoundError: No module named 'absent_fra"):
        async with Plant(tmp_path, config):
            pass


def test_a_run_and_what_is_kept_of_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's lock says what the agent ran in, and another release of a package there is another agent."""
    done = run_cli(project, "recipe.yaml", "--until", "baseline")
    assert done.returncode == 0, done.stderr
    lock = json.loads((project / "runs/latest/lock.json").read_text())["agent_python"]
    assert lock["packages"] == {"strange_framework": "1.5.0"}
    assert lock["path"] == str(project / "envs/own")
    assert lock["version"] == ".".join(map(str, sys.version_info[:3]))
    monkeypatch.chdir(project)
    assert str(baseline().action.value) == "cached"
    install(project / "envs/own", "other", "2.0")
    assert baseline().action.value == "run" and "agent.python.packages.other added: 2.0" in baseline().reason


def baseline() -> StagePlan:
    return next(stage for stage in lightningrun.load("recipe.yaml").plan().stages if stage.id == "baseline")


def program(path: Path, said: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return path


def wrong(project: Path, *overrides: str) -> str:
    with pytest.raises(LightningError) as caught:
        lightningrun.load(project / "recipe.yaml", list(overrides)).check()
    return str(caught.value)


def test_what_is_wrong_is_said_before_anything_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    lightningrun.load("recipe.yaml").check()
    program(project / "old", '{"version": [3, 9, 18]}')
    program(project / "odd", "hello")
    said = wrong(project, "agent.python=nowhere")
    assert f"agent.python: there is no interpreter at {project}/nowhere; " in said
    assert "python3 -m venv nowhere && nowhere/bin/python -m pip install" in said
    assert "old is Python 3.9.18; it must be 3.10 or newer" in wrong(project, "agent.python=old")
    assert "odd is not a Python interpreter" in wrong(project, "agent.python=odd")
    assert "'python' needs 'isolation: process'" in wrong(project, "agent.isolation=inline")

    shutil.rmtree(project / "envs/own")
    venv.create(project / "envs/own", symlinks=True)
    (project / "adder/requirements.txt").write_text("strange-framework==1.5.0\n")
    said = wrong(project)
    assert said.startswith("recipe.yaml:8:11: agent.python: has no module 'strange_framework', which the agent imports")
    assert said.endswith("; envs/own/bin/python -m pip install -r adder/requirements.txt")
    assert "strange_framework" not in sys.modules


def test_an_entrypoint_may_be_installed_there_only(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    install(project / "envs/own", "agent_of_theirs", "1.0", "def solve(question):\n    return question\n")
    override = "agent.entrypoint=agent_of_theirs:solve"
    lightningrun.load("recipe.yaml", [override]).check()
    assert "no module 'agent_of_theirs'" in wrong(project, override, f"agent.python={sys.executable}")


@pytest.mark.parametrize("minor", range(10, 14))
def test_slots_need_nothing_but_the_standard_library(tmp_path: Path, minor: int) -> None:
    """Under each Python that this machine has."""
    python = shutil.which(f"python3.{minor}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no python3.{minor} here")
    command = interpreter.slot_server(python, str(tmp_path))
    program = command[2].replace("slot_server.main()", "print(slot_server.__file__)")
    done = subprocess.run([command[0], "-I", "-S", "-c", program], capture_output=True, text=True)  # -S: no packages
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "package") == ["lightningrun"]
    assert asyncio.run(rolled(tmp_path, python)).output[-1] == [3, minor]
