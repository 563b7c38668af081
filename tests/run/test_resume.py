"""kill -9, Ctrl-C and an edited recipe: a resumed run ends as an undisturbed one and repeats nothing finished."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lightningrun.files import read_journal
from tests.run.project import command, environment, lightningrun, make_project, show

REPOSITORY = Path(__file__).parents[2]
WORKERS = 4
SLOW = ("models.policy.args.delay_s=0.02",)


def outcome(root: Path, run: str = "latest") -> dict[str, Any]:
    """What must be equal after any number of kills: the prompt, and every score of every stage."""
    shown = show(root, run)
    prompt = lightningrun(root, "prompt", run)
    assert prompt.returncode == 0, prompt.stderr
    stages = {
        name: {k: v for k, v in stage["metrics"].items() if not k.endswith(("_s", "_per_s"))}
        for name, stage in shown["stages"].items()
    }
    return {"status": shown["status"], "prompt": prompt.stdout, "stages": stages}


def start(root: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        cwd=root,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def journal_lines(root: Path) -> int:
    path = root / "runs" / "latest" / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def repeated(seen: Path) -> int:
    counts = collections.Counter(seen.read_text().splitlines())
    return sum(count - 1 for count in counts.values())


def descendants_gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def process_tree(pid: int) -> set[int]:
    found, todo = set(), [pid]
    while todo:
        current = todo.pop()
        found.add(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def kills(tmp_path: Path, moments: int, seed: int) -> None:
    calm = make_project(tmp_path / "calm")
    assert lightningrun(calm, "recipe.yaml", *SLOW).returncode == 0
    expected = outcome(calm)
    total = journal_lines(calm)
    rng = random.Random(seed)
    for moment in range(moments):
        root = make_project(tmp_path / f"killed-{moment}")
        seen = root / "seen"
        env = environment(CALLS_SEEN=str(seen))
        killed, arguments = 0, ["recipe.yaml", *SLOW]
        for _ in range(1 + moment % 2):  # every second one is killed twice
            target = rng.randrange(1, total)
            process = start(root, *arguments, env=env)
            wait_for(lambda: journal_lines(root) >= target or process.poll() is not None)  # noqa: B023
            tree = process_tree(process.pid)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            wait_for(lambda: descendants_gone(tree), 10)  # noqa: B023
            arguments = ["resume"]
        done = lightningrun(root, "resume", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert outcome(root) == expected
        assert repeated(seen) <= killed * WORKERS, f"killed at {target} of {total} events"


def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    kills(tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    kills(tmp_path, 20, seed=int(os.environ.get("KILL_SEED", "2")))


def test_ctrl_c_drains_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    process = subprocess.Popen(
        command("recipe.yaml", "models.policy.args.delay_s=0.1"),
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: journal_lines(root) > 12)
    tree = process_tree(process.pid)
    assert len(tree) > WORKERS
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "lightningrun resume" in said and "Traceback" not in said
    wait_for(lambda: descendants_gone(tree), 10)
    assert show(root)["status"] == "interrupted"
    assert lightningrun(root, "resume", "models.policy.args.delay_s=0").returncode == 0


def test_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    process = start(root, "recipe.yaml", "models.policy.args.delay_s=5")
    wait_for(lambda: journal_lines(root) >= 2)
    time.sleep(0.5)
    tree = process_tree(process.pid)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    process.wait(timeout=10)
    assert process.returncode == 130 and time.monotonic() - began < 3
    wait_for(lambda: descendants_gone(tree), 10)


def test_resume_uses_the_frozen_recipe(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    process = start(root, "recipe.yaml", *SLOW)
    wait_for(lambda: journal_lines(root) > 10)
    process.kill()
    process.wait()
    recipe = root / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4").replace("max_rollouts: 200", "max_rollouts: 90"))
    (root / "adder" / "system.md").write_text("Say zero, carefully.")
    assert lightningrun(root, "resume").returncode == 0
    lock = json.loads((root / "runs" / "latest" / "lock.json").read_text())
    assert lock["seed"] == 3
    calm = make_project(tmp_path / "calm")
    assert lightningrun(calm, "recipe.yaml", *SLOW).returncode == 0
    assert outcome(root) == outcome(calm)


def test_overrides_on_resume_are_shown_and_planned_anew(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    assert lightningrun(root, "recipe.yaml", "--until", "baseline").returncode == 0
    done = lightningrun(root, "resume", "stages.final.gate.min.reward=0.99", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.99" in done.stdout + done.stderr


def test_two_at_once_on_one_run_the_second_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    process = start(root, "recipe.yaml", *SLOW)
    wait_for(lambda: journal_lines(root) > 5)
    second = lightningrun(root, "resume")
    assert second.returncode == 75 and "Traceback" not in second.stderr
    assert str(process.pid) in second.stderr
    assert process.wait(timeout=60) == 0


def test_eight_runs_at_once_all_end_well(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    running = [start(root, "recipe.yaml", f"seed={n}") for n in range(8)]
    assert [process.wait(timeout=100) for process in running] == [0] * 8
    assert len([p for p in (root / "runs").iterdir() if (p / "lock.json").exists() and not p.is_symlink()]) == 8


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    """The demo's first half, MLflow included: same prompt and scores, and no answered call asked again.

    Five runs, each killed four times and resumed after each.
    """
    recipe = ("recipes/sql_agent_apo.yaml", "--runs-dir")

    def final(runs: Path) -> dict[str, Any]:
        prompt = lightningrun(REPOSITORY, "prompt", "latest", "--runs-dir", str(runs)).stdout
        return {"prompt": prompt, "stages": metrics_of(runs)}

    calm = tmp_path / "calm"
    began = time.monotonic()
    assert lightningrun(REPOSITORY, *recipe, str(calm)).returncode == 0
    usual_s = time.monotonic() - began
    expected = final(calm)
    assert expected["stages"]["final"]["reward"] > expected["stages"]["baseline"]["reward"] + 0.2
    rng = random.Random(int(os.environ.get("KILL_SEED", "3")))
    for number in range(5):
        runs = tmp_path / f"runs-{number}"
        process = start(REPOSITORY, *recipe, str(runs))
        wait_for(lambda: (runs / "latest").exists())  # noqa: B023
        for _ in range(4):
            time.sleep(rng.uniform(0, usual_s / 2))
            process.kill()
            process.wait()
            process = start(REPOSITORY, "resume", "--runs-dir", str(runs))
        process.communicate()
        assert process.returncode == 0
        assert final(runs) == expected
        assert asked_once(runs)


def metrics_of(runs: Path) -> dict[str, dict[str, Any]]:
    shown = json.loads(lightningrun(REPOSITORY, "show", "latest", "--json", "--runs-dir", str(runs)).stdout)
    return {name: stage["metrics"] for name, stage in shown["stages"].items()}


def asked_once(runs: Path) -> bool:
    answered: collections.Counter[str] = collections.Counter()
    for _, call in read_journal(runs / "latest" / "calls.jsonl"):
        if call["response"] is not None and not call["cached"]:
            answered[call["cache_key"]] += 1
    return set(answered.values()) == {1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_killed_while_it_trains(tmp_path: Path) -> None:
    """The demo's second half, shortened: the same weights, and the same scores of every step's evaluations."""
    pytest.importorskip("verl", exc_type=ImportError)
    short = [
        "stages.apo.when=never", "stages.final.when=never", "stages.sft.steps=60", "stages.sft.save_every_s=0.2",
        "stages.grpo.steps=3", "stages.grpo.batch=8", "stages.grpo.eval.every=2", "stages.grpo.save_every_s=0.1",
    ]  # fmt: skip
    recipe = ("recipes/sql_agent.yaml", *short, "--until", "grpo", "--runs-dir")

    def final(runs: Path) -> dict[str, Any]:
        made = {
            stage: json.loads((runs / "latest" / "stages" / stage / "outputs" / "model" / "manifest.json").read_text())
            for stage in ("sft", "grpo")
        }
        scores = {name: {k: v for k, v in m.items() if k != "cpu_s"} for name, m in metrics_of(runs).items()}
        return {"weights": {stage: manifest["files"] for stage, manifest in made.items()}, "scores": scores}

    calm = tmp_path / "calm"
    done = lightningrun(REPOSITORY, *recipe, str(calm))
    assert done.returncode == 0, done.stdout + done.stderr
    expected, total = final(calm), journal_lines_of(calm)
    begins = journal_lines_of(calm, before='"sft"')
    rng = random.Random(int(os.environ.get("KILL_SEED", "4")))
    for moment in range(3):
        runs = tmp_path / f"runs-{moment}"
        target = rng.randrange(begins, total)
        process = start(REPOSITORY, *recipe, str(runs))
        wait_for(lambda: journal_lines_of(runs) >= target or process.poll() is not None, 200)  # noqa: B023
        process.kill()
        process.wait()
        done = lightningrun(REPOSITORY, "resume", "--runs-dir", str(runs))
        assert done.returncode == 0, done.stdout + done.stderr
        assert final(runs) == expected, f"killed at {target} of {total} events"


def journal_lines_of(runs: Path, before: str = "") -> int:
    """Lines of the latest run's journal; with ``before``, those until one that holds it."""
    path = runs / "latest" / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((n for n, line in enumerate(lines) if before in line), len(lines)) if before else len(lines)
