"""A run as a user sees it: stages, reuse, overrides, gates, budgets, and what went wrong in words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import lightningrun as package
from tests.run.project import MODELS, RECIPE, environment, lightningrun, make_project, show


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one finished run. Tests that use it must not change its files."""
    root = make_project(tmp_path_factory.mktemp("finished") / "p")
    done = lightningrun(root, "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_apo_repairs_the_prompt_and_final_confirms(finished: Path) -> None:
    stages = show(finished)["stages"]
    assert stages["baseline"]["metrics"]["reward"] < 0.8
    assert stages["apo"]["metrics"]["promoted"] is True
    assert stages["final"]["metrics"]["reward"] == 1.0
    best = lightningrun(finished, "prompt", "latest")
    assert best.stdout.strip() == "You add numbers. Work carefully. Answer with the number."


def test_second_run_reuses_every_stage_quickly(finished: Path) -> None:
    began = time.monotonic()
    done = lightningrun(finished, "recipe.yaml")
    assert done.returncode == 0
    assert time.monotonic() - began < 15, "under 5 s on a quiet machine; three times that is granted to a busy one"
    shown = show(finished)
    assert {stage["status"] for stage in shown["stages"].values()} == {"reused"}
    assert "reused" in done.stdout + done.stderr
    assert (
        not (finished / "runs" / "latest" / "calls.jsonl").exists()
        or not (finished / "runs" / "latest" / "calls.jsonl").read_text()
    )


def test_an_override_re_runs_what_it_touches_and_what_follows(finished: Path) -> None:
    done = lightningrun(finished, "plan", "recipe.yaml", "stages.apo.reflection.batch=4", "--json")
    plan = {stage["id"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert plan["baseline"]["action"] == "cached"
    assert plan["apo"]["action"] == plan["final"]["action"] == "run"
    assert "reflection.batch 8 -> 4" in plan["apo"]["reason"]
    assert "prompts" in plan["final"]["reason"]


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("adder/reward.py", "wrong: got", "bad: got", "reward"),
        ("adder/agent.py", "import json, os", "import os, json", "agent"),
        ("adder/system.md", "You add", "You sum", "prompts"),
        ("adder/test.jsonl", "What is 200", "How much is 200", "data.test"),
        ("adder/models.py", "role, request", "part, request", "sources"),
    ],
)
def test_plan_says_which_file_made_a_stage_stale(tmp_path: Path, file: str, old: str, new: str, why: str) -> None:
    root = make_project(tmp_path / "p")
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 0
    assert json.loads(lightningrun(root, "plan", "recipe.yaml", "--json").stdout)["stages"][0]["action"] == "cached"
    path = root / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    stage = json.loads(lightningrun(root, "plan", "recipe.yaml", "--json").stdout)["stages"][0]
    assert stage["action"] == "run" and why in stage["reason"]


def test_a_damaged_cache_is_redone_not_trusted(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 0
    (damaged,) = (root / "runs" / "cache").glob("*/rollouts.jsonl")
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 0
    assert show(root)["stages"]["baseline"]["status"] == "succeeded"
    assert json.loads(lightningrun(root, "plan", "recipe.yaml", "--json").stdout)["stages"][0]["action"] == "cached"


def test_a_good_baseline_skips_apo_and_final_takes_the_recipes_prompt(tmp_path: Path) -> None:
    root = make_project(
        tmp_path / "p",
        prompt="You add numbers carefully.",
        recipe=RECIPE.replace("gate: {min: {reward: 0.9}, beats: baseline}", "gate: {min: {reward: 0.9}}"),
    )
    done = lightningrun(root, "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = show(root)["stages"]
    assert stages["apo"]["status"] == "skipped"
    assert stages["final"]["metrics"]["reward"] == 1.0


def test_gate_not_met_is_exit_4_and_keeps_the_result(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    done = lightningrun(root, "recipe.yaml", "stages.apo.when=never")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert show(root)["stages"]["final"]["metrics"]["reward"] < 0.9


def test_budget_reached_is_exit_6_and_never_overshot(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    seen = root / "seen"
    done = lightningrun(root, "recipe.yaml", "budget.max_llm_calls=10", env=environment(CALLS_SEEN=str(seen)))
    assert done.returncode == 6, done.stdout + done.stderr
    assert len(seen.read_text().splitlines()) <= 10
    again = lightningrun(root, "resume", "budget.max_llm_calls=5000", env=environment(CALLS_SEEN=str(seen)))
    assert again.returncode == 0, again.stdout + again.stderr


def test_keep_going_runs_what_does_not_need_the_failed_stage(tmp_path: Path) -> None:
    recipe = RECIPE.replace(
        "  baseline: {type: evaluate, split: test}\n",
        "  strict: {type: evaluate, split: train, gate: {min: {reward: 1.0}}}\n"
        "  baseline: {type: evaluate, split: test}\n",
    )
    root = make_project(tmp_path / "p", recipe=recipe)
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 4
    assert "baseline" not in {k for k, v in show(root)["stages"].items() if v["status"] == "succeeded"}
    assert lightningrun(root, "recipe.yaml", "--until", "baseline", "--keep-going").returncode == 4
    assert show(root)["stages"]["baseline"]["status"] == "succeeded"


def test_selection_of_stages(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    refused = lightningrun(root, "recipe.yaml", "--from", "apo")
    assert refused.returncode == 2 and "baseline" in refused.stderr
    assert not (root / "runs").exists(), "a run that cannot begin leaves nothing"
    assert lightningrun(root, "recipe.yaml", "--only", "baseline").returncode == 0
    assert show(root)["stages"]["apo"]["status"] == "skipped"
    assert lightningrun(root, "recipe.yaml", "--from", "apo").returncode == 0
    shown = show(root)["stages"]
    assert shown["baseline"]["status"] == "reused" and shown["final"]["status"] == "succeeded"
    assert lightningrun(root, "recipe.yaml", "--force=final").returncode == 0
    shown = show(root)["stages"]
    assert shown["apo"]["status"] == "reused" and shown["final"]["status"] == "succeeded"
    unknown = lightningrun(root, "recipe.yaml", "--until", "finale")
    assert unknown.returncode == 2 and "final" in unknown.stderr


def test_an_agent_that_does_not_import_is_said_before_any_call(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p", agent="import no_such_thing\ndef answer(question): ...\n")
    seen = root / "seen"
    done = lightningrun(root, "recipe.yaml", env=environment(CALLS_SEEN=str(seen)))
    assert done.returncode in (2, 3, 5) and "no_such_thing" in done.stderr
    assert "Traceback (most recent" not in done.stderr and not seen.exists()


def test_a_model_that_raises_fails_the_stage_and_is_not_scored(tmp_path: Path) -> None:
    broken = MODELS.replace(
        "def student(request, delay_s=0.0):", "def student(request, delay_s=0.0):\n    raise OSError('gone')"
    )
    root = make_project(tmp_path / "p", models=broken)
    done = lightningrun(root, "recipe.yaml", "models.policy.retries=0")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "gone" in done.stderr and "Traceback (most recent" not in done.stderr
    assert "reward" not in show(root)["stages"]["baseline"]["metrics"]


def test_the_same_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_project(tmp_path / "p")
    monkeypatch.chdir(root)
    experiment = package.load("recipe.yaml", ["stages.apo.budget.max_rollouts=150"])
    assert [stage.action.value for stage in experiment.plan().stages] == ["run", "undecided", "run"]
    events: list[str] = []
    result = experiment.run(observers=[lambda record: events.append(record["kind"])])
    assert result.exit_code == 0 and result.results["final"].metrics["reward"] == 1.0
    assert events[0] == "run_started" and events[-1] == "run_finished"


def test_sources_are_found_from_another_folder(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 0
    run = next(p for p in (root / "runs").iterdir() if (p / "lock.json").exists() and not p.is_symlink())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = lightningrun(elsewhere, "resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stage_may_have_another_model_answer_the_agent(tmp_path: Path) -> None:
    recipe = RECIPE.partition("stages:")[0].replace(
        "  coach:", '  careful: {provider: python, name: "adder.models:careful"}\n  coach:'
    )
    recipe += "stages:\n  baseline: {type: evaluate, split: test}\n"
    recipe += "  other: {type: evaluate, split: test, policy: careful}\n"
    right = "str(sum(map(int, re.findall(r'\\d+', request['messages'][-1]['content'])[:2])))"
    models = f"{MODELS}\ndef careful(request):\n    return {right}\n"
    root = make_project(tmp_path / "p", recipe=recipe, models=models)
    done = lightningrun(root, "recipe.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = show(root)["stages"]
    assert stages["baseline"]["metrics"]["reward"] < 0.8
    assert stages["other"]["metrics"]["reward"] == 1.0

    refused = lightningrun(root, "check", "recipe.yaml", "stages.other.policy=carefull")
    assert refused.returncode == 2 and "careful" in refused.stdout + refused.stderr
