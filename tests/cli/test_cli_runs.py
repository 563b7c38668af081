"""Commands on runs: what a finished run shows, and how runs are started, swept, interrupted and resumed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from lightningrun.cli.sweep import combinations, split_values
from lightningrun.errors import UsageError
from tests.cli.conftest import FAST, RECIPE, Cli, command, environment

RULE = "lower case"
"""What a repaired prompt of the blank task says."""


def run_id(folder: Path) -> str:
    return (folder / "runs/latest").resolve().name


def test_the_summary_tells_the_story(cli: Cli, finished: Path) -> None:
    done = cli("show", cwd=finished)
    assert done.returncode == 0
    text = done.stdout
    assert "simulated: no real model is called" in text
    assert re.search(r"^baseline +0\.\d{3} \[", text, re.M) and re.search(r"^final +0\.\d{3} \[", text, re.M)
    assert re.search(r"^gain +\+0\.\d{3} \[0\.\d+, \d\.\d+\] +confirmed", text, re.M)
    assert "prompt 'system', promoted by apo" in text and re.search(r"^  \+.*label", text, re.M)
    assert re.search(r"^billing +3 ", text, re.M), "a row for each tag"
    assert re.search(r"^coach +\d+ ", text, re.M), "a row for each role"
    assert f"runs/{run_id(finished)}/report.html" in text
    assert "lightningrun prompt" in text and "lightningrun prompt --history" in text and "lightningrun ui" in text
    assert re.search(r"^apo confirmed: p=.*gain on val", text, re.M)


def test_show_json_has_stages_with_status_metrics_outputs_and_cost(cli: Cli, finished: Path) -> None:
    shown = json.loads(cli("show", "latest", "--json", cwd=finished).stdout)
    assert shown["status"] == "succeeded"
    assert list(shown["stages"]) == ["baseline", "apo", "final"]
    for stage in shown["stages"].values():
        assert {"status", "metrics", "outputs", "cost"} <= set(stage)
    wanted = "seed_val best_val promoted p_value rollouts coach_calls llm_calls"
    assert set(wanted.split()) <= set(shown["stages"]["apo"]["metrics"])


def test_prompt_prints_the_text_and_nothing_else(cli: Cli, finished: Path) -> None:
    done = cli("prompt", "latest", cwd=finished)
    assert done.stdout.startswith("You sort support tickets.") and len(done.stdout.splitlines()) >= 2
    assert done.stderr == ""
    assert json.loads(cli("prompt", "--json", cwd=finished).stdout) == {"system": done.stdout.rstrip("\n")}
    assert cli("prompt", "--name", "system", cwd=finished).stdout == done.stdout
    assert "\n+" in cli("prompt", "--diff", cwd=finished).stdout
    wrong = cli("prompt", "--name", "sytem", cwd=finished)
    assert wrong.returncode == 2 and "there is system" in wrong.stderr


def test_how_a_prompt_was_found_is_told_step_by_step(cli: Cli, finished: Path) -> None:
    done = cli("prompt", "--history", cwd=finished)
    assert done.returncode == 0 and "\x1b[" not in done.stdout, "plain when piped"
    steps = re.findall(r"^(.) #(\d+) (.+?)  val (\d\.\d{3})", done.stdout, re.M)
    assert steps[0][0] == "◆" and steps[-1][0] == "★"
    assert float(steps[0][3]) < float(steps[-1][3])
    assert re.search(r"^confirmed: p=\S+ <= \S+, gain on val \+\d", done.stdout, re.M)
    assert re.search(r"^  \+.*label", done.stdout, re.M), "what it changed"
    assert re.search(r"^  • ", done.stdout, re.M), "what the coach saw"
    path = json.loads(cli("prompt", "--history", "--json", cwd=finished).stdout)
    assert [str(step["id"]) for step in path["steps"]] == [step[1] for step in steps]


def test_the_tree_has_every_candidate_and_one_of_them_has_everything(cli: Cli, finished: Path) -> None:
    whole = json.loads(cli("prompt", "--tree", "--json", cwd=finished).stdout)
    tree = cli("prompt", "latest", "--tree", cwd=finished).stdout
    ids: set[int] = set()
    for first, last in re.findall(r"#(\d+)(?:-#(\d+))?", tree.split("\n\n", 1)[1]):
        ids |= set(range(int(first), int(last or first) + 1))
    assert ids == {node["id"] for node in whole["nodes"]}
    winner = whole["path"][-1]
    one = cli("prompt", "--candidate", str(winner), cwd=finished).stdout
    assert "the coach's critique" in one and f"changed from #{whole['path'][-2]}" in one and "prompt 'system'" in one
    assert json.loads(cli("prompt", "--candidate", str(winner), "--json", cwd=finished).stdout)["outcome"] == "winner"
    assert "no candidate 9999" in cli("prompt", "--candidate", "9999", cwd=finished).stderr
    wrong = cli("prompt", "--tree", "--diff", cwd=finished)
    assert wrong.returncode == 2 and "stand alone" in wrong.stderr
    assert "there is apo" in cli("prompt", "--tree", "--stage", "final", cwd=finished).stderr


def test_piped_output_keeps_to_the_columns_asked_for(cli: Cli, finished: Path) -> None:
    for columns in (60, 140):
        shown = cli("prompt", "--history", cwd=finished, COLUMNS=str(columns)).stdout
        assert max(map(len, shown.splitlines())) <= columns
    narrow, wide = (len(cli("show", cwd=finished, COLUMNS=n).stdout.splitlines()) for n in ("60", "140"))
    assert narrow > wide


def test_a_run_is_found_by_latest_id_beginning_and_folder(cli: Cli, finished: Path) -> None:
    run = run_id(finished)
    texts = {cli("prompt", ref, cwd=finished).stdout for ref in ("latest", run, run[:12], f"runs/{run}")}
    assert len(texts) == 1
    other = cli("prompt", run, "--runs-dir", str(finished / "runs"), cwd=finished.parent)
    assert other.stdout in texts


def test_logs_of_a_run_and_of_a_stage(cli: Cli, finished: Path) -> None:
    assert "baseline" in cli("logs", cwd=finished).stdout
    apo = cli("logs", "latest", "apo", cwd=finished).stdout
    assert "promoted" in apo and "baseline starts" not in apo
    assert "did you mean 'apo'" in cli("logs", "latest", "ap", cwd=finished).stderr


def test_export_reproduces_the_run(cli: Cli, finished: Path, tmp_path: Path) -> None:
    exported = tmp_path / "again.yaml"
    assert cli("export", "latest", "-o", str(exported), cwd=finished).returncode == 0
    assert "You sort support tickets" in exported.read_text("utf-8")
    planned = json.loads(cli("plan", str(exported), "--json", cwd=finished).stdout)
    assert {stage["action"] for stage in planned["stages"]} == {"cached"}, "the same keys"


def test_a_second_run_reuses_every_stage_and_says_so(cli: Cli, task: Path) -> None:
    first = cli(RECIPE, FAST, cwd=task)
    assert first.returncode == 0, first.stderr
    assert len(first.stderr.splitlines()) < 30, "bounded, not a line for each rollout"
    again = cli(RECIPE, FAST, cwd=task)
    assert again.returncode == 0
    shown = json.loads(cli("show", "--json", cwd=task).stdout)
    assert shown["totals"]["llm_calls"] == 0 and shown["duration_s"] < 5
    assert again.stderr.count(" reused: ") == 3
    assert cli("plan", RECIPE, FAST, "--exit-code", cwd=task).returncode == 0
    changed = cli("plan", RECIPE, FAST, "stages.apo.reflection.batch=4", cwd=task).stdout
    assert re.search(r"baseline +cached", changed)
    assert re.search(r"apo +run +.*reflection\.batch 8 -> 4", changed)
    forced = json.loads(cli("plan", RECIPE, FAST, "--force=final", "--json", cwd=task).stdout)
    assert [stage["action"] for stage in forced["stages"]] == ["cached", "cached", "run"]
    everything = json.loads(cli("plan", "--force", RECIPE, FAST, "--json", cwd=task).stdout)
    assert [stage["action"] for stage in everything["stages"]] == ["run", "run", "run"]


def test_events_as_json_lines(cli: Cli, task: Path) -> None:
    done = cli(RECIPE, FAST, "--json", "--only", "baseline", cwd=task)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["kind"] == "run_started" and events[-1]["kind"] == "run_finished"
    assert sum(event["kind"] == "rollout" for event in events) == 12
    assert cli(RECIPE, FAST, "-q", "--only", "baseline", cwd=task).stdout == ""


def test_a_gate_that_is_not_met_exits_4(cli: Cli, task: Path) -> None:
    done = cli(RECIPE, FAST, "--only", "baseline", "stages.baseline.gate.min.reward=0.99", cwd=task)
    assert done.returncode == 4
    assert "gate" in done.stderr and "0.99" in done.stderr
    assert "baseline" in done.stdout, "the summary is shown all the same"


def test_a_budget_that_is_reached_exits_6(cli: Cli, task: Path) -> None:
    done = cli(RECIPE, FAST, "budget.max_llm_calls=5", "--only", "baseline", cwd=task)
    assert done.returncode == 6
    assert "lightningrun resume" in done.stderr


def test_runs_compare_and_diff(cli: Cli, task: Path) -> None:
    assert "no run in runs" in cli("runs", cwd=task).stderr
    for seed in ("7", "8"):
        assert cli(RECIPE, FAST, f"seed={seed}", "--only", "baseline", "--name", f"s{seed}", cwd=task).returncode == 0
    listed = [row["run"] for row in json.loads(cli("runs", "--json", cwd=task).stdout)]
    assert [re.sub(r".*-(s\d)-.*", r"\1", name) for name in listed] == ["s7", "s8"]
    assert all(name in cli("runs", cwd=task).stdout for name in listed)
    table = cli("compare", *listed, cwd=task).stdout
    assert "where their recipes differ" in table and re.search(r"^seed +7 +8", table, re.M)
    markdown = cli("compare", *listed, "--format", "md", cwd=task).stdout.splitlines()
    assert len(markdown) == 4 and markdown[0].startswith("| run |")
    both = json.loads(cli("compare", *listed, "--format", "json", cwd=task).stdout)
    assert [run["differs"]["seed"] for run in both] == [7, 8]
    assert "<table>" in cli("compare", *listed, "--format", "html", cwd=task).stdout
    differences = cli("diff", *listed, cwd=task).stdout
    assert "seed: 7 → 8" in differences
    ambiguous = cli("show", listed[0][:4], cwd=task)
    assert ambiguous.returncode == 2 and "matches 2 runs" in ambiguous.stderr


def test_a_sweep_checks_all_then_runs_all_and_compares(cli: Cli, task: Path) -> None:
    bad = cli(RECIPE, FAST, "--sweep", "seed=1,2", "--sweep", "stages.apo.reflection.batch=4,none", cwd=task)
    assert bad.returncode == 2 and "reflection.batch" in bad.stderr
    assert not (task / "runs").exists(), "nothing runs unless every combination is right"
    done = cli(RECIPE, FAST, "--only", "baseline", "--sweep", "seed=1,2,3", "-j", "2", cwd=task)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("seed=")]
    assert len(rows) == 3 and all("reward 0." in row for row in rows)
    assert "lightningrun compare" in done.stdout
    assert len(list((task / "runs").glob("2*/lock.json"))) == 3


def test_values_of_a_sweep() -> None:
    assert split_values("a,[1,2],'x,y',{b: 1, c: 2}") == ["a", "[1,2]", "'x,y'", "{b: 1, c: 2}"]
    assert combinations(["a=1,2", "b=3,4"]) == [("a=1", "b=3"), ("a=1", "b=4"), ("a=2", "b=3"), ("a=2", "b=4")]
    with pytest.raises(UsageError):
        combinations(["a="])


def test_ctrl_c_drains_exits_130_and_resume_finishes(cli: Cli, task: Path) -> None:
    slow = (task / "tasks/my_task/simulated.py").read_text("utf-8")
    slow = slow.replace("import random\n", "import random\nimport time\n")
    slow = slow.replace(
        "def student(request: dict) -> str:\n", "def student(request: dict) -> str:\n    time.sleep(0.4)\n"
    )
    (task / "tasks/my_task/simulated.py").write_text(slow, "utf-8")
    child = subprocess.Popen(
        command(RECIPE, FAST, "--json", "--only", "baseline", "execution.workers=1"),
        cwd=task,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["kind"] == "rollout":
            child.send_signal(signal.SIGINT)
            break
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == 130
    run = run_id(task)
    assert f"lightningrun resume {run}" in stderr and "Traceback" not in stderr
    assert json.loads(cli("show", "--json", cwd=task).stdout)["status"] == "interrupted"
    resumed = cli("resume", cwd=task)
    assert resumed.returncode == 0, resumed.stderr
    shown = json.loads(cli("show", "--json", cwd=task).stdout)
    assert (shown["run"], shown["status"], shown["attempts"]) == (run, "succeeded", 2)


def test_resume_takes_overrides_without_a_run(cli: Cli, task: Path) -> None:
    assert cli(RECIPE, FAST, "--only", "baseline", cwd=task).returncode == 0
    done = cli("resume", "stages.baseline.samples=2", cwd=task)
    assert done.returncode == 0, done.stderr
    assert "changed: +" in done.stderr and "samples: 2" in done.stderr


def test_the_sql_agent_template_is_complete(cli: Cli, tmp_path: Path) -> None:
    made = cli("init", "here", "--template", "sql_agent", cwd=tmp_path)
    assert made.stdout.endswith("next: cd here && lightningrun recipes/sql_agent_apo.yaml\n")
    done = cli("check", "recipes/sql_agent_apo.yaml", cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_sql_agent_template_runs_at_once(cli: Cli, tmp_path: Path) -> None:
    cli("init", "--template", "sql_agent", cwd=tmp_path)
    done = cli("recipes/sql_agent_apo.yaml", FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "confirmed (95%, paired)" in done.stdout


@pytest.mark.parametrize("options", [("--json",), ("-v",), ("-q",)], ids=str)
def test_a_key_in_a_failure_reaches_neither_screen_nor_disk(cli: Cli, task: Path, options: tuple[str, ...]) -> None:
    leaking = "import os\n\ndef student(request):\n    raise RuntimeError(os.environ['MY_MODEL'])\n"
    (task / "tasks/my_task/leaking.py").write_text(leaking, "utf-8")
    overrides = ["models.policy.name=tasks/my_task/leaking.py:student", "models.policy.api_key_env=MY_MODEL"]
    overrides += ["models.policy.retries=0", FAST]
    done = cli(RECIPE, *overrides, "--only", "baseline", *options, cwd=task, MY_MODEL="canary-0123456789")
    assert done.returncode == 3 and "RuntimeError" in done.stderr
    again = cli("resume", *options, cwd=task, MY_MODEL="canary-0123456789")
    texts = [done.stdout, done.stderr, again.stdout, again.stderr]
    texts += [path.read_text("utf-8", "replace") for path in (task / "runs").rglob("*") if path.is_file()]
    assert len(texts) > 6 and not [text for text in texts if "canary" in text]


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_its_members_can_be_resumed(cli: Cli, task: Path) -> None:
    slow = (task / "tasks/my_task/simulated.py").read_text("utf-8")
    slow = slow.replace(
        "def student(request: dict) -> str:\n", "def student(request: dict) -> str:\n    time.sleep(0.4)\n"
    )
    (task / "tasks/my_task/simulated.py").write_text(f"import time\n{slow}", "utf-8")
    arguments = (RECIPE, FAST, "execution.workers=1", "--only", "baseline", "--sweep", "seed=1,2,3", "-j", "2")
    child = subprocess.Popen(command(*arguments), cwd=task, env=environment(), stderr=subprocess.PIPE, text=True)
    journals: list[Path] = []
    while len(journals) < 2 or not all('"kind":"rollout"' in path.read_text("utf-8") for path in journals):
        assert child.poll() is None
        journals = list((task / "runs").glob("2*/journal.jsonl"))
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == 130 and "the sweep was interrupted" in stderr
    listed = json.loads(cli("runs", "--json", cwd=task).stdout)
    assert [run["status"] for run in listed] == ["interrupted", "interrupted"], "the third never began"
    assert cli("resume", listed[0]["run"], cwd=task).returncode == 0
