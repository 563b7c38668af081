"""An agent that knows nothing of lightningrun, improved by a recipe alone: environment variables, a built-in prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.project import RECIPE, lightningrun, make_project, show

PROMPT = "You add numbers. Answer with the number."
CLIENT = f"""
import json, os, sys, urllib.request

class Client:
    def __init__(self):
        self.url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
        self.headers = {{"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}}

    def ask(self, question):
        messages = [{{"role": "system", "content": "{PROMPT}"}}, {{"role": "user", "content": question}}]
        body = json.dumps({{"model": "gpt-4.1-mini", "messages": messages}}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, body, self.headers)) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

client = Client()
"""
FUNCTION = CLIENT + "\ndef answer(question):\n    return client.ask(question)\n"
PROGRAM = CLIENT + '\nprint(client.ask(json.load(sys.stdin)["question"]))\n'
BOUND = RECIPE.replace("{file: adder/system.md}", "{file: adder/system.md, bind: gateway}")
COMMANDED = BOUND.replace("entrypoint: adder.agent:answer", "command: [python3, adder/agent.py]")


@pytest.mark.parametrize(
    ("agent", "recipe"),
    [
        pytest.param(FUNCTION, BOUND, id="function"),
        pytest.param(PROGRAM, COMMANDED, id="program", marks=pytest.mark.slow),  # a process for each rollout
    ],
)
def test_it_goes_from_its_own_prompt_to_a_better_one(tmp_path: Path, agent: str, recipe: str) -> None:
    assert "lightningrun" not in agent and recipe != RECIPE
    root = make_project(tmp_path, agent=agent, recipe=recipe, prompt=PROMPT)
    done = lightningrun(root, "recipe.yaml", "stages.apo.budget.max_rollouts=120")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = show(root)["stages"]
    assert stages["baseline"]["metrics"]["reward"] < 0.8 < stages["final"]["metrics"]["reward"]
    better = (root / "runs/latest/stages/apo/outputs/prompts/system.md").read_text("utf-8").strip()
    assert better != PROMPT
    assert told(root, "baseline") == {PROMPT} and told(root, "final") == {better}


def told(root: Path, stage: str) -> set[str]:
    """The system messages that the model got in a stage."""
    calls: list[dict[str, Any]] = [
        json.loads(line) for line in (root / "runs/latest/calls.jsonl").read_text("utf-8").splitlines()
    ]
    asked = [call["request"]["messages"] for call in calls if call["stage"] == stage and call["role"] == "policy"]
    assert len(asked) == 24
    return {messages[0]["content"].strip() for messages in asked}
