"""Two trials of ours alone: killed with -9 and resumed, and the wall time with slow models."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ours
import worlds

SLOTS = 8
CALL_S = 0.1
WALL_ROLLOUTS = 500
DEFAULTS: Mapping[str, Any] = {"budget": {"max_rollouts": 250}}

Stats = Callable[[str], dict[str, float]]


def kill_and_resume(
    base: str,
    stats: Stats,
    family: str,
    number: int,
    options: Mapping[str, Any] = DEFAULTS,
    moments: int = 2,
    call_ms: int = 10,
) -> dict[str, Any]:
    """An undisturbed run beside one that is killed (its whole process group, -9) ``moments`` times, when a random share
    of its calls is answered.

    ``options``: of the stage. ``call_ms``: how long a model takes to answer. A kill comes some 20 ms late, so that with
    fast models a short run may have asked everything by then.

    Models answer equal questions equally here, so that both must end the same. A call is repeated if its answer was in
    calls.jsonl when the kill came and it is asked again; what was in flight may be asked again.
    """
    world = worlds.make(family, number)
    rng = random.Random(f"kill/{world.name}")
    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-apo-") as name:
        plain, killed = Path(name, "plain"), Path(name, "killed")
        for folder in (plain, killed):
            model = f"{world.name}+ms={call_ms}+same=1@{folder.name}-{world.name}"
            ours.write_project(folder, world, base, model, options)
        ours.run(plain)
        expected, one = ours.outcome(plain, world), stats(f"plain-{world.name}")
        kills, arguments, calls = 0, ["run", "recipe.yaml"], one["student"] + one["coach"]
        for moment in range(moments):
            process = ours.start(killed, arguments)
            wanted = calls * (moment + rng.uniform(0.2, 0.7)) / moments
            while process.poll() is None and (_answered(killed) or 0) < wanted:
                time.sleep(0.02)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.wait()
            before = _answered(killed)
            arguments = ["resume"] if before is not None else arguments
        recorded = _answered(killed) or 0
        asked_before = stats(f"killed-{world.name}")
        if ours.start(killed, arguments).wait():
            raise RuntimeError(f"the resumed run failed:\n{(killed / 'out.txt').read_text(errors='replace')[-3000:]}")
        asked_after = stats(f"killed-{world.name}")
        found = ours.outcome(killed, world)
    needed = calls - recorded
    repeats = int(asked_after["student"] + asked_after["coach"] - needed)
    lost = int(asked_before["student"] + asked_before["coach"] - recorded)
    return {
        "kills": kills, "calls": calls,
        "recorded": recorded, "in_flight": lost, "repeats": repeats, "identical": _same(expected, found),
    }  # fmt: skip


def _answered(folder: Path) -> int | None:
    """How many answers the run's calls.jsonl holds; None if no run has begun."""
    if not (folder / "runs" / "latest").exists():
        return None
    count = 0
    path = folder / "runs" / "latest" / "calls.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            count += bool(json.loads(line).get("response"))
        except ValueError:
            continue
    return count


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["prompts"] == other["prompts"] and one["metrics"] == other["metrics"])


def wall(base: str, stats: Stats, family: str, number: int) -> dict[str, Any]:
    """One run at 100 ms a call, from exec to exit, beside the least that its calls can take.

    ideal = student calls x 0.1 s / 8 slots + coach calls in sequence x 0.1 s
    """
    world = worlds.make(family, number)
    run = f"wall-{world.name}-{time.time_ns()}"
    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-apo-") as name:
        model = f"{world.name}+ms={1000 * CALL_S:g}@{run}"
        ours.write_project(Path(name), world, base, model, {"budget": {"max_rollouts": WALL_ROLLOUTS}})
        wall_s = ours.run(Path(name))
    counted = stats(run)
    student_s = counted["student"] * CALL_S / SLOTS
    coach_s = counted["coach_in_sequence"] * CALL_S
    return {
        "wall_s": wall_s, "student": counted["student"],
        "coach": counted["coach"], "coach_in_sequence": counted["coach_in_sequence"], "ideal_s": student_s + coach_s,
        "ratio": wall_s / (student_s + coach_s), "span_s": counted["last"] - counted["first"],
    }  # fmt: skip
