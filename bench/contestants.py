"""What the benchmark measures, each run in a process of its own: ``python bench/contestants.py NAME --base URL --n N``.

raw     a bare loop of OpenAI SDK calls: no framework at all
ours    the rollout engine with process isolation, through the gateway: --slots 1 or 8
peer    agentlightning 0.3.0 by its public API: --slots runners
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT = "BASE PROMPT. TASK {q}"


def raw(base: str, n: int, slots: int) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=base, api_key="none")
    for number in range(n):
        message = {"role": "user", "content": PROMPT.format(q=f"t{number}")}
        client.chat.completions.create(model="fake", messages=[message])


def ours(base: str, n: int, slots: int) -> None:
    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-") as folder:
        asyncio.run(_ours(base, n, slots, Path(folder)))


async def _ours(base: str, n: int, slots: int, folder: Path) -> None:
    from lightningrun.agents import pool as pools
    from lightningrun.gateway.server import Gateway
    from lightningrun.models.service import ModelService
    from lightningrun.recipe.model import Recipe
    from lightningrun.rollouts.engine import RolloutEngine, RolloutRequest
    from lightningrun.tracking.journal import RunJournal
    from lightningrun.types import Task

    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "bench",
            "agent": {"entrypoint": f"{HERE}/sdk_agent.py:solve"},
            "task": {"data": {"train": "none"}},
            "reward": {"function": f"{HERE}/sdk_agent.py:reward"},
            "models": {"policy": {"provider": "openai", "name": "fake", "base_url": base}},
            "execution": {"workers": slots},
        }
    )
    service = ModelService(recipe.models, folder / "calls.jsonl", seed=0)
    gateway = Gateway(service)
    await gateway.start()
    pool = pools.build(recipe, gateway, folder)
    journal = RunJournal(folder / "journal.jsonl")
    try:
        await pool.start()
        engine = RolloutEngine(
            stage="bench", recipe=recipe, pool=pool, gateway=gateway, service=service, journal=journal, memo={}, seed=0
        )
        tasks = [Task(f"t{number}", "train", {"q": f"t{number}"}) for number in range(n)]
        began = time.perf_counter()
        rollouts = await engine.run([RolloutRequest(task, {"system": PROMPT}) for task in tasks])
        assert all(rollout.status.scored and rollout.llm_calls == 1 and not rollout.error for rollout in rollouts)
        print(f"{time.perf_counter() - began:.3f} s in the engine", file=sys.stderr)
    finally:
        await pool.close()
        await gateway.stop()
        await service.aclose()
        journal.close()


def peer(base: str, n: int, slots: int) -> None:
    import agentlightning as agl
    from agentlightning.algorithm import Algorithm
    from openai import OpenAI

    agl.setup_logging("WARNING")
    clients: list[OpenAI] = []

    class EnqueueAll(Algorithm):
        """All rollouts at once, then a wait until its store says that they are done."""

        async def run(self, train_dataset: object = None, val_dataset: object = None) -> None:
            store = self.get_store()
            prompt = agl.PromptTemplate(template=PROMPT, engine="f-string")
            resources = await store.add_resources({"prompt_template": prompt})
            ids = []
            for row in train_dataset or []:  # type: ignore[attr-defined]
                rollout = await store.enqueue_rollout(input=row, mode="train", resources_id=resources.resources_id)
                ids.append(rollout.rollout_id)
            while len(  # noqa: ASYNC110
                await store.wait_for_rollouts(rollout_ids=ids, timeout=0.0)
            ) < len(ids):
                await asyncio.sleep(0.05)

    @agl.rollout
    def agent(task: dict[str, str], prompt_template: agl.PromptTemplate) -> float:
        if not clients:
            clients.append(OpenAI(base_url=base, api_key="none"))
        message = {"role": "user", "content": prompt_template.template.format(q=task["q"])}
        reply = clients[0].chat.completions.create(model="fake", messages=[message])
        return float(reply.choices[0].message.content == "right")

    port = 20000 + os.getpid() % 20000
    trainer = agl.Trainer(
        algorithm=EnqueueAll(),
        n_runners=slots,
        adapter=agl.TraceToMessages(),
        strategy={"type": "cs", "n_runners": slots, "server_port": port},
    )
    trainer.fit(agent, train_dataset=[{"q": f"t{number}"} for number in range(n)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["raw", "ours", "peer"])
    parser.add_argument("--base", required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=1)
    chosen = parser.parse_args()
    {"raw": raw, "ours": ours, "peer": peer}[chosen.name](chosen.base, chosen.n, chosen.slots)


if __name__ == "__main__":
    main()
