"""verl's own trainer on a CPU, from the recipe to the checkpoint: what it learns, and how it ends when things go wrong.

Each start of verl takes about half a minute of two quiet cores.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)
pytest.importorskip("ray", exc_type=ImportError)


import lightningrun
from lightningrun.errors import RecipeError
from lightningrun.execution import RunResult
from lightningrun.models.local import checkpoint
from lightningrun.runner import resume
from tests.run.project import environment
from tests.stages.grpo_project import make_project
from tests.stages.test_grpo_stage import at_home, curve
from tests.stages.verl_runs import Watched, command_line, loads_in_transformers, private

__all__ = ["private"]  # a fixture

TWO_TURNS = """
import json, urllib.request

TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look it up.", "parameters": {
    "type": "object", "properties": {"word": {"type": "string"}}}}}]

def ask(llm, messages):
    body = {"model": llm["model"], "messages": messages, "tools": TOOLS}
    request = urllib.request.Request(
        llm["base_url"] + "/chat/completions", data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"] or ""

def answer(question, prompts, llm):
    messages = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]
    first = ask(llm, messages)
    again = ask(llm, [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "And again."}])
    return first[:3] + again[:3]
"""
SLOWEST_S = 3000
"""A hang. How long a start takes, other work on the machine decides."""
RAY = {"backend": "ray", "lr": 1e-2, "steps": 8, "eval": {"every": 4}}


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)
def test_verls_trainer_learns_from_the_agent_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_project(tmp_path, RAY, agent=TWO_TURNS)
    at_home(tmp_path, monkeypatch)
    watched = Watched()
    result = lightningrun.load(recipe).run(observers=[watched])
    assert result.error is None
    assert watched.is_gone()
    metrics, steps = result.results["grpo"].metrics, curve(watched.events)
    assert list(steps) == list(range(9)) and metrics["steps"] == 8
    assert metrics["reward"] > metrics["reward_start"] + 0.15
    assert [step for step, values in steps.items() if "val.reward" in values] == [0, 4, 8]
    first = steps[1]
    assert first["live"] == 1.0 and 3 < first["entropy"] < 6 and first["calls"] == 2.0
    assert first["probability_gap"] < 1e-4 and first["grad_norm"] > 0 and first["tokens_per_s"] > 0
    assert first["start.greedy"] <= first["start.pass_at_8"]
    made = tmp_path / "runs" / "latest" / "stages" / "grpo" / "outputs"
    kept = [json.loads(line) for line in (made / "rollouts.jsonl").read_text().splitlines()]
    assert len(kept) == 8 * 4 * 8 == metrics["rollouts"] and len({one["key"] for one in kept}) == len(kept)
    loads_in_transformers(made / "model")
    assert weights(made / "model") != weights(tmp_path / "base")


def weights(folder: Path) -> str:
    return checkpoint.content_digest(folder)


def told_until(journal: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SLOWEST_S / 3
    while not (journal.exists() and f'"step":{step},' in journal.read_text().replace(" ", "")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)
def test_a_killed_runner_and_a_killed_worker_cost_a_few_steps(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls have rewards of their own here, which is known from the evaluation before."""
    options = {**RAY, "steps": 6, "eval": {"every": 2}}
    recipe = make_project(tmp_path, options, agent=TWO_TURNS, reward="small_letters.reward:by_call")
    written = yaml.safe_load(recipe.read_text())
    written["stages"] = {"before": {"type": "evaluate", "split": "val"}, **written["stages"]}
    recipe.write_text(yaml.safe_dump(written, sort_keys=False))
    watched = Watched()
    runner = subprocess.Popen(
        [sys.executable, "-m", "lightningrun", str(recipe)], cwd=tmp_path, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    journal = tmp_path / "runs" / "latest" / "journal.jsonl"
    told_until(journal, 2, runner)
    watched.seen = set(psutil.Process(runner.pid).children(recursive=True))
    runner.kill()
    runner.wait()
    assert watched.is_gone() and not list(private.glob("lr-*"))

    at_home(tmp_path, monkeypatch)
    run = (tmp_path / "runs" / "latest").resolve()
    watched, killed = Watched(), []

    def kills_a_worker(event: Any) -> None:
        watched(event)
        if event["kind"] == "metric" and not killed:
            (metrics,) = private.glob("lr-*/metrics.jsonl")
            killed.append(json.loads(metrics.read_text().splitlines()[0])["step"])
            (worker,) = watched.named("WorkerDict")
            worker.send_signal(signal.SIGKILL)

    broken = resume(run, observers=[kills_a_worker])
    assert broken.exit_code == 3 and "died" in str(broken.error) and "verl.log" in str(broken.error)
    assert watched.is_gone() and not list(private.glob("lr-*"))
    assert killed[0] >= 2, "verl went on from its checkpoint"

    watched = Watched()
    result = resume(run, observers=[watched])
    assert result.error is None and watched.is_gone()
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    steps = [event["step"] for event in told if event["kind"] == "metric" and event["stage"] == "grpo"]
    assert steps == list(range(7)), "each step is told once"
    assert not [event for event in told if "to compare single calls" in event.get("message", "")]
    metrics = result.results["grpo"].metrics
    assert metrics["rollouts"] == 6 * 4 * 8 and metrics["reward"] > metrics["reward_start"]
    made = tmp_path / "runs" / "latest" / "stages" / "grpo" / "outputs"
    rows = [json.loads(line) for line in (made / "rollouts.jsonl").read_text().splitlines()]
    assert all(len(one["steps"]) == 2 for one in rows)
    passes = sorted(sum(one["task_id"] == row for one in rows) for row in {one["task_id"] for one in rows})
    assert passes == [6 * 4] * 8, "8 rows, 4 a step: each came in three of six steps, whatever was killed"


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)
def test_a_critic_and_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 2, "eval": {"every": 2}, "algorithm": "ppo", "lora": {"rank": 4, "alpha": 8}}
    recipe = make_project(tmp_path, {**RAY, **options})
    at_home(tmp_path, monkeypatch)
    watched = Watched()
    result = lightningrun.load(recipe).run(observers=[watched])
    assert result.error is None and watched.is_gone()
    steps = curve(watched.events)
    assert steps[2]["critic.loss"] > 0 and steps[2]["grad_norm"] > 0
    loads_in_transformers(tmp_path / "runs" / "latest" / "stages" / "grpo" / "outputs" / "model")


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)
def test_a_reward_without_variance_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh rows bring none either. Calls have rewards of their own: verl begins again when that is seen."""
    options = {"steps": 12, "eval": {"every": 12}, "resample": 2.0}
    watched = Watched()
    result = ended(tmp_path, monkeypatch, options, {"reward": "small_letters.reward:constant_by_call"}, watched)
    assert result.exit_code == 3 and "earned the same" in str(result.error), str(result.error)
    assert sum("to compare single calls" in event.get("message", "") for event in watched.events) == 1
    steps = curve(watched.events)
    assert steps[5]["live"] == 0.0 and steps[5]["resampled"] == 4.0 and steps[5]["grad_norm"] < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(SLOWEST_S)
def test_what_verl_refuses_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"verl": {"actor_rollout_ref": {"actor": {"loss_agg_mode": "odd"}}}}
    result = ended(tmp_path, monkeypatch, odd, {})
    assert result.exit_code == 3 and "loss_agg_mode: odd" in str(result.error), str(result.error)


def ended(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], files: dict[str, str], *observers: Watched
) -> RunResult:
    recipe = make_project(root, {**RAY, **options}, **files)
    at_home(root, monkeypatch)
    result = lightningrun.load(recipe).run(observers=list(observers))
    assert not [one for one in psutil.Process().children(recursive=True) if "main_ppo" in command_line(one)]
    return result


def test_a_trainer_that_shows_no_life_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended(tmp_path, monkeypatch, {"watchdog_s": 0.5}, {})
    assert result.exit_code == 3 and "no sign of life" in str(result.error)


def test_a_plan_counts_the_rollouts_of_either_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backend in (("one", "inproc"), ("two", "ray")):
        recipe = make_project(tmp_path / name, {**RAY, "backend": backend})
        at_home(recipe.parent, monkeypatch)
        (stage,) = lightningrun.load(recipe).plan().stages
        assert stage.forecast.rollouts == 8 * 4 * 8 + 3 * 8 + 4


def test_a_model_that_is_not_there_is_refused_before_verl_starts(tmp_path: Path, monkeypatch: Any) -> None:
    recipe = make_project(tmp_path, RAY)
    recipe.write_text(recipe.read_text().replace("name: base", "name: nowhere"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="nowhere"):
        lightningrun.load(recipe).check()
