"""One prompt optimisation, in the current folder: ``python bench/apo_contestants.py ours|peer --base URL``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "BASE PROMPT. TASK {q}"
ROWS = 29
SLOTS = 8
CALLS = 245


def ours(base: str) -> None:
    model = {"provider": "openai", "name": "fake", "base_url": base}
    recipe = {
        "version": 1,
        "name": "bench",
        "agent": {"entrypoint": f"{HERE}/sdk_agent.py:solve", "prompts": {"system": PROMPT}},
        "task": {"data": {"train": "train.jsonl", "val": "val.jsonl"}},
        "reward": {"function": f"{HERE}/sdk_agent.py:reward"},
        "models": {"policy": model, "coach": {**model, "name": "coach"}},
        "tracking": {"enabled": False},
        "execution": {"workers": SLOTS},
        "stages": {
            "apo": {
                "type": "apo",
                "budget": {"max_rollouts": CALLS, "max_llm_calls": CALLS},
                "stop": {"patience": 100, "stall_proposals": 100},
            }
        },
    }
    for split in ("train", "val"):
        rows = [json.dumps({"id": f"{split}{number}", "q": f"{split}{number}"}) for number in range(ROWS)]
        Path(f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    Path("recipe.yaml").write_text(json.dumps(recipe))
    # In this process, as the console script does it.
    from lightningrun.cli import main as command_line

    sys.argv = ["lightningrun", "run", "recipe.yaml"]
    command_line()


def peer(base: str) -> None:
    import agentlightning as agl
    from openai import AsyncOpenAI, OpenAI

    agl.setup_logging("WARNING")
    clients: list[OpenAI] = []

    @agl.rollout
    def agent(task: dict[str, str], prompt_template: agl.PromptTemplate) -> float:
        if not clients:
            clients.append(OpenAI(base_url=base, api_key="none"))
        message = {"role": "user", "content": prompt_template.template.format(q=task["q"])}
        reply = clients[0].chat.completions.create(model="fake", messages=[message])
        return float(reply.choices[0].message.content == "right")

    tutorial = {"val_batch_size": 10, "gradient_batch_size": 4, "beam_width": 2, "branch_factor": 2, "beam_rounds": 2}
    trainer = agl.Trainer(
        algorithm=agl.APO(AsyncOpenAI(base_url=base, api_key="none"), **tutorial),
        n_runners=SLOTS,
        adapter=agl.TraceToMessages(),
        strategy={"type": "cs", "n_runners": SLOTS, "server_port": 20000 + os.getpid() % 20000},
        initial_resources={"prompt_template": agl.PromptTemplate(template=PROMPT, engine="f-string")},
    )
    train, val = ([{"q": f"{split}{number}"} for number in range(ROWS)] for split in ("train", "val"))
    trainer.fit(agent, train_dataset=train, val_dataset=val)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["ours", "peer"])
    parser.add_argument("--base", required=True)
    chosen = parser.parse_args()
    {"ours": ours, "peer": peer}[chosen.name](chosen.base)


if __name__ == "__main__":
    main()
