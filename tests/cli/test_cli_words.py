"""What the command line takes for what, and what it says when a word is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import FAST, RECIPE, Cli, command, environment

ROOT = Path(__file__).parent.parent.parent


def test_help_names_every_command_in_the_order_of_use(cli: Cli, tmp_path: Path) -> None:
    listed = [line.split()[0] for line in cli("--help", cwd=tmp_path).stdout.partition("Commands:")[2].splitlines()[1:]]
    expected = "run resume plan check config list schema init runs show logs diff compare prompt export doctor ui sync"
    assert listed == [*expected.split(), "completion"]
    for name in listed:
        assert cli(name, "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek", "x.yaml"], "no such command or recipe 'chek'; did you mean 'check'?"),
        (["my_task"], "did you mean 'recipes/my_task.yaml'?"),
        (["recipes/my_tsk.yaml"], "recipes/my_tsk.yaml: no such recipe; did you mean 'recipes/my_task.yaml'?"),
        (["recipes/"], "this is a folder"),
        ([RECIPE, "seed"], "'seed' is not an override"),
        ([RECIPE, "--unti", "apo"], "No such option '--unti'. (Did you mean"),
        ([RECIPE, "--until", "apoo"], "--until apoo: no such stage"),
        (["plan", RECIPE, "--only", "apo", "--from", "apo"], "--only cannot be combined"),
        (["show", "latest"], "there is no run yet"),
        (["resume", "nothing"], "no run 'nothing'"),
        (["compare", "latest"], "there is no run yet"),
        ([RECIPE, "--sweep", "seed"], "is not KEY=A,B"),
        (["list", "stage"], "'stage' is not one of"),
        (["init", "--template", "blnk"], "'blnk' is not one of"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else "",
)
def test_a_wrong_word_exits_2_and_says_what_was_meant(cli: Cli, task: Path, arguments: list[str], message: str) -> None:
    done = cli(*arguments, cwd=task)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert not (task / "runs").exists(), "nothing was begun"


def test_an_unknown_override_key_is_located_and_suggested(cli: Cli, task: Path) -> None:
    done = cli(RECIPE, "stages.apo.budget.max_rolouts=10", "sed=1", cwd=task)
    assert done.returncode == 2
    assert "max_rollouts" in done.stderr and "did you mean 'seed'" in done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_six_mistakes_are_six_located_errors(cli: Cli, task: Path) -> None:
    text = (task / RECIPE).read_text("utf-8")
    text = text.replace("seed: 7", "sede: 7").replace("agent.py:answer", "agent.py:anwser")
    text = text.replace("range: [0, 1]", "range: [1, 0]").replace("split: test}\n  apo", "split: tets}\n  apo")
    text = text.replace("coach: coach", "coach: choach").replace("max_rollouts: 200", "max_rollouts: many")
    (task / "recipes/bad.yaml").write_text(text, "utf-8")
    for arguments in (["check", "recipes/bad.yaml"], ["recipes/bad.yaml"], ["plan", "recipes/bad.yaml"]):
        done = cli(*arguments, cwd=task)
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert len(lines) == 6, done.stderr
        assert all(line.startswith("error: recipes/bad.yaml:") for line in lines)


def test_a_missing_key_exits_5(cli: Cli, task: Path) -> None:
    overrides = ["models.coach.provider=litellm", "models.coach.name=openai/gpt-4.1", "models.coach.api_key_env=NO_KEY"]
    done = cli("run", RECIPE, *overrides, cwd=task)
    assert done.returncode == 5
    assert "NO_KEY" in done.stderr


def test_a_budget_in_dollars_without_a_price_is_found_before_anything_runs(cli: Cli, task: Path) -> None:
    unknown = ["models.coach.provider=openai", "models.coach.name=own", "models.coach.base_url=http://127.0.0.1:9/v1"]
    done = cli("plan", RECIPE, *unknown, "budget.max_cost_usd=1", cwd=task)
    assert done.returncode == 2, done.stderr
    assert re.search(r"yaml:\d+:\d+: models\.coach: no price of 'own' is known: budget\.max_cost_usd 1 ", done.stderr)
    assert cli("plan", RECIPE, *unknown, "budget.max_cost_usd=null", cwd=task).returncode == 0


def test_check_takes_several_recipes_and_reports_each(cli: Cli, task: Path) -> None:
    (task / "recipes/broken.yaml").write_text("version: 1\nname: [", "utf-8")
    done = cli("check", RECIPE, "recipes/broken.yaml", cwd=task)
    assert done.returncode == 2
    assert f"{RECIPE}: ok" in done.stdout
    assert "error: recipes/broken.yaml:" in done.stderr


def test_an_unexpected_exception_is_our_bug_and_leaks_nothing(tmp_path: Path) -> None:
    program = """
import sys, click
from lightningrun.cli import cli, main
def fail(): raise RuntimeError("the key is sk-canary-0123456789abcdef")
cli.add_command(click.Command("boom", callback=fail))
sys.exit(main(["boom"]))
"""
    env = environment(OPENAI_API_KEY="sk-canary-0123456789abcdef", TMPDIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "canary" not in done.stderr
    report = next(tmp_path.glob("lightningrun-bug-*.txt"))
    assert str(report) in done.stderr
    assert "RuntimeError" in report.read_text("utf-8") and "canary" not in report.read_text("utf-8")


def test_a_reader_that_leaves_early_is_no_error(task: Path) -> None:
    shell = f"{sys.executable} -m lightningrun schema | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=task, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_color_and_pipes_get_plain_text(cli: Cli, task: Path) -> None:
    for env in ({}, {"NO_COLOR": "1"}):
        done = cli("plan", RECIPE, cwd=task, **env)
        assert "\x1b[" not in done.stdout + done.stderr


def test_a_terminal_gets_colours_unless_it_asks_for_none(task: Path) -> None:
    def on_a_terminal(**env: str) -> str:
        reader, writer = os.openpty()
        child = subprocess.Popen(command("plan", RECIPE), cwd=task, env=environment(**env), stdout=writer)
        os.close(writer)
        text = b""
        while True:
            try:
                text += os.read(reader, 65536)
            except OSError:  # how Linux says that the other end has gone
                break
        os.close(reader)
        assert child.wait() == 0
        return text.decode()

    assert "\x1b[" in on_a_terminal()
    assert "\x1b[" not in on_a_terminal(NO_COLOR="1")


def test_config_says_why(cli: Cli, task: Path) -> None:
    done = cli("config", RECIPE, "seed=11", "--why", "seed", cwd=task)
    assert done.returncode == 0
    first, last = done.stdout.splitlines()
    assert first.startswith("recipes/my_task.yaml:5:") and "7" in first
    assert "override" in last and "11" in last
    resolved = cli("config", RECIPE, "seed=11", cwd=task).stdout
    assert "seed: 11" in resolved and "You sort support tickets" in resolved


def test_lists(cli: Cli, task: Path) -> None:
    assert cli("list", cwd=task).stdout.startswith("recipes/my_task.yaml  Sort support tickets")
    assert {line.split()[0] for line in cli("list", "stages", cwd=task).stdout.splitlines()} >= {"evaluate", "apo"}
    assert {line.split()[0] for line in cli("list", "providers", cwd=task).stdout.splitlines()} >= {"openai", "python"}
    assert [line.split()[0] for line in cli("list", "templates", cwd=task).stdout.splitlines()] == [
        "blank",
        "sql_agent",
    ]


def test_schema_is_written_and_is_a_schema(cli: Cli, task: Path) -> None:
    assert cli("schema", "-o", "s.json", cwd=task).returncode == 0
    assert json.loads((task / "s.json").read_text("utf-8"))["properties"]["stages"]


def test_init_overwrites_nothing(cli: Cli, task: Path) -> None:
    (task / RECIPE).write_text("mine", "utf-8")
    done = cli("init", cwd=task)
    assert done.returncode == 2 and RECIPE in done.stderr
    assert (task / RECIPE).read_text("utf-8") == "mine"


def test_completion_scripts_and_their_answers(cli: Cli, task: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_LIGHTNINGRUN_COMPLETE" in cli("completion", shell, cwd=task).stdout
    env = {"_LIGHTNINGRUN_COMPLETE": "bash_complete", "COMP_WORDS": "lightningrun sh", "COMP_CWORD": "1"}
    done = subprocess.run(command(), cwd=task, env=environment(**env), capture_output=True, text=True)
    assert "show" in done.stdout


def test_doctor_shows_which_keys_are_set_and_never_their_values(cli: Cli, task: Path) -> None:
    done = cli("doctor", cwd=task, OPENAI_API_KEY="sk-canary-0123456789abcdef", ANTHROPIC_API_KEY="")
    assert done.returncode == 0
    lines = {" ".join(line.split()[1:2]): line for line in done.stdout.splitlines()}
    assert lines["OPENAI_API_KEY"].endswith("  set") and lines["ANTHROPIC_API_KEY"].endswith("not set")
    assert "canary" not in done.stdout + done.stderr


def test_doctor_asks_each_role_when_told_to(cli: Cli, task: Path) -> None:
    done = cli("doctor", RECIPE, "--call", cwd=task)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "call policy" in done.stdout and "call coach" in done.stdout
    assert not (task / "runs").exists()


def test_dry_run_is_plan_and_starts_nothing(cli: Cli, task: Path) -> None:
    assert cli(RECIPE, "-n", FAST, cwd=task).stdout == cli("plan", RECIPE, FAST, cwd=task).stdout
    assert cli("-n", RECIPE, FAST, cwd=task).returncode == 0, "options may come first"
    assert cli("plan", RECIPE, "--exit-code", cwd=task).returncode == 10
    stages = json.loads(cli("plan", RECIPE, "--json", cwd=task).stdout)["stages"]
    assert [stage["action"] for stage in stages] == ["run", "run", "run"]
    assert not (task / "runs").exists()
