"""One prompt optimisation of ours: a recipe on disk, run by the command line as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import worlds

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "lightningrun"]


def write_project(
    folder: Path, world: worlds.World, base: str, model: str, options: Mapping[str, Any], extra: Mapping[str, Any] = {}
) -> None:
    """Rows, prompts and a recipe that extends bench/apo/recipe.yaml. ``model`` is the part of the model's name after
    the role; ``options`` go into the ``apo`` stage, ``extra`` into the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        lines = [json.dumps(row) for row in world.splits[split]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {
        "version": 1,
        "name": "bench_apo",
        "extends": str(HERE / "recipe.yaml"),
        "seed": world.number,
        "agent": {"entrypoint": f"{HERE}/agent.py:solve", "prompts": dict(world.seed_prompts)},
        "reward": {"function": f"{HERE}/agent.py:reward"},
        "task": {"data": {"train": "train.jsonl", "val": "val.jsonl"}},
        "models": {
            role: {"provider": "openai", "name": f"{who}@{model}", "base_url": base}
            for role, who in (("policy", "student"), ("coach", "coach"))
        },
        "stages": {"apo": {"type": "apo", **options}},
        **extra,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1) + "\n")


def environment() -> dict[str, str]:
    """A user's environment without keys or tracking server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "MLFLOW_", "LIGHTNINGRUN_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def start(folder: Path, arguments: Sequence[str] = ("run", "recipe.yaml")) -> subprocess.Popen[bytes]:
    """The command line in ``folder``, in a process group of its own; what it prints is in ``out.txt`` there."""
    with open(folder / "out.txt", "ab") as log:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def run(folder: Path) -> float:
    """Run the recipe to its end; returns the seconds from the first exec to exit. Raises RuntimeError if it fails."""
    began = time.perf_counter()
    if start(folder).wait():
        raise RuntimeError(f"ours failed in {folder}:\n{(folder / 'out.txt').read_text(errors='replace')[-3000:]}")
    return time.perf_counter() - began


def outcome(folder: Path, world: worlds.World) -> dict[str, Any]:
    """The shipped prompts and the stage's metrics of the latest run in ``folder``."""
    stage = folder / "runs" / "latest" / "stages" / "apo"
    state = json.loads((stage / "state.json").read_text())
    prompts = {name: (stage / "outputs" / "prompts" / f"{name}.md").read_text() for name in world.components}
    return {"prompts": prompts, "metrics": state["result"]["metrics"]}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The journal's events of one kind, in order."""
    found = []
    for line in (folder / "runs" / "latest" / "journal.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            found += [event] if event.get("kind") == kind else []
    return found
