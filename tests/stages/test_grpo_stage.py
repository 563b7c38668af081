"""The whole stage, through gateway, agent and reward: what it learns, refuses, leaves out and survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)

import lightningrun
from lightningrun.errors import RecipeError
from lightningrun.execution import RunResult
from lightningrun.models.local import checkpoint
from lightningrun.runner import resume
from tests.run.project import environment, fill_the_disk
from tests.stages.grpo_project import make_project

TIMES = ("cpu_s", "tokens_per_s")


def run(root: Path, monkeypatch: pytest.MonkeyPatch, grpo: dict[str, Any], **files: str) -> tuple[RunResult, list[Any]]:
    recipe = make_project(root, grpo, **files)
    return started(recipe, monkeypatch)


def started(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunResult, list[Any]]:
    at_home(recipe.parent, monkeypatch)
    events: list[Any] = []
    return lightningrun.load(recipe).run(observers=[events.append]), events


def at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's modules are found by its folder, and not those of the test before."""
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    for name in [name for name in sys.modules if name.startswith("small_letters")]:
        monkeypatch.delitem(sys.modules, name)


def kept(root: Path, name: str) -> Path:
    """What the stage keeps under ``name`` while it trains."""
    (stage,) = (root / "runs").glob("*-letters-*/stages/grpo")
    (found,) = (stage / "work").glob(f"*/{name}")
    return found


def curve(events: list[Any]) -> dict[int, dict[str, float]]:
    return {event["step"]: event["values"] for event in events if event["kind"] == "metric"}


def test_the_reward_rises_and_the_best_weights_are_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, events = run(tmp_path, monkeypatch, {"steps": 6, "eval": {"every": 3}})
    metrics = result.results["grpo"].metrics
    steps = curve(events)
    assert result.error is None and metrics["reward"] > metrics["reward_start"] + 0.2
    assert steps[6]["reward"] > steps[1]["reward"] + 0.2
    assert [step for step, values in steps.items() if "val.reward" in values] == [0, 3, 6]
    assert metrics["reward"] == max(values.get("val.reward", 0.0) for values in steps.values())
    first = steps[1]
    assert first["live"] == 1.0 and 3 < first["entropy"] < 6 and first["logprob_gap"] < 1e-5
    assert first["start.greedy"] <= first["start.pass_at_8"] and steps[3]["kl"] > 0
    assert metrics["cpu_s"] > sum(values.get("cpu_s.update", 0.0) for values in steps.values())
    made = tmp_path / "runs" / "latest" / "stages" / "grpo" / "outputs"
    assert checkpoint.content_digest(made / "model") == result.results["grpo"].outputs["model"].value["digest"]
    kept = [json.loads(line) for line in (made / "rollouts.jsonl").read_text().splitlines()]
    assert len(kept) == 6 * 4 * 8 == metrics["rollouts"] and len({one["key"] for one in kept}) == len(kept)
    calls = [json.loads(line) for line in (tmp_path / "runs/latest/calls.jsonl").read_text().splitlines()]
    assert {call["sampled"]["weights"].rpartition("/")[2] for call in calls if call["sampled"]} >= {"step-1", "step-5"}


def test_lost_rewards_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 2, "eval": {"every": 2}, "algorithm": "rloo", "loss": "token_mean", "kl": {"coef": 0.05}}
    result, events = run(tmp_path, monkeypatch, options, reward="small_letters.reward:broken_for_odd")
    assert result.error is None
    assert 0 < curve(events)[1]["excluded"] < 1
    assert all(value == value and abs(value) < 1e6 for values in curve(events).values() for value in values.values())


def test_rows_without_variance_are_replaced_and_a_constant_reward_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 30, "batch": 2, "group_size": 2, "resample": 2.0}
    result, events = run(tmp_path, monkeypatch, options, reward="small_letters.reward:constant")
    assert result.exit_code == 3 and "nothing can be learned" in str(result.error)
    assert curve(events)[1]["resampled"] == 2.0
    assert any("little to learn" in event.get("message", "") for event in events)


TURNS = """
import json, urllib.request

def answer(question, prompts, llm):
    messages = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]
    said = ""
    for _ in range(2):
        body = json.dumps({"model": llm["model"], "messages": messages}).encode()
        headers = {"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(llm["base_url"] + "/chat/completions", data=body, headers=headers)
        ) as reply:
            text = json.load(reply)["choices"][0]["message"]["content"]
        said += text
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "tool", "tool_call_id": "1", "content": "go on"})
    return said
"""


def test_an_agent_of_several_turns_is_trained_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, events = run(tmp_path, monkeypatch, {"steps": 3, "eval": {"every": 3}}, agent=TURNS)
    assert result.error is None and curve(events)[1]["calls"] == 2.0
    assert curve(events)[3]["grad_norm"] > 0


def test_weights_that_break_fail_the_stage_and_the_best_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run(tmp_path, monkeypatch, {"lr": 1e30, "max_grad_norm": 1e30})
    assert result.exit_code == 3 and result.error is not None
    best = checkpoint.load(kept(tmp_path, "best"))
    assert all(weight.isfinite().all() for weight in best.parameters())


def test_an_agent_that_asks_no_model_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mute = "def answer(question, prompts, llm):\n    return 'something'\n"
    result, _ = run(tmp_path, monkeypatch, {}, agent=mute)
    assert result.exit_code != 0 and "without one LLM call through the gateway" in str(result.error)


HANGING = """
import asyncio

async def answer(question, prompts, llm):
    await asyncio.sleep(60)
"""


def test_a_hang_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(tmp_path, monkeypatch, {"watchdog_s": 1.0}, agent=HANGING)
    assert result.exit_code == 3 and "no rollout ended within 1 s" in str(result.error)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"backend": "ray", "verl": {"trainr": {}}}, r"recipe.yaml:\d+:\d+.*verl.trainr: .*'trainer'"),
        ({"backend": "ray", "resample": 2.0, "verl": {"algorithm": {"filter_groups": {"enable": True}}}}, "take one"),
        ({"verl": {"actor": {"clip_ration": 0.1}}}, "clip_ratio'"),
        ({"verl": {"trainer": {}}}, "'actor' and 'algorithm'"),
        ({"algorithm": "gae"}, "critic.*backend: ray"),
        ({"batch": 9}, "9 rows a step"),
        ({"eval": {"split": "dev"}}, "no split 'dev'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], problem: str
) -> None:
    recipe = make_project(tmp_path, options)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=problem):
        lightningrun.load(recipe).check()


def told(events: list[Any]) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in values.items() if not name.startswith(TIMES)}
        for step, values in curve(events).items()
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_or_out_of_disk_it_ends_as_if_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 6, "eval": {"every": 2}, "save_every_s": 0.001, "lr": 3e-3, "rest": 1, "resample": 1.5}
    calm, events = run(tmp_path / "calm", monkeypatch, options)
    recipe = make_project(tmp_path / "killed", options)
    runs = recipe.parent / "runs"
    process = subprocess.Popen(
        [sys.executable, "-m", "lightningrun", str(recipe)], cwd=recipe.parent, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    journal = runs / "latest" / "journal.jsonl"
    end = time.monotonic() + 120
    while not (journal.exists() and '"step":3' in journal.read_text().replace(" ", "")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert kept(recipe.parent, "state.safetensors").is_file()
    ends_like(calm, events, recipe, monkeypatch)

    full = make_project(tmp_path / "full", options)
    fill_the_disk(full, 2 << 20)  # the best weights fit, those with the optimizer's state do not
    assert checkpoint.load(kept(full.parent, "best"))
    ends_like(calm, events, full, monkeypatch)


def ends_like(calm: RunResult, events: list[Any], recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume the run of ``recipe``, and hold weights, curve and metrics against those of the undisturbed one."""
    at_home(recipe.parent, monkeypatch)
    latest = (recipe.parent / "runs" / "latest").resolve()
    resumed = resume(latest)
    again = [json.loads(line) for line in (latest / "journal.jsonl").read_text().splitlines()]
    assert resumed.error is None and calm.error is None
    assert resumed.results["grpo"].outputs["model"] == calm.results["grpo"].outputs["model"]
    assert told(again) == told(events)
    steps = [event["step"] for event in again if event.get("kind") == "metric"]
    assert steps == sorted(set(steps)), "no step is told twice"
    mine, theirs = (dict(one.results["grpo"].metrics) for one in (resumed, calm))
    assert {**mine, "cpu_s": 0} == {**theirs, "cpu_s": 0}
