"""The calculator task: its tool refuses what it must, no data leaks, its agent works through the real gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tasks.calculator import build
from tasks.calculator.agent import gold, use
from tasks.calculator.arithmetic import CalculatorError, calculate
from tasks.calculator.reward import exact
from tasks.calculator.simulation import student

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tasks" / "calculator"


@pytest.fixture(scope="module")
def problems() -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (HERE / f"{split}.jsonl").read_text("utf-8").splitlines()]
        for split in build.SIZES
    }


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), ("(2 + 3) * 4", "20"), ("7 / 2", "3.5"), ("-3 - -5", "2"), ("0.1 + 0.2", "0.3"),
     ("1 / 3", "0.333333"), ("-1 / 8", "-0.125"), ("  5 ", "5")],
)  # fmt: skip
def test_it_calculates_exactly(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "powers are not supported"),
        ("1e999999999", "plain digits"),
        ("nan + 1", "only numbers"),
        ("float('inf')", "only numbers"),
        ("__import__('os').system('id')", "only numbers"),
        ("True + 1", "only numbers"),
        ("1j * 1j", "only numbers"),
        ("0xff", "plain digits"),
        ("*".join(["99999999"] * 20), "more than 30 digits"),
        ("/".join(["1"] + ["99999999"] * 20), "more than 30 digits"),
        ("(" * 90 + "1" + ")" * 90, ""),
        ("1" * 201, "longer than 200"),
        ("2 +", "not an expression"),
        ("", "not an expression"),
        ("1\0+1", "not an expression"),
    ],
)
def test_it_refuses_everything_else_quickly(expression: str, said: str) -> None:
    began = time.perf_counter()
    try:
        value = calculate(expression)
    except CalculatorError as error:
        assert said in str(error)
    else:
        assert said == "" and value == "1"
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("arguments", ["", "[]", "5", "{}", '{"expression": 5}', '{"expression": null}', "[" * 100_000])
def test_a_broken_tool_call_is_answered_not_raised(arguments: str) -> None:
    assert use("calculator", arguments).startswith("error: ")


def test_another_tool_is_not_there() -> None:
    assert "there is no tool 'python'" in use("python", "{}")


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("51", 1.0), ("The result is 51.", 1.0), ("17 * 3 = 51", 1.0), ("51.0", 1.0), ("$51", 1.0),
        ("50", 0.0), ("51.01", 0.0), ("-51", 0.0), ("51 or 52", 0.0), ("", 0.0), (None, 0.0), ("nan", 0.0),
        ("inf", 0.0), ("51e0", 0.0), ("1e999999999", 0.0), ("9" * 5000, 0.0), ("51/0", 0.0), (["51"], 0.0), (51, 1.0),
    ],
)  # fmt: skip
def test_the_reward_wants_the_exact_number(said: Any, score: float) -> None:
    result = exact({"answer": "51"}, {"answer": said} if said is None or isinstance(said, str) else said)
    assert result["score"] == score or (said == ["51"] and result["feedback"])
    assert result["feedback"]


def test_thousands_and_decimals_are_read() -> None:
    assert exact({"answer": "1234.5"}, "So it is 1,234.50")["score"] == 1.0
    assert "answered 7, expected 8" in exact({"answer": "8"}, "7")["feedback"]


def test_the_committed_rows_are_what_build_makes(tmp_path: Path) -> None:
    build.build(tmp_path)
    for split in build.SIZES:
        assert (tmp_path / f"{split}.jsonl").read_text() == (HERE / f"{split}.jsonl").read_text()


def test_no_problem_is_in_two_splits(problems: dict[str, list[dict[str, Any]]]) -> None:
    def bare(question: str) -> str:
        return re.sub(r"[^\w+*/()-]+", " ", question.lower()).strip()  # operators make a difference

    for name, key in {"steps": lambda row: tuple(row["steps"]), "question": lambda row: bare(row["question"])}.items():
        for a, b in combinations(problems, 2):
            shared = {key(row) for row in problems[a]} & {key(row) for row in problems[b]}
            assert not shared, f"{name} shared by {a} and {b}: {shared}"


def test_difficulty_is_the_number_of_steps_and_all_are_everywhere(problems: dict[str, list[dict[str, Any]]]) -> None:
    for rows in problems.values():
        assert set(Counter(row["tags"][0] for row in rows)) == {"easy", "medium", "hard"}
        for row in rows:
            assert row["tags"][0] == ("easy", "medium", "hard")[min(len(row["steps"]), 3) - 1]
            assert Fraction(row["answer"]) > 0 and Fraction(row["answer"]) * 100 % 1 == 0


def test_gold_conversations_are_right(problems: dict[str, list[dict[str, Any]]]) -> None:
    for row in (row for rows in problems.values() for row in rows):
        messages = gold(row)
        calls = [call for message in messages for call in message.get("tool_calls", [])]
        results = [message for message in messages if message["role"] == "tool"]
        assert [json.loads(call["function"]["arguments"])["expression"] for call in calls] == row["steps"]
        assert [result["content"] for result in results] == [use(**call["function"]) for call in calls]
        assert results[-1]["content"] == row["answer"] and exact(row, messages[-1]["content"])["score"] == 1.0


def test_the_stand_in_is_a_function_of_the_request_and_survives_any(problems: dict[str, list[dict[str, Any]]]) -> None:
    asked = {"messages": [{"role": "user", "content": problems["test"][0]["question"]}], "tools": [{}]}
    assert student({**asked, "seed": 1}) == student({**asked, "seed": 1})
    for messages in ([], [{"role": "user", "content": None}], [{"role": "user", "content": "?\ud800{"}]):
        assert student({"messages": messages})["choices"][0]["message"]["content"]


SCRIPTED = '''
import json
from tasks.calculator.agent import gold

ROWS = {row["question"]: gold(row) for row in map(json.loads, open("test.jsonl", encoding="utf-8"))}


def model(request):
    """Answers by the gold conversation, turn by turn; its first call is spoilt, to see the agent go on."""
    messages = request["messages"]
    assert request["tools"][0]["function"]["name"] == "calculator"
    if messages[-1]["role"] == "user":
        call = {"id": "x", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1/0"}'}}
        answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    else:
        turns = [message for message in ROWS[messages[1]["content"]] if message["role"] == "assistant"]
        answer = turns[sum(message["role"] == "tool" for message in messages) - 1]
    return {"id": "s", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}]}
'''


def test_the_agent_solves_its_rows_through_the_gateway(
    tmp_path: Path, problems: dict[str, list[dict[str, Any]]]
) -> None:
    (tmp_path / "scripted.py").write_text(SCRIPTED)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems["test"][:20]))
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: scripted\n"
        "agent: {entrypoint: 'tasks.calculator.agent:answer', prompts: {system: Solve it.}, isolation: inline}\n"
        "task: {data: {test: test.jsonl}}\n"
        "reward: {function: 'tasks.calculator.reward:exact', range: [0, 1]}\n"
        "models: {policy: {provider: python, name: 'scripted:model'}}\n"
        "tracking: {enabled: false}\n"
        "stages: {measured: {type: evaluate, split: test}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "lightningrun", "recipe.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = (tmp_path / "runs").glob("2*/stages/measured/outputs/rollouts.jsonl")
    rollouts = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rollouts) == 20 and all(rollout["score"] == 1.0 for rollout in rollouts)
    steps = {row["id"]: len(row["steps"]) for row in problems["test"]}
    assert all(rollout["output"]["calls"] == steps[rollout["task_id"]] + 1 for rollout in rollouts)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_model_learns_the_tool_by_example_and_then_by_reward(tmp_path: Path) -> None:
    """The recipe, shortened: worked solutions, several turns each, and then rewards alone, on problems new to it."""
    pytest.importorskip("verl", exc_type=ImportError)
    short = ["stages.sft.steps=450", "stages.grpo.steps=12", "stages.grpo.eval.every=6"]
    short += ["stages.final.gate.min.reward=0.01"]
    where = ["--runs-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "lightningrun", "recipes/calculator.yaml", *short, "tracking.enabled=false", *where],
        cwd=ROOT, capture_output=True, text=True, timeout=800, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "lightningrun", "show", "latest", "--json", *where],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    metrics = {name: stage["metrics"] for name, stage in json.loads(shown.stdout)["stages"].items()}
    assert metrics["sft"]["gold_reward"] == 1.0 and metrics["sft"]["examples"] == 280
    assert metrics["imitated"]["reward"] > 0 and metrics["final"]["reward"] > 0, "from nothing, by example"
    lines = next(tmp_path.glob("*/journal.jsonl")).read_text().splitlines()
    told = [record["values"] for record in map(json.loads, lines) if record["kind"] == "metric"]
    curve = [values["val.reward"] for values in told if "val.reward" in values]
    assert metrics["grpo"]["reward"] == max(curve) >= curve[0], "the best weights on val, those of the start among them"
