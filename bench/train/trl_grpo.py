"""TRL's GRPOTrainer on the same weights, questions and reward: ``python trl_grpo.py WEIGHTS --out FOLDER`` in its venv.

Writes ``steps.json``: of each step its reward and the processor seconds of the whole process between the ends of two
steps (``cpu_s``), of ``model.generate`` (``generation``) and of the reward function (``reward_cpu_s``) in it. The
weights at the end are left beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset

from tasks.sql_agent.reward import execution_match
from tasks.sql_agent.tools import extract_sql

TASK = Path(__file__).parents[2] / "tasks" / "sql_agent"


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Processor seconds of steps, and within them of what is wrapped with ``timed``."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self._last = time.process_time()

    def timed(self, name: str, function: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **options)
            finally:
                self.parts[name] = self.parts.get(name, 0.0) + time.process_time() - began

        wrapped.__name__ = name
        return wrapped

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.process_time()
        self.steps.append({"cpu_s": now - self._last, **self.parts})
        self._last, self.parts = now, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(chosen.weights, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(chosen.weights, dtype=torch.float32)
    system = (TASK / "prompts" / "short.md").read_text("utf-8").strip()
    rows = [json.loads(line) for line in (TASK / "rl.jsonl").read_text("utf-8").splitlines()]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "system", "content": system}, {"role": "user", "content": row["question"]}],
                "sql": row["sql"],
            }
            for row in rows
        ]
    )
    clock = Clock()

    def reward(completions: Any, sql: list[str], **_: Any) -> list[float]:
        answers = [extract_sql(completion[0]["content"]) for completion in completions]
        return [execution_match({"sql": gold}, {"sql": sql})["score"] for sql, gold in zip(answers, sql, strict=True)]

    # Set as ours is; all else is TRL's default, but for checkpointing of activations, which would only cost.
    config = trl.GRPOConfig(
        output_dir=str(chosen.out / "trainer"),
        per_device_train_batch_size=chosen.batch * chosen.group,
        num_generations=chosen.group,
        max_completion_length=40,
        max_steps=chosen.steps,
        learning_rate=chosen.lr,
        warmup_steps=5,
        lr_scheduler_type="linear",
        adam_beta2=0.98,
        weight_decay=0.0,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        seed=chosen.seed,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        args=config,
        train_dataset=data,
        reward_funcs=clock.timed("reward_cpu_s", reward),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.model.generate = clock.timed("generation", trainer.model.generate)
    trainer.train()
    told = [entry for entry in trainer.state.log_history if "reward" in entry]
    steps = [{"reward": entry["reward"], **spent} for entry, spent in zip(told, clock.steps, strict=True)]
    del trainer.model.generate
    chosen.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(chosen.out / "weights")
    tokenizer.save_pretrained(chosen.out / "weights")
    (chosen.out / "steps.json").write_text(json.dumps({"trl": trl.__version__, "steps": steps}, indent=1))


if __name__ == "__main__":
    main()
