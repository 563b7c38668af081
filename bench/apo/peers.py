"""Prompt optimisations by peers, unmodified from their packages, on the same endpoint; run in the peers' own venv.

    .venv-peer/bin/python bench/apo/peers.py '{"base": ..., "engine": "gepa", "world": "additive-100", "run": ..., ...}'

Prints one JSON line a world: every incumbent with what had been spent when it became one. Rollouts are plain HTTP calls
from this process, without the peer's own runner: cheaper and faster than its users see, in its favour. The search
ends when the budget of rollouts is reached, in the middle of whatever the peer was doing.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import random
import re
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
sys.path.insert(1, str(Path(__file__).resolve().parent))

import worlds


class BudgetSpent(BaseException):
    """All rollouts are spent; not an Exception, so that no engine takes it for a failed rollout."""


@dataclass
class Bench:
    """What an engine is given: rows, prompts to start from, a way to run the agent, and one to ask the coach."""

    base: str
    world: worlds.World
    model: str
    budget: int
    rollouts: int = 0
    asked: list[int] = field(default_factory=list)
    """Rollouts spent at each question to the coach."""
    marks: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        host, _, _ = self.base.removeprefix("http://").partition("/")
        self._connection = http.client.HTTPConnection(host)
        self.mark(self.world.seed_prompts, None)

    def rollout(self, prompts: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
        """Run and grade the agent on one row: score, feedback, and the messages of the call. Raises BudgetSpent."""
        if self.rollouts >= self.budget:
            raise BudgetSpent
        self.rollouts += 1
        texts = [prompts[name].replace(worlds.PLACEHOLDER, row["question"]) for name in self.world.components]
        roles = ["system"] * (len(texts) - 1) + ["user"]
        asked = [{"role": role, "content": text} for role, text in zip(roles, texts)]  # noqa: B905
        answer = self._chat(f"student@{self.model}", asked)
        score, feedback = worlds.grade(row, answer)
        said = {"role": "assistant", "content": answer}
        return {"score": score, "feedback": feedback, "answer": answer, "messages": [*asked, said]}

    def coach(self, messages: Sequence[Mapping[str, Any]]) -> str:
        self.asked.append(self.rollouts)
        return self._chat(f"coach@{self.model}", messages)

    def mark(self, prompts: Mapping[str, str], claim: float | None) -> None:
        """Note the engine's incumbent, and the score that it believes it has on val."""
        self.marks.append({"prompts": dict(prompts), "claim": claim, "rollouts": self.rollouts})

    def _chat(self, model: str, messages: Sequence[Mapping[str, Any]]) -> str:
        body = json.dumps({"model": model, "messages": messages})
        self._connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        data = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"the endpoint answered {reply.status}: {data[:300]!r}")
        return str(json.loads(data)["choices"][0]["message"]["content"])


def gepa(bench: Bench, **options: Any) -> None:
    """GEPA 0.1.4: ``gepa.optimize`` with an adapter; ``options`` are its own."""
    import gepa as package
    from gepa import EvaluationBatch

    class Adapter:
        propose_new_texts = None

        def evaluate(self, batch: Any, candidate: Any, capture_traces: bool = False) -> Any:
            done = [bench.rollout(candidate, row) for row in batch]
            return EvaluationBatch(
                outputs=[one["answer"] for one in done],
                scores=[one["score"] for one in done],
                trajectories=[{**one, "row": row} for one, row in zip(done, batch)] if capture_traces else None,  # noqa: B905
            )

        def make_reflective_dataset(self, candidate: Any, evaluated: Any, components: Any) -> Any:
            examples = [
                {
                    "Inputs": one["row"]["question"],
                    "Generated Outputs": one["answer"],
                    "Feedback": f"score {one['score']:g}. {one['feedback']}",
                }
                for one in evaluated.trajectories
            ]
            return dict.fromkeys(components, examples)

    class Incumbent:
        def on_valset_evaluated(self, event: Any) -> None:
            if event["is_best_program"]:
                bench.mark(event["candidate"], event["average_score"])

    class Silent:
        def log(self, message: str) -> None:
            pass

    def ask(prompt: Any) -> str:
        return bench.coach([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)

    package.optimize(
        seed_candidate=dict(bench.world.seed_prompts),
        trainset=bench.world.splits["train"],
        valset=bench.world.splits["val"],
        adapter=Adapter(),
        reflection_lm=ask,
        max_metric_calls=10**9,
        logger=Silent(),
        callbacks=[Incumbent()],
        seed=bench.world.number,
        **options,
    )


def agentlightning(bench: Bench, **options: Any) -> None:
    """agentlightning 0.3.0's ``APO``; ``options`` are its own.

    Its search is untouched. Replaced are the hop through its store and runners (by a direct call), and the rendering
    of its questions by a Node process of one to three seconds each (by the same contents as plain text). It knows one
    prompt; several are given to it as one text, and taken apart again by the agent.
    """
    import agentlightning.algorithm.apo.apo as module
    from agentlightning.types import PromptTemplate

    logging.disable(logging.WARNING)
    components = bench.world.components

    def parts(text: str) -> dict[str, str]:
        if len(components) == 1:
            return {components[0]: text}
        found = {name: text[start:end] for name, _, start, end in worlds.sections(text)}
        return {name: found.get(name, "") for name in components}

    def render(template: Any, context: Mapping[str, Any], format: str) -> dict[str, Any]:
        source = Path(template).read_text()
        task = " ".join(source.replace("{{", "<").replace("}}", ">").split())
        contents = "\n\n".join(f"{key}:\n{_plain(value)}" for key, value in context.items())
        asked = _without_tags(task)
        return {"messages": [{"role": "system", "content": asked}, {"role": "user", "content": contents}]}

    async def create(model: str, messages: Any, temperature: float) -> Any:
        message = types.SimpleNamespace(content=bench.coach(messages))
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])

    class Direct(module.APO):  # type: ignore[misc, type-arg]
        async def evaluate_prompt_on_batch(
            self, prompt: Any, resource_name: str, dataset: Any, mode: str, *, prefix: Any = None
        ) -> Any:
            done = [bench.rollout(parts(prompt.prompt_template.template), row) for row in dataset]
            results = []
            for one in done:
                told = [*one["messages"], {"role": "user", "content": f"[grader] {one['score']:g}: {one['feedback']}"}]
                results.append(
                    {
                        "status": "succeeded",
                        "final_reward": one["score"],
                        "spans": [{"messages": told}],
                        "messages": told,
                    }
                )
            return results, sum(one["score"] for one in done) / max(1, len(done))

        async def _update_best_prompt(self, *arguments: Any, **named: Any) -> None:
            await super()._update_best_prompt(*arguments, **named)
            bench.mark(parts(self._history_best_prompt.template), self._history_best_score)

    module.poml = types.SimpleNamespace(poml=render, set_trace=lambda **_: None)
    client = types.SimpleNamespace(chat=types.SimpleNamespace(completions=types.SimpleNamespace(create=create)))
    random.seed(bench.world.number)
    apo = Direct(client, **{"beam_rounds": 1000, **options})
    seed = "\n".join(bench.world.seed_prompts[name] for name in components)
    apo.set_initial_resources({"prompt": PromptTemplate(template=seed, engine="f-string")})
    search: Callable[..., Any] = module.APO.run
    while hasattr(search, "__wrapped__"):
        search = search.__wrapped__  # its decorators want the store that is not there
    asyncio.run(search(apo, None, None, bench.world.splits["train"], bench.world.splits["val"]))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1)


def _without_tags(text: str) -> str:
    """A .poml template's words, its captions included."""
    captions = re.sub(r'<cp [^>]*caption="([^"]*)"[^>]*>', r"\1: ", text)
    return " ".join(re.sub(r"<!--.*?-->|<[^>]+>", " ", captions).split())


ENGINES = {"gepa": gepa, "agentlightning": agentlightning}


def main() -> None:
    job = json.loads(sys.argv[1])
    for name in job["worlds"]:
        family, _, number = name.rpartition("-")
        model = f"{name}{job.get('settings', '')}@{job['run']}-{name}"
        bench = Bench(job["base"], worlds.make(family, int(number)), model, job["budget"])
        began = time.perf_counter()
        ended = "budget"
        try:
            ENGINES[job["engine"]](bench, **job["options"])
            ended = "by itself"
        except BudgetSpent:
            pass
        spent = {"rollouts": bench.rollouts, "asked": bench.asked, "wall_s": time.perf_counter() - began}
        print(json.dumps({"world": name, "marks": bench.marks, "ended": ended, **spent}), flush=True)


if __name__ == "__main__":
    main()
