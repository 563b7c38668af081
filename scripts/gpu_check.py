"""What this machine's GPU does with the parts that run on one: the embedded engine, `sft` and `verl_grpo` in process.

    make gpu-check                                  # or: python scripts/gpu_check.py [--steps 20] [--device cuda:1]
    python scripts/gpu_check.py --device cpu --steps 2          # the same script where there is no GPU, to try it

A model of 290 thousand parameters is made from nothing and shown words in mixed letters (`sft`), then rewarded for
small ones (`verl_grpo`, `backend: inproc`), then shown them again through adapters (`lora`); agents run as in any
recipe. Weights are float32, the engine and on a GPU the passes bfloat16. Prints tokens per second and the reward curve.
Nothing is downloaded.

Exits with 5 and what is missing where there is no GPU or no torch and verl, with 3 if a stage failed or nothing was
learned.
What it does not show: vLLM, `backend: ray`, models of a size that needs memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

AGENT = """
from functools import lru_cache
from openai import DefaultHttpxClient, OpenAI

@lru_cache(maxsize=1)
def connections():
    return DefaultHttpxClient()

def answer(question, prompts, llm):
    client = OpenAI(base_url=llm["base_url"], api_key=llm["api_key"], max_retries=0, http_client=connections())
    messages = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": question}]
    return client.chat.completions.create(model=llm["model"], messages=messages).choices[0].message.content or ""

def small_letters(output):
    return min(1.0, sum(letter.islower() for letter in output) / 8)
"""
SYSTEM = "Say a word."
ENGINE_PROMPTS, ENGINE_TOKENS = 256, 128


def missing(device: str) -> Iterator[str]:
    """What this machine lacks, a line each."""
    lacks = [name for name in ("torch", "verl") if importlib.util.find_spec(name) is None]
    for name in lacks:
        yield f"{name} is not installed: pip install -c constraints-gpu.txt -e '.[gpu]'"
    if "torch" in lacks or device == "cpu":
        return
    import torch

    if torch.version.cuda is None:
        yield f"torch {torch.__version__} is built for the CPU: pip install -c constraints-gpu.txt -e '.[gpu]'"
    elif not torch.cuda.is_available():
        yield "no NVIDIA GPU is visible to torch: see nvidia-smi and CUDA_VISIBLE_DEVICES"


def project(root: Path, device: str, steps: int) -> Path:
    """The task and its recipe, written under ``root``; returns the recipe."""
    package = root / "gpu_check_task"
    package.mkdir()
    (package / "__init__.py").write_text(AGENT, "utf-8")
    for split, numbers in {"train": range(16), "val": range(100, 108)}.items():
        rows = [{"id": f"{split}-{number}", "question": f"number {number}"} for number in numbers]
        (package / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ["OnE tWo", "ThReE fOuR", "FiVe SiX", "sEvEn EiGhT", "NINE ten"]
    chats = [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"number {number}"},
            {"role": "assistant", "content": words[number % len(words)]},
        ]
        for number in range(40)
    ]
    lines = [json.dumps({"messages": chat}) + "\n" for chat in chats]
    (package / "chats.jsonl").write_text("".join(lines), "utf-8")
    shown = {"type": "sft", "source": "chat", "file": str(package / "chats.jsonl"), "batch": 16, "warmup": 5}
    recipe = {
        "version": 1,
        "name": "gpu_check",
        "seed": 1,
        "agent": {
            "entrypoint": "gpu_check_task:answer",
            "prompts": {"system": SYSTEM},
            "isolation": "inline",
            "timeout_s": 120,
        },
        "task": {"data": {split: f"gpu_check_task/{split}.jsonl" for split in ("train", "val")}},
        "reward": {"function": "gpu_check_task:small_letters", "range": [0, 1]},
        "models": {
            "policy": {
                "provider": "local", "name": "sft.model", "device": device, "dtype": "bfloat16", "max_tokens": 12,
            }
        },
        "execution": {"workers": 128},
        "tracking": {"enabled": False},
        "stages": {
            "sft": {**shown, "init": {"size": "tiny", "vocab_size": 300}, "steps": max(5, 2 * steps)},
            "grpo": {
                "type": "verl_grpo", "backend": "inproc", "inputs": {"model": "sft.model"}, "steps": steps, "batch": 8,
                "group_size": 8, "lr": 1e-3, "warmup": 0, "sampling": {"max_tokens": 12},
                "eval": {"every": max(1, steps // 4)},
            },
            "adapters": {
                **shown, "inputs": {"model": "grpo.model"}, "steps": 5, "lr": 1e-3, "lora": {"rank": 8},
            },
        },
    }  # fmt: skip
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    return path


def tell(event: dict[str, Any]) -> None:
    """A line for each step of the reward curve, and for what went wrong."""
    values = event.get("values", {})
    if event["kind"] == "metric" and event["stage"] == "grpo":
        known = {
            "reward": "reward",
            "val.reward": "val",
            "logprob_gap": "log-probability gap",
            "tokens_per_s": "tokens/s",
        }
        facts = [f"{shown} {values[name]:.3g}" for name, shown in known.items() if name in values]
        print(
            f"  grpo step {event['step']:3}  {'  '.join(facts)}  {'#' * round(30 * values.get('reward', 0.0))}",
            flush=True,
        )
    elif event["kind"] == "log" and event.get("level") == "warning":
        print(f"  {event['message']}", flush=True)


def engine_speed(folder: Path, device: str) -> float:
    """Tokens a second of the embedded engine, sampling from many prompts at once."""
    from lightningrun.models.local.engine import LocalEngine
    from lightningrun.models.local.sampling import Sampling

    engine = LocalEngine(folder, device=device, dtype="bfloat16")
    try:
        asked = [engine.tokenizer.encode_chat([{"role": "user", "content": str(n)}]) for n in range(ENGINE_PROMPTS)]
        engine.generate_many(asked[:8], Sampling(temperature=1.0, max_tokens=8))
        began = time.monotonic()
        said = engine.generate_many(asked, Sampling(temperature=1.0, max_tokens=ENGINE_TOKENS))
        return sum(len(one.ids) for several in said for one in several) / (time.monotonic() - began)
    finally:
        engine.close()


def check(device: str, steps: int) -> int:
    import torch

    import lightningrun

    on_gpu = device != "cpu"
    about = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if on_gpu else "the CPU"
    print(f"torch {torch.__version__} on {about}; bfloat16; a model of 290 thousand parameters")
    with tempfile.TemporaryDirectory(prefix="lightningrun-gpu-check-") as scratch:
        root = Path(scratch)
        recipe = project(root, device, steps)
        sys.path.insert(0, str(root))
        began = time.monotonic()
        done = lightningrun.load(recipe, runs_dir=root / "runs").run(observers=[tell])
        if done.error is not None:
            print(f"failed: {done.error}", file=sys.stderr)
            return 3
        told = done.results["grpo"].metrics
        sft, adapters = done.results["sft"].metrics, done.results["adapters"].metrics
        speed = engine_speed(root / "runs" / "latest" / "stages" / "grpo" / "outputs" / "model", device)
    print(f"sft: loss {sft['loss']:.3g} after {sft['steps']} updates; adapters: {adapters['parameters']} parameters")
    print(f"grpo: reward on val {told['reward_start']:.3f} -> {told['reward']:.3f}, {told['tokens']} tokens sampled")
    print(f"engine: {speed:,.0f} tokens/s ({ENGINE_PROMPTS} prompts at once)")
    if on_gpu:
        print(f"memory: at most {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB")
    print(f"took {time.monotonic() - began:.0f} s")
    if told["reward"] <= told["reward_start"]:
        print("nothing was learned: the reward on val did not rise", file=sys.stderr)
        return 3
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    if lacks := list(missing(options.device)):
        for line in lacks:
            print(f"missing: {line}", file=sys.stderr)
        return 5
    return check(options.device, options.steps)


if __name__ == "__main__":
    sys.exit(main())
