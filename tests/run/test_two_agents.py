"""A writer and a checker, told apart by their prompts: only the writer is optimised, each is accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.run.project import AGENT, RECIPE, lightningrun, make_project, show

TWO = (
    AGENT.replace("def answer(question, prompts, llm):", "def ask(system, question, llm):").replace(
        'prompts["system"]', "system"
    )
    + """
def answer(question, prompts, llm):
    said = ask(prompts["writer"], question, llm)
    return ask(prompts["checker"], said, llm)
"""
)
MODELS = """
import re

def student(request):
    system, text = request["messages"][0]["content"], request["messages"][-1]["content"]
    if "check" in system:
        return text
    left, right = map(int, re.findall(r"\\d+", text)[:2])
    return str(left + right + (0 if "carefully" in system or (left + right) % 2 == 0 else 1))

def coach(request):
    question = request["messages"][-1]["content"]
    with open("asked.txt", "a") as asked:
        asked.write(question + "\\0")
    return "It slips.\\n```\\nYou add numbers. Work carefully. Answer with the number.\\n```"
"""
PROMPTS = """  prompts:
    writer: {text: "You add numbers. Answer with the number."}
    checker: {text: "You check a number and repeat it."}
"""


def recipe() -> str:
    text = RECIPE.replace("  prompts: {system: {file: adder/system.md}}\n", PROMPTS).replace(
        ", args: {delay_s: 0.0}", ""
    )
    return text.replace("    coach: coach\n", "    coach: coach\n    optimize: [writer]\n")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("two"), agent=TWO, models=MODELS, recipe=recipe())
    result = lightningrun(root, "run", "recipe.yaml")
    assert result.returncode == 0, result.stderr
    (root / "said.txt").write_text(result.stdout)
    return root


def test_only_the_chosen_agent_s_prompt_is_improved(done: Path) -> None:
    outputs = done / "runs" / "latest" / "stages" / "apo" / "outputs" / "prompts"
    assert "carefully" in (outputs / "writer.md").read_text()
    assert "check a number" in (outputs / "checker.md").read_text()
    for question in (done / "asked.txt").read_text().split("\0")[:-1]:
        assert '<current_prompt name="checker">' not in question
        assert "[agent 'writer' asks]" in question and "[agent 'checker' asks]" in question, "both are in the trace"


def test_each_agent_is_accounted_for_wherever_a_run_is_told(done: Path) -> None:
    run = show(done)
    final = run["stages"]["final"]["metrics"]
    assert [final[f"agent.{name}.calls"] for name in ("writer", "checker")] == [24, 24]
    assert final["agent.checker.errors"] == 0 and final["agent.writer.tokens"] > 0
    assert not [name for name in final if "latency" in name], "nothing may depend on times"
    events = [json.loads(line) for line in (done / "runs/latest/journal.jsonl").read_text().splitlines()]
    (told,) = [event["values"] for event in events if event["kind"] == "metric" and event["stage"] == "final"]
    assert told["agent.writer.latency_s"] >= 0 and told["agent.writer.calls"] == 24
    rollouts: list[Any] = [event["rollout"] for event in events if event["kind"] == "rollout"]
    assert all({name: did["calls"] for name, did in one["agents"].items()} == {"writer": 1, "checker": 1}
               for one in rollouts)  # fmt: skip
    assert run["totals"]["by_agent"]["writer"]["calls"] == len(rollouts)
    table = re.search(r"agent +calls +tokens.*?\n((?:(?:writer|checker) .*\n)+)", (done / "said.txt").read_text())
    assert table and table[1].split()[0] == "checker"
    assert "<th>agent</th>" in (done / "runs/latest/report.html").read_text()


def test_a_rollout_is_shown_as_a_tree(done: Path) -> None:
    shown = lightningrun(done, "logs", "latest", "baseline", "test-200")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert re.match(r"baseline / test-200 +succeeded, reward \d\.000", lines[0])
    tree = [line for line in lines if "◆" in line or "●" in line]
    assert [re.sub(r"[│├└─ ]+", "", line.split("  +")[0])[1:] for line in tree] == [
        "agent", "writer", "writer→adder.models:student", "checker", "checker→adder.models:student",
    ]  # fmt: skip
    assert all(re.search(r"\+\d+ ms · \d+ ms · \d+ → \d+ tokens", line) for line in tree)
    assert "→ What is 200 + 603?" in shown.stdout


def test_a_reused_stage_s_rollouts_are_those_of_the_run_that_made_them(done: Path) -> None:
    first = (done / "runs" / "latest").resolve()
    again = lightningrun(done, "run", "recipe.yaml", "--only", "baseline")
    assert again.returncode == 0, again.stderr
    second = (done / "runs" / "latest").resolve()
    shown = lightningrun(done, "logs", "latest", "baseline", "test-200")
    page = (second / "report.html").read_text()
    (done / "runs" / "latest").unlink()
    (done / "runs" / "latest").symlink_to(first.name)
    assert first != second and f"executed in run {first.name}" in shown.stdout and "writer → " in shown.stdout
    assert "writer → " in page[page.index("Rollouts that failed") :]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("test-999", "executed no rollout 'test-999'; it has, among others: .*/test/test-2"),
        ("test-2", "'test-2' is 24 rollouts of stage 'baseline'.*name one by its key"),
    ],
)
def test_a_rollout_that_is_not_one_is_said(done: Path, wanted: str, said: str) -> None:
    refused = lightningrun(done, "logs", "latest", "baseline", wanted)
    assert refused.returncode == 2 and re.search(said, refused.stderr, re.DOTALL)
