"""A prompt search of any size as its journal tells it: rewrites, merges, refusals and duplicates, from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightningrun.files import digest
from tests.tracking.fake_run import RUN, FakeRun, rows

RULES = [f"Rule {n}: mind the {word}." for n, word in enumerate(("units", "order", "names", "dates", "limits") * 80)]
SEED = {"system": "You answer questions.\nBe exact.", "judge": "Is the answer right?"}
KEY = "a" * 64


class FakeSearch:
    """Writes a search into a run. Candidates are random but for the seed; the best on val wins."""

    def __init__(self, runs_dir: Path, run: str = RUN, hostile: str = "") -> None:
        self.run = FakeRun(runs_dir, run)
        self.hostile = hostile
        self.rng = random.Random(7)
        self.ids = [row["id"] for row in rows("val", self.run.n)]
        self.told: list[dict[str, Any]] = []
        self.spent = 0

    @property
    def pool(self) -> list[dict[str, Any]]:
        return [event for event in self.told if event["val"]]

    def start(self) -> None:
        self.run.start()
        forecast = {"rollouts": 9000, "llm_calls": {"policy": 9000, "coach": 400}, "cost_usd": 0.9}
        self.run.emit("stage_started", "apo", type="apo", ordinal=2, attempt=1, key=KEY, reason="", forecast=forecast)
        self.tell(0, [], SEED, "seed", self.scores(0.2))

    def scores(self, mean: float) -> dict[str, float]:
        return {id: float(self.rng.random() < mean) for id in self.ids}

    def tell(
        self,
        id: int,
        parents: list[int],
        prompts: Mapping[str, str],
        verdict: str,
        val: Mapping[str, float] | None,
        **more: Any,
    ) -> None:
        self.spent += len(self.ids) if val else 8
        best = max(self.pool, key=lambda event: event["val"]["mean"], default={"id": 0, "val": {"mean": -1.0}})
        mean = None if val is None else sum(val.values()) / len(val)
        event = {
            "id": id,
            "step": id,
            "parents": parents,
            "component": "system",
            "diff": "",
            "prompts": dict(prompts),
            "coach": [id] if id else [],
            "critique": f"What went wrong:\n- It forgets rule {id}.{self.hostile}\n- It guesses." if id else "",
            "acceptance": {"before": 0.25, "after": 0.5 if val else 0.25, "n": 8} if id else None,
            "verdict": verdict,
            "reason": "0.250 -> 0.500 on 8 training rows",
            "val": None if val is None else {"mean": mean, "n": len(val), "scores": dict(val)},
            "incumbent": id if mean is not None and mean > best["val"]["mean"] else best["id"],
            "spend": {"rollouts": self.spent, "coach_calls": id, "llm_calls": self.spent + id, "usd": self.spent / 1e4},
            "prompt_tokens": 20 + id,
            **more,
        }
        self.told.append(event)
        self.run.emit("candidate", "apo", **event)
        if val:
            label, score = ("candidate" if id else "seed"), {"val_reward": mean}
            for name in ("system",):
                text = prompts[name]
                self.run.emit("prompt", "apo", name=name, text=text, digest=digest(text), label=label, promoted=False,
                              metrics=score, candidate=id)  # fmt: skip
            top = max(event["val"]["mean"] for event in self.pool)
            self.run.emit("metric", "apo", step=self.spent, values={"val_reward": top, "rollouts": self.spent})

    def propose(self, id: int) -> None:
        """One more candidate: one in ten a merge, one in four good enough for val."""
        pool = self.pool
        parent = max(pool, key=lambda e: e["val"]["mean"]) if self.rng.random() < 0.7 else self.rng.choice(pool)
        parents = [parent["id"]]
        text = parent["prompts"]["system"] + f"\n{RULES[id]}{self.hostile}"
        way = "rewrite"
        if id % 10 == 0 and len(pool) > 2:
            other = self.rng.choice([event for event in pool if event["id"] != parent["id"]])
            parents.append(other["id"])
            text += other["prompts"]["system"].removeprefix(SEED["system"])
            way = "merge"
        prompts = {**SEED, "system": text}
        more = {"algorithm": "reflective", "way": way, "components": ["system"]}
        if self.rng.random() < 0.25 or id == 1:
            mean = min(0.95, parent["val"]["mean"] + self.rng.uniform(-0.15, 0.2))
            self.tell(id, parents, prompts, "accepted", self.scores(mean), **more)
        else:
            verdict = self.rng.choice(["rejected"] * 6 + ["invalid", "duplicate"])
            self.tell(id, parents, prompts, verdict, None, **more)

    def finish(self, promoted: bool = True) -> dict[str, Any]:
        """The confirmation's verdict, and the stage's end. Returns the winner's event."""
        best, seed = max(self.pool, key=lambda event: (event["val"]["mean"], -event["id"])), self.told[0]
        text = best["prompts"]["system"]
        self.run.emit("prompt", "apo", name="system", text=text, digest=digest(text), label="best", promoted=promoted,
                      metrics={"val_reward": best["val"]["mean"]}, candidate=best["id"])  # fmt: skip
        word = "promoted" if promoted else "not_promoted"
        if best["id"]:
            self.run.emit("candidate", "apo", **{**best, "verdict": word, "reason": "the confirmation", "critique": "",
                          "coach": [], "acceptance": None, "incumbent": best["id"] if promoted else 0})  # fmt: skip
        metrics = {
            "seed_val": seed["val"]["mean"],
            "best_val": best["val"]["mean"],
            "promoted": promoted,
            "p_value": 0.001 if promoted else 0.3,
            "p_threshold": 0.01,
            "rollouts": self.spent,
            "stopped": "the budget is spent",
            "test_gain": 0.3,
            "test_gain_low": 0.1,
            "test_gain_high": 0.45,
            "noise": 0.01,
            "noise_low": -0.02,
            "noise_high": 0.04,
        }
        self.run.finish_stage("apo", metrics, {}, coach=len(self.told) - 1)
        return best


def search_run(runs_dir: Path, candidates: int, run: str = RUN, hostile: str = "", promoted: bool = True) -> Path:
    """A finished run of nothing but a search with so many candidates, the seed included."""
    search = FakeSearch(runs_dir, run, hostile)
    search.start()
    for id in range(1, candidates):
        search.propose(id)
    search.finish(promoted)
    search.run.end()
    search.run.close()
    return search.run.path
