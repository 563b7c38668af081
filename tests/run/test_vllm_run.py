"""A recipe whose policy is served by a vLLM server of its own: weights of a stage, the log, what is said, the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from tests.stages.grpo_project import AGENT, REWARD

ROOT = Path(__file__).parents[2]


def make_project(root: Path, mode: str) -> Path:
    package = root / "small_letters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "agent.py").write_text(AGENT)
    (package / "reward.py").write_text(REWARD)
    rows = [{"id": f"row{number}", "number": number, "question": f"say {number}"} for number in range(6)]
    (package / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [{"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "small letters"}]}]
    (package / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats * 4))
    server = {"command": [sys.executable, "-m", "tests.servers.vllm_server"], "args": ["--mode", mode]}
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "served",
        "agent": {"entrypoint": "small_letters.agent:answer", "prompts": {"system": "Say it."}, "timeout_s": 60},
        "task": {"data": {"test": "small_letters/test.jsonl"}},
        "reward": {"function": "small_letters.reward:letters", "range": [0, 1]},
        "models": {
            "policy": {"provider": "vllm", "name": "sft.model", "max_tokens": 6, "retries": 1, "server": server}
        },
        "execution": {"workers": 2},
        "tracking": {"enabled": False},
        "stages": {
            "sft": {
                "type": "sft", "source": "chat", "file": str(package / "chats.jsonl"), "steps": 2,
                "init": {"vocab_size": 300},
            },
            "served": {"type": "evaluate", "split": "test"},
        },
    }  # fmt: skip
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ok", "dies"])
def test_the_weights_of_a_stage_are_served_or_it_is_said_why_not(mode: str, tmp_path: Path) -> None:
    recipe = make_project(tmp_path, mode)
    path = f"{tmp_path}:{ROOT}"
    done = subprocess.run(
        [sys.executable, "-m", "lightningrun", recipe.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    run = tmp_path / "runs/latest"
    log = (run / "logs/vllm-policy.log").read_text()
    assert "processed_logprobs" in log and "models.policy: starting a server for" in done.stdout + done.stderr
    if mode == "dies":
        assert done.returncode == 3
        assert "models.policy: the server ended with exit code 1 before it answered" in done.stderr
        assert "No available memory for the cache blocks" in done.stderr and "vllm-policy.log" in done.stderr
        assert "Traceback" not in done.stderr
        return
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]
    calls = [call.get("data", call) for call in calls]
    assert len(calls) == 6 and all(call["sampled"]["choices"][0]["ids"] for call in calls)
    made = json.loads((run / "stages/sft/outputs/manifest.json").read_text())
    assert calls[0]["sampled"]["weights"] in json.dumps(made), "the digest of what sft made"
