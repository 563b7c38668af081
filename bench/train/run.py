"""GRPO steps of ours beside TRL's: processor seconds, and the reward after as many steps.

    make bench-train           or: python bench/train/run.py --trl-python VENV/bin/python [--steps 20] [--seeds 3]

Same weights to begin with, questions, reward, batch (32 rows x 8) and learning rate; one thread; one process at a time.
Ours is `lightningrun run` on bench/train/ours.yaml: the agent in the OpenAI SDK, through the gateway. TRL samples from
its model directly and runs no agent. Exit 1 if a bar is missed. What was measured is left in bench/results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SKIPPED = 2
"""First steps, in which much is done for the first time."""
KL = 0.001
Step = Mapping[str, float]


def run(command: Sequence[str], log: Path) -> None:
    """Run to the end with one thread, in the repository's root. Exits with the end of ``log`` if it fails."""
    drop = ("OPENAI_", "MLFLOW_", "LIGHTNINGRUN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    environment = {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with open(log, "wb") as out:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")


class Ours:
    """Runs of recipes of this folder, each with its runs folder under ``work``."""

    def __init__(self, work: Path) -> None:
        self._work = work

    def _run(self, name: str, recipe: str, *overrides: str) -> Path:
        folder = self._work / name
        folder.mkdir()
        command = [sys.executable, "-m", "lightningrun", "run", str(HERE / recipe), *overrides]
        run([*command, "--runs-dir", str(folder / "runs")], folder / "out.txt")
        return (folder / "runs" / "latest").resolve()

    def start(self) -> Path:
        """The folder of the weights that all begin with."""
        return self._run("start", "start.yaml") / "stages/start/outputs/model"

    def grpo(self, name: str, weights: Path, steps: int, seed: int, kl: float = 0.0) -> list[Step]:
        """Metrics of each step; ``cpu_s.step`` is all that the process spent between the ends of two steps."""
        options = {"steps": steps, "kl.coef": kl, "eval.every": steps}
        overrides = [f"stages.grpo.{key}={value}" for key, value in options.items()]
        path = self._run(name, "ours.yaml", f"seed={seed}", f"models.policy.name={weights}", *overrides)
        told: list[Any] = [event for event in events(path) if event["kind"] == "metric" and event["stage"] == "grpo"]
        points = [event["values"] for event in sorted(told, key=lambda event: event["step"])]
        return [
            {**after, "cpu_s.step": after["cpu_s"] - before.get("cpu_s", 0.0)}
            for before, after in itertools.pairwise(points)
        ]

    def held_out(self, name: str, weights: Path) -> float:
        """Reward of weights on questions that no training saw, each answered once, greedily."""
        skip = "stages.grpo.when=never"
        path = self._run(name, "ours.yaml", f"models.policy.name={weights}", skip, "stages.held_out.when=always")
        finished = [event for event in events(path) if event["kind"] == "stage_finished"]
        return float(finished[-1]["metrics"]["reward"])


def events(run_dir: Path) -> list[dict[str, Any]]:
    from lightningrun.files import read_journal

    return [event for _, event in read_journal(run_dir / "journal.jsonl")]


def trl(python: str, weights: Path, out: Path, steps: int, seed: int) -> list[Step]:
    out.mkdir()
    script = [python, str(HERE / "trl_grpo.py"), str(weights), "--out", str(out)]
    run([*script, "--steps", str(steps), "--seed", str(seed)], out / "out.txt")
    record = json.loads((out / "steps.json").read_text("utf-8"))
    return list(record["steps"])


def parts(steps: Sequence[Step]) -> dict[str, float]:
    """Medians of processor seconds a step."""
    later = steps[SKIPPED:]
    mid = {name: statistics.median(step.get(name, 0.0) for step in later) for name in later[0]}
    if "generation" in mid:  # TRL's
        update = statistics.median(step["cpu_s"] - step["generation"] - step["reward_cpu_s"] for step in later)
        return {"generation": mid["generation"], "update": update, "agents": mid["reward_cpu_s"], "step": mid["cpu_s"]}
    names = {"generation": "cpu_s.model", "update": "cpu_s.update", "agents": "cpu_s.agents", "step": "cpu_s.step"}
    return {name: mid[key] for name, key in names.items()}


def gemm_limit(weights: Path, steps: Sequence[Step]) -> tuple[float, float]:
    """(processor seconds, GFLOP/s): the matrix products of a step alone, at the speed of those of this model's shape.

    Counted is what ours multiplies: each prompt once a group and each sampled token once, then the trained tokens
    (prompts once a group, equal completions once) forward and backward, which is three times forward. Attention, which
    is small here, is left out.
    """
    import torch

    from lightningrun.models.local.tokenizer import ChatTokenizer

    torch.set_num_threads(1)
    shape = json.loads((weights / "config.json").read_text("utf-8"))
    width, wide = shape["hidden_size"], shape["intermediate_size"]
    layers, vocabulary = shape["num_hidden_layers"], shape["vocab_size"]
    rate = max(_gflops(torch, rows, width, wide) for rows in (64, 256, 2048))
    weights_used = layers * (4 * width * width + 3 * width * wide) + width * vocabulary
    later = steps[SKIPPED:]
    sampled = statistics.median(step["tokens"] for step in later)
    trained = statistics.median(step["trained_tokens"] for step in later)
    tokenizer = ChatTokenizer.load(weights)
    task = ROOT / "tasks" / "sql_agent"
    system = (task / "prompts" / "short.md").read_text("utf-8").strip()
    questions = [json.loads(line)["question"] for line in (task / "rl.jsonl").read_text("utf-8").splitlines()]
    chats = [[{"role": "system", "content": system}, {"role": "user", "content": one}] for one in questions]
    prompts = 32 * statistics.mean(len(tokenizer.encode_chat(chat)) for chat in chats)
    flops = 2 * weights_used * (prompts + sampled + 3 * trained)
    return flops / rate / 1e9, rate


def _gflops(torch: Any, rows: int, width: int, wide: int) -> float:
    left, right = torch.randn(rows, width), torch.randn(width, wide)
    best = 0.0
    for _ in range(5):
        began, count = time.process_time(), 0
        while (spent := time.process_time() - began) < 0.1:
            for _ in range(20):
                left @ right
            count += 20
        best = max(best, 2 * rows * width * wide * count / spent / 1e9)
    return best


def table(rows: Mapping[str, Mapping[str, float]], base: Mapping[str, float]) -> list[str]:
    pure = base["generation"] + base["update"]
    lines = [f"{'CPU-s a step of 32 x 8':<34}{'generation':>11}{'update':>9}{'both':>8}{'x TRL':>8}"
             f"{'agents':>9}{'all':>8}{'x TRL':>8}"]  # fmt: skip
    for name, row in rows.items():
        both = row["generation"] + row["update"]
        lines.append(
            f"{name:<34}{row['generation']:>11.3f}{row['update']:>9.3f}{both:>8.3f}{both / pure:>8.3f}"
            f"{row['agents']:>9.3f}{row['step']:>8.3f}{row['step'] / base['step']:>8.3f}"
        )
    return lines


def verdicts(rows: Mapping[str, Mapping[str, float]], rewards: Mapping[str, Sequence[float]]) -> list[tuple[bool, str]]:
    base, fast, near = rows["TRL"], rows["ours"], rows["ours, with KL"]
    pure = base["generation"] + base["update"]
    ours, theirs = statistics.mean(rewards["ours"]), statistics.mean(rewards["TRL"])
    checks = [
        ("generation and update", (fast["generation"] + fast["update"]) / pure, 1 / 5),
        ("generation and update with KL", (near["generation"] + near["update"]) / pure, 1 / 2),
        ("whole steps, agents through the gateway", fast["step"] / base["step"], 2 / 3),
    ]
    found = [(is_ <= bar, f"{what}: at most {bar:.3f} of TRL's, is {is_:.3f}") for what, is_, bar in checks]
    return [*found, (ours >= theirs, f"held-out reward after as many steps: at least {theirs:.3f}, is {ours:.3f}")]


def measure(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    ours = Ours(work)
    weights = ours.start()
    tell("weights to begin with are made")
    record: dict[str, Any] = {"steps": chosen.steps, "ours": [], "trl": [], "held_out": {"ours": [], "TRL": []}}
    record["held_out"]["start"] = ours.held_out("held-out-start", weights)
    for seed in range(1, chosen.seeds + 1):
        told = ours.grpo(f"ours-{seed}", weights, chosen.steps, seed)
        record["ours"].append(told)
        record["held_out"]["ours"].append(told[-1]["val.reward"])
        tell(f"ours, seed {seed}: held-out {told[-1]['val.reward']:.3f}")
        told = trl(chosen.trl_python, weights, work / f"trl-{seed}", chosen.steps, seed)
        record["trl"].append(told)
        reward = ours.held_out(f"held-out-trl-{seed}", work / f"trl-{seed}" / "weights")
        record["held_out"]["TRL"].append(reward)
        tell(f"TRL, seed {seed}: held-out {reward:.3f}")
    record["kl"] = ours.grpo("ours-kl", weights, chosen.kl_steps, 1, KL)
    limit_s, rate = gemm_limit(weights, record["ours"][0])
    return {**record, "gemm_limit_s": limit_s, "gemm_gflops": rate}


def report(record: Mapping[str, Any]) -> tuple[list[str], bool]:
    def pooled(runs: Sequence[Sequence[Step]]) -> dict[str, float]:
        each = [parts(steps) for steps in runs]
        return {name: statistics.mean(one[name] for one in each) for name in each[0]}

    rows = {"TRL": pooled(record["trl"]), "ours": pooled(record["ours"]), "ours, with KL": parts(record["kl"])}
    lines = table(rows, rows["TRL"])
    limit, rate = record["gemm_limit_s"], record["gemm_gflops"]
    both = rows["ours"]["generation"] + rows["ours"]["update"]
    lines += [
        f"{'matrix products alone':<34}{'':>20}{limit:>8.3f}  at {rate:.0f} GFLOP/s; ours {both / limit:.1f} times"
    ]
    held_out = record["held_out"]
    lines += ["", f"held-out reward after {record['steps']} steps, from {held_out['start']:.3f}:"]
    for name in ("TRL", "ours"):
        rewards = held_out[name]
        lines.append(
            f"  {name:<6}{'  '.join(f'{reward:.3f}' for reward in rewards)}   mean {statistics.mean(rewards):.3f}"
        )
    for name, runs in (("TRL", record["trl"]), ("ours", record["ours"])):
        last = [statistics.mean(step["reward"] for step in steps[-5:]) for steps in runs]
        lines.append(f"  {name:<6}{'  '.join(f'{reward:.3f}' for reward in last)}   while training, last five steps")
    found = verdicts(rows, held_out)
    lines += ["", *(f"{'pass' if good else 'FAIL'}  {text}" for good, text in found)]
    return lines, all(good for good, _ in found)


_BEGAN = time.monotonic()


def tell(text: str) -> None:
    print(f"{time.monotonic() - _BEGAN:6.0f} s  {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=os.path.abspath, required=True, help="python of a venv with TRL 1.16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kl-steps", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-") as work:
        record = measure(chosen, Path(work))
    lines, met = report(record)
    print("\n" + "\n".join(lines))
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    stem = f"train-{time.strftime('%Y%m%d-%H%M%S')}"
    (results / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    (results / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    print(f"\nsteps: bench/results/{stem}.json")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
