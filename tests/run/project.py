"""A whole small project on disk, for tests that run the command line as a user does.

The agent adds two numbers by asking a model; the model is a Python function that is right when the prompt tells it to
be careful, and for even sums otherwise. A run of it takes a second or two.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

AGENT = """
import json, os, time, urllib.request

def answer(question, prompts, llm):
    body = {"model": llm["model"], "messages": [
        {"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]}
    request = urllib.request.Request(
        llm["base_url"] + "/chat/completions", data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]
"""

MODELS = """
import hashlib, os, re, time

def _record(role, request):
    path = os.environ.get("CALLS_SEEN")
    if path:
        text = hashlib.sha256(repr((role, request["messages"])).encode()).hexdigest()
        with open(path, "a") as seen:
            seen.write(f"{role} {text}\\n")

def student(request, delay_s=0.0):
    time.sleep(delay_s)
    _record("student", request)
    system, question = request["messages"][0]["content"], request["messages"][-1]["content"]
    left, right = map(int, re.findall(r"\\d+", question)[:2])
    careful = "carefully" in system
    return str(left + right if careful or (left + right) % 2 == 0 else left + right + 1)

def coach(request, delay_s=0.0):
    time.sleep(delay_s)
    _record("coach", request)
    return "It slips on odd sums.\\n```\\nYou add numbers. Work carefully. Answer with the number.\\n```"
"""

REWARD = """
def exact(task, output):
    right = str(task["answer"]) == str(output).strip()
    return {"score": 1.0 if right else 0.0, "feedback": "right" if right else f"wrong: got {output}"}
"""

RECIPE = """\
version: 1
name: adder
seed: 3
agent:
  entrypoint: adder.agent:answer
  prompts: {system: {file: adder/system.md}}
  timeout_s: 20
task:
  data: {train: adder/train.jsonl, val: adder/val.jsonl, test: adder/test.jsonl}
reward: {function: "adder.reward:exact"}
models:
  policy: {provider: python, name: "adder.models:student", args: {delay_s: 0.0}}
  coach: {provider: python, name: "adder.models:coach"}
execution: {workers: 4}
tracking: {enabled: false}
stages:
  baseline: {type: evaluate, split: test}
  apo:
    type: apo
    when: baseline.reward < 0.95
    coach: coach
    budget: {max_rollouts: 200}
  final:
    type: evaluate
    split: test
    gate: {min: {reward: 0.9}, beats: baseline}
"""


def make_project(root: Path, **files: str) -> Path:
    """Write the project under ``root`` and return ``root``. ``files`` replace or add (``recipe``, ``agent``, ...)."""
    package = root / "adder"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "agent.py").write_text(files.get("agent", AGENT))
    (package / "models.py").write_text(files.get("models", MODELS))
    (package / "reward.py").write_text(files.get("reward", REWARD))
    (package / "system.md").write_text(files.get("prompt", "You add numbers. Answer with the number."))
    offset = 0
    for split, count in {"train": 24, "val": 24, "test": 24}.items():
        rows = [(n, 3 * n + 1 + n % 3) for n in range(offset, offset + count)]
        lines = [
            json.dumps({"id": f"{split}-{a}", "question": f"What is {a} + {b}?", "answer": a + b}) for a, b in rows
        ]
        (package / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        offset += 100
    (root / "recipe.yaml").write_text(files.get("recipe", RECIPE))
    return root


def environment(**extra: str) -> dict[str, str]:
    """The environment of a user without keys or tracking server."""
    drop = ("OPENAI_", "ANTHROPIC_", "MLFLOW_", "LIGHTNINGRUN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **extra}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lightningrun", *arguments]


def lightningrun(
    root: Path, *arguments: str, timeout: float = 90, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``root`` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=root,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def show(root: Path, run: str = "latest") -> dict[str, Any]:
    """``show RUN --json``, parsed."""
    done = lightningrun(root, "show", run, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def fill_the_disk(recipe: Path, largest: int) -> None:
    """Run ``recipe`` where no file may grow beyond ``largest`` bytes, and see that it ends as on a full disk."""
    done = subprocess.run(
        command(str(recipe)), cwd=recipe.parent, env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 74, done.stdout + done.stderr
    assert "cannot write" in done.stderr and "Traceback" not in done.stderr
