"""One policy plays two agents, and only one of them is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl", exc_type=ImportError)

from lightningrun.models.local import checkpoint  # noqa: E402
from lightningrun.stages.verl_grpo.algorithm import Algorithm  # noqa: E402
from lightningrun.stages.verl_grpo.config import GrpoConfig  # noqa: E402
from lightningrun.stages.verl_grpo.learner import Learner  # noqa: E402
from lightningrun.stages.verl_grpo.trajectories import Sample, sample_of  # noqa: E402
from lightningrun.types import LLMCall  # noqa: E402
from tests.stages.grpo_project import make_project  # noqa: E402
from tests.stages.test_grpo_stage import curve, started  # noqa: E402

AGENT = """
import json, urllib.request

def ask(who, text, llm):
    body = {"model": llm["model"], "messages": [
        {"role": "system", "content": f"You are the {who}."}, {"role": "user", "content": text}]}
    headers = {"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json", "X-Agent-Name": who}
    request = urllib.request.Request(llm["base_url"] + "/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"] or ""

def answer(question, llm):
    said = ask("writer", question, llm)
    return said + ask("checker", question, llm)
"""
STEPS = """

def letters_by_call(task, output, trace):
    own = [letters(task, call["answer"]) for call in trace]
    return {"score": letters(task, output), "steps": own}
"""


def project(root: Path, **grpo: Any) -> Path:
    recipe = make_project(root, {"steps": 1, "eval": {"every": 1}, **grpo}, agent=AGENT)
    reward = root / "small_letters" / "reward.py"
    reward.write_text(reward.read_text() + STEPS)
    return recipe


def samples(root: Path, agents: list[str], batch: int) -> list[Sample]:
    """What was rolled out for the first step, from the files of the run."""
    run = root / "runs" / "latest"
    offset, calls = 0, {}
    for line in (run / "calls.jsonl").read_bytes().splitlines(keepends=True):
        calls[offset] = LLMCall.from_json({k: v for k, v in json.loads(line).items() if k != "crc"})
        offset += len(line)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    rollouts = [e["rollout"] for e in events if e["kind"] == "rollout" and e["rollout"]["split"] == "train"]
    trained = sorted((one for one in rollouts if one["sample"] < batch * 8), key=lambda one: one["sample"])
    return [
        sample_of([calls[ref] for ref in one["call_refs"]], "policy", agents, one["sample"] // 8, one["score"],
                  one["steps"])
        for one in trained
    ]  # fmt: skip


def learned(root: Path, made: list[Sample], **grpo: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """What an update on ``made`` does to the weights that the stage began with."""
    config = GrpoConfig.model_validate({"type": "verl_grpo", "steps": 1, "batch": 4, "lr": 1e-2, "warmup": 0, **grpo})
    decoder = checkpoint.load(root / "base")
    health = Learner(decoder, Algorithm(config), config, root / "base", root).update(made)
    return health, dict(decoder.state_dict())


@pytest.mark.parametrize("reward", ["letters", "letters_by_call"])
def test_only_the_writer_s_calls_are_in_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str) -> None:
    recipe = project(tmp_path, train_on=["writer"])
    recipe.write_text(recipe.read_text().replace("reward:letters", f"reward:{reward}"))
    result, events = started(recipe, monkeypatch)
    assert result.error is None
    told = curve(events)[1]
    writer, both = samples(tmp_path, ["writer"], 4), samples(tmp_path, [], 4)
    assert len(writer) == 32 and sum(one.tokens for one in both) > 1.5 * sum(one.tokens for one in writer) > 0
    assert all(one.by_call == (reward == "letters_by_call") for one in writer)
    mine, weights = learned(tmp_path, writer)
    other, _ = learned(tmp_path, both)
    for name in ("grad_norm", "trained_tokens", "advantage"):
        assert told[name] == pytest.approx(mine[name], rel=1e-4)
        assert name == "advantage" or told[name] != pytest.approx(other[name], rel=1e-2)
    if result.results["grpo"].metrics["best_step"] == 1:
        saved = checkpoint.load(tmp_path / "runs/latest/stages/grpo/outputs/model").state_dict()
        assert all(torch.allclose(saved[name], weights[name], atol=1e-5) for name in weights)
