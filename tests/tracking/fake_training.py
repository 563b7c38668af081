"""Writes the folder of a run of training: sft, grpo and its control, each evaluated, and a grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightningrun.files import commit_folder
from lightningrun.types import Rollout, RolloutStatus
from tests.tracking.fake_run import FakeRun

STAGES = {
    "sft": {"type": "sft"},
    "grpo": {"type": "verl_grpo"},
    "more": {"type": "sft", "control_for": "grpo"},
    "of_sft": {"type": "evaluate", "split": "test"},
    "of_grpo": {"type": "evaluate", "split": "test"},
    "of_more": {"type": "evaluate", "split": "test"},
    "cells": {"type": "evaluate", "split": "test"},
}
RIGHT = {"of_sft": 10, "of_grpo": 30, "of_more": 20}
"""Of forty rows."""


def rollouts(stage: str, right: int) -> list[dict[str, Any]]:
    return [
        Rollout(
            f"x/test/t{n:02d}/0", stage, f"t{n:02d}", "test", 0, RolloutStatus.SUCCEEDED, float(n < right)
        ).to_json()
        for n in range(40)
    ]


def cell(prompts: str, model: str, **numbers: float) -> dict[str, Any]:
    spread = {
        f"{name}_{end}": value + by for name, value in numbers.items() for end, by in (("low", -0.1), ("high", 0.1))
    }
    return {"prompts": prompts, "model": model, "n": 40, **numbers, **spread}


CELLS = [
    cell("agent", "policy", reward=0.25),
    cell("agent", "grpo.model", reward=0.5, gain=0.25),
    cell("apo.prompts", "policy", reward=0.75, gain=0.5),
    cell("apo.prompts", "grpo.model", reward=0.875, gain=0.625, interaction=-0.125),
]


def trained_run(runs_dir: Path, right: Mapping[str, int] = RIGHT) -> Path:
    """``right``: evaluation -> how many of forty rows it got right; the grid's last cell got 35."""
    fake = FakeRun(runs_dir)
    resolved = yaml.safe_load((fake.path / "resolved.yaml").read_text())
    (fake.path / "resolved.yaml").write_text(yaml.safe_dump({**resolved, "stages": STAGES}))
    types = {stage: config["type"] for stage, config in STAGES.items()}
    fake.emit("run_started", run=fake.path.name, name="sql_agent", recipe_digest="d", seed=7, notes=[], stages=types,
              argv="lightningrun", warnings=[])  # fmt: skip
    models = {"of_sft": "sft.model", "of_grpo": "grpo.model", "of_more": "more.model"}
    for number, (stage, type) in enumerate(types.items(), 1):
        inputs = {"model": models[stage]} if stage in models else {}
        fake.emit("stage_started", stage, type=type, ordinal=number, attempt=1, key=stage, reason="", inputs=inputs)
        outputs: dict[str, Any] = {}
        metrics: dict[str, float] = {"cpu_s": {"sft": 40.0, "grpo": 31.0, "more": 30.5}.get(stage, 0.0)}
        if stage == "grpo":
            for step in range(4):
                values = {"reward": 0.2 + step / 10, "val.reward": 0.3, "live": 0.5, "entropy": 0.4, "kl": 0.01 * step}
                fake.emit("metric", stage, step=step, values=values)
        if type == "evaluate":
            _commit(fake.path, stage, right.get(stage, 35))
            metrics = {"reward": right.get(stage, 35) / 40}
        else:
            outputs = {"model": {"kind": "model", "value": {}, "path": "model"}}
        state = {"result": {"outputs": outputs, "metrics": metrics}}
        (fake.path / "stages" / stage).mkdir(parents=True, exist_ok=True)
        (fake.path / "stages" / stage / "state.json").write_text(json.dumps(state))
        fake.emit("stage_finished", stage, status="succeeded", metrics=metrics, outputs=sorted(outputs), cost={},
                  duration_s=1.0, error="")  # fmt: skip
    fake.emit("run_finished", status="succeeded", exit_code=0, error="", metrics={}, duration_s=1.0)
    return fake.path


def _commit(run: Path, stage: str, right: int) -> None:
    building = run / "stages" / stage / ".outputs"
    building.mkdir(parents=True)
    lines = [json.dumps(one) for one in rollouts(stage, right)]
    (building / "rollouts.jsonl").write_text("\n".join(lines) + "\n")
    if stage == "cells":
        (building / "grid.json").write_text(json.dumps({"split": "test", "cells": CELLS}))
    commit_folder(building, run / "stages" / stage / "outputs", {})
