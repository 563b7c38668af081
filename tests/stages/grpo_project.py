"""A small task for reinforcement learning: say small letters. The model is random, and finds out in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from lightningrun.models.local import checkpoint
from lightningrun.models.local.tokenizer import train_tokenizer

AGENT = """
import json, urllib.request

def answer(question, prompts, llm):
    body = {"model": llm["model"], "messages": [
        {"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]}
    request = urllib.request.Request(
        llm["base_url"] + "/chat/completions", data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"] or ""
"""

REWARD = """
def letters(task, output):
    return min(1.0, sum(letter.islower() for letter in output) / 6)

def constant(task, output):
    return 1.0

def by_call(task, output, trace):
    steps = [letters(task, call["answer"]) for call in trace]
    return {"score": letters(task, output), "steps": steps}

def constant_by_call(task, output, trace):
    return {"score": 1.0, "steps": [1.0] * len(trace)}

def broken_for_odd(task, output):
    if task["number"] % 2:
        raise ValueError("odd")
    return letters(task, output)
"""

GRPO = {
    "type": "verl_grpo", "steps": 12, "batch": 4, "group_size": 8, "lr": 1e-2, "warmup": 0,
    "sampling": {"max_tokens": 6}, "eval": {"every": 6},
}  # fmt: skip


def make_project(root: Path, grpo: dict[str, object], **files: str) -> Path:
    """Write the project under ``root`` and return the recipe. ``grpo``: options of the stage."""
    package = root / "small_letters"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "agent.py").write_text(files.get("agent", AGENT))
    (package / "reward.py").write_text(REWARD)
    for split, first in {"train": 0, "val": 100}.items():
        lines = [
            json.dumps({"id": f"{split}{n}", "number": n, "question": f"say {n}"}) for n in range(first, first + 8)
        ]
        (package / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = train_tokenizer(["say small letters please", "the number"] * 4, vocab_size=300)
    checkpoint.save(checkpoint.scratch(tokenizer, seed=1), tokenizer, root / "base")
    options = {name: value for name, value in {**GRPO, **grpo}.items() if value is not None}
    recipe = {
        "version": 1,
        "name": "letters",
        "seed": 3,
        "agent": {
            "entrypoint": "small_letters.agent:answer", "prompts": {"system": "Say it."}, "isolation": "inline",
            "timeout_s": 30,
        },
        "task": {"data": {split: f"small_letters/{split}.jsonl" for split in ("train", "val")}},
        "reward": {"function": files.get("reward", "small_letters.reward:letters"), "range": [0, 1]},
        "models": {"policy": {"provider": "local", "name": "base", "max_tokens": 6}},
        "execution": {"workers": 16},
        "tracking": {"enabled": False},
        "stages": {"grpo": options},
    }  # fmt: skip
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
