"""Writes the folder of a run (baseline, apo, final) with the journal's own classes, without running anything."""

from __future__ import annotations

import difflib
import json
import time
from pathlib import Path
from typing import Any

from lightningrun.files import Journal, digest
from lightningrun.tracking.journal import RunJournal
from lightningrun.types import LLMCall, Rollout, RolloutStatus, Usage

SEED_PROMPT = "You write SQL for cricket.db.\nAnswer with one query."
BEST_PROMPT = "You write SQL for cricket.db.\nFor totals use SUM, then GROUP BY.\nAnswer with one query."
QUESTIONS = (
    ("List all batsmen from {0}.", "filter"),
    ("Which country has the most debutants after {1}?", "group"),
    ("What is the average of ODI runs in {0}?", "aggregate"),
    ("Who are the top {2} scorers in tests?", "order"),
)
COUNTRIES = ("India", "Australia", "England", "Pakistan", "Sri Lanka", "New Zealand")
RUN = "20261122-120000-sql_agent-abc123"


def rows(split: str, n: int) -> list[dict[str, Any]]:
    made = []
    for i in range(n):
        text, tag = QUESTIONS[i % len(QUESTIONS)]
        question = text.format(COUNTRIES[i % len(COUNTRIES)], 2000 + i, 3 + i % 5)
        made.append({"id": f"{split}-{i:02d}", "question": question, "tags": [tag]})
    return made


class FakeRun:
    """A run being written, event by event."""

    def __init__(self, runs_dir: Path, run: str = RUN, rows_per_split: int = 12, hostile: str = "") -> None:
        self.path = runs_dir / run
        self.path.mkdir(parents=True, exist_ok=True)
        self.n = rows_per_split
        self.hostile = hostile
        self._freeze()
        self.calls = Journal(self.path / "calls.jsonl")
        self.journal = RunJournal(self.path / "journal.jsonl")
        self.clock = time.time() - 60

    def _freeze(self) -> None:
        import yaml

        data = {}
        for split in ("train", "val", "test"):
            data[split] = str(self.path / f"{split}.jsonl")
            Path(data[split]).write_text("".join(json.dumps(row) + "\n" for row in rows(split, self.n)))
        resolved = {
            "version": 1,
            "name": "sql_agent",
            "seed": 7,
            "agent": {"entrypoint": "tasks.sql_agent.agent:answer", "prompts": {"system": {"text": SEED_PROMPT}}},
            "task": {"data": data, "id": "id"},
            "reward": {"function": "tasks.sql_agent.reward:execution_match"},
            "models": {
                "policy": {"provider": "python", "name": "student", "note": "simulated: no real model is called"},
                "coach": {"provider": "python", "name": "coach"},
            },
            "tracking": {"experiment": "sql_agent", "traces": {"per_step": 2, "failures": "all"}},
            "stages": {
                "baseline": {"type": "evaluate", "split": "test"},
                "apo": {"type": "apo", "budget": {"max_rollouts": 200}},
                "final": {"type": "evaluate", "split": "test"},
            },
        }
        (self.path / "resolved.yaml").write_text(yaml.safe_dump(resolved))
        digests = {"data": {split: digest(rows(split, self.n)) for split in data}}
        lock = {"run": self.path.name, "seed": 7, "git": {"commit": "0" * 40, "dirty": False}, "digests": digests}
        (self.path / "lock.json").write_text(json.dumps(lock))

    def emit(self, kind: str, stage: str | None = None, **fields: Any) -> None:
        self.journal.emit(kind, stage=stage, **fields)

    def start(self) -> None:
        self.emit(
            "run_started",
            run=self.path.name,
            name="sql_agent",
            recipe_digest="d" * 64,
            seed=7,
            notes=["policy: simulated: no real model is called"],
            stages={"baseline": "evaluate", "apo": "apo", "final": "evaluate"},
            argv="lightningrun recipes/sql_agent.yaml",
            warnings=[],
        )

    def rollout(
        self, stage: str, prompt: str, row: dict[str, Any], split: str, good: bool, sample: int = 0
    ) -> dict[str, Any]:
        key = f"{digest({'system': prompt})[:12]}/{split}/{row['id']}/{sample}"
        messages = [{"role": "system", "content": prompt}, {"role": "user", "content": row["question"]}]
        answer = "SELECT country_name FROM top_batsmen" + (" GROUP BY 1" if good else self.hostile)
        call = LLMCall(
            id=digest([stage, key])[:16],
            role="policy",
            model="student",
            stage=stage,
            owner=key,
            request={"model": "student", "messages": messages},
            response={
                "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]
            },
            started_at=self.clock,
            duration_s=0.05,
            usage=Usage(120, 20),
            cost_usd=0.0001,
        )
        ref = self.calls.append(call.to_json())
        self.clock += 0.1
        done = Rollout(
            key=key,
            stage=stage,
            task_id=row["id"],
            split=split,
            sample=sample,
            status=RolloutStatus.SUCCEEDED,
            score=1.0 if good else 0.0,
            feedback="rows match" if good else f"expected 3 rows, got 0{self.hostile}",
            output={"sql": answer, "rows": [["India", 3]]},
            call_refs=(ref,),
            llm_calls=1,
            usage=Usage(120, 20),
            cost_usd=0.0001,
            started_at=self.clock,
            duration_s=0.06,
            tags=tuple(row["tags"]),
        )
        self.emit("rollout", stage, rollout=done.to_json())
        return done.to_json()

    def evaluate(
        self,
        stage: str,
        ordinal: int,
        prompt: str,
        good: float,
        attempt: int = 1,
        finish: bool = True,
        split: str = "test",
    ) -> None:
        self.emit(
            "stage_started", stage, type="evaluate", ordinal=ordinal, attempt=attempt, key="k" * 64, reason="first run"
        )
        records = []
        for i, row in enumerate(rows(split, self.n)):
            easy = row["tags"] == ["filter"]
            records.append(self.rollout(stage, prompt, row, split, easy or (i % self.n) < good * self.n))
        if not finish:
            return
        outputs = self.path / "stages" / stage / "outputs"
        outputs.mkdir(parents=True, exist_ok=True)
        (outputs / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        mean = sum(record["score"] for record in records) / len(records)
        metrics: dict[str, Any] = {"reward": mean, "reward_low": max(0, mean - 0.2), "reward_high": min(1, mean + 0.2)}
        metrics.update({"pass_at_1": mean, "n": self.n, "n_failed": 0, "n_reward_errors": 0, "n_infra_errors": 0})
        for tag in sorted({record["tags"][0] for record in records}):
            scores = [record["score"] for record in records if tag in record["tags"]]
            metrics[f"tag.{tag}.reward"] = sum(scores) / len(scores)
            metrics[f"tag.{tag}.n"] = len(scores)
        self.finish_stage(stage, metrics, {"rollouts": {"kind": "rollouts", "value": None, "path": "rollouts.jsonl"}})

    def finish_stage(self, stage: str, metrics: dict[str, Any], outputs: dict[str, Any], coach: int = 0) -> None:
        cost = {
            "policy": {
                "calls": self.n,
                "prompt_tokens": 120 * self.n,
                "completion_tokens": 20 * self.n,
                "usd": 0.0001 * self.n,
            }
        }
        if coach:
            cost["coach"] = {"calls": coach, "prompt_tokens": 900, "completion_tokens": 300, "usd": 0.002}
        self.emit(
            "stage_finished",
            stage,
            status="succeeded",
            metrics=metrics,
            outputs=outputs,
            cost=cost,
            duration_s=2.5,
            error="",
        )

    def apo(self, ordinal: int = 2, attempt: int = 1, finish: bool = True) -> None:
        self.emit(
            "stage_started", "apo", type="apo", ordinal=ordinal, attempt=attempt, key="a" * 64, reason="first run"
        )
        for row in rows("val", self.n):
            self.rollout("apo", SEED_PROMPT, row, "val", row["tags"] == ["filter"])
        self.candidate(0, [], SEED_PROMPT, "seed", 0.25, self.n, 0)
        self.emit(
            "prompt",
            "apo",
            name="system",
            text=SEED_PROMPT,
            digest=digest(SEED_PROMPT),
            label="seed",
            promoted=False,
            metrics={},
        )
        self.emit("metric", "apo", step=self.n, values={"val_reward": 0.25, "rollouts": self.n})
        self.candidate(1, [0], SEED_PROMPT + "\nBe brief.", "rejected", None, self.n + 8, 0)
        if not finish:
            return
        for i, row in enumerate(rows("val", self.n)):
            self.rollout("apo", BEST_PROMPT, row, "val", i % 6 != 5)
        self.candidate(2, [0], BEST_PROMPT, "promoted", 10 / 12, 2 * self.n + 16, 2)
        self.emit("metric", "apo", step=2 * self.n + 16, values={"val_reward": 10 / 12, "rollouts": 2 * self.n + 16})
        self.emit(
            "prompt",
            "apo",
            name="system",
            text=BEST_PROMPT,
            digest=digest(BEST_PROMPT),
            label="best",
            promoted=True,
            metrics={"val": 10 / 12},
        )
        prompts = self.path / "stages/apo/outputs/prompts"
        prompts.mkdir(parents=True, exist_ok=True)
        (prompts / "system.md").write_text(BEST_PROMPT)
        metrics = {
            "seed_val": 0.25,
            "best_val": 10 / 12,
            "promoted": True,
            "p_value": 0.004,
            "rollouts": 2 * self.n + 16,
            "coach_calls": 2,
        }
        metrics.update({"llm_calls": 2 * self.n + 18, "candidates": 3})
        self.finish_stage(
            "apo", metrics, {"prompts": {"kind": "prompts", "value": {"system": BEST_PROMPT}, "path": ""}}, coach=2
        )

    def candidate(
        self, id: int, parents: list[int], text: str, verdict: str, val: float | None, rollouts: int, incumbent: int
    ) -> None:
        diff = "\n".join(
            difflib.unified_diff(SEED_PROMPT.splitlines(), text.splitlines(), "parent", "child", lineterm="")
        )
        self.emit(
            "candidate",
            "apo",
            id=id,
            step=id,
            parents=parents,
            component="system",
            diff=diff,
            prompts={"system": text},
            coach=[],
            critique="the prompt never says how to aggregate" + self.hostile if id else "",
            acceptance={"before": 0.25, "after": 0.25 if verdict == "rejected" else 0.75, "n": 8} if id else None,
            verdict=verdict,
            reason={"rejected": "no better on 8 rows", "promoted": "better on 8 of 8 changed rows, p = 0.004"}.get(
                verdict, ""
            ),
            val=None if val is None else {"mean": val, "n": self.n, "scores": {}},
            incumbent=incumbent,
            spend={"rollouts": rollouts, "coach_calls": id, "llm_calls": rollouts + id, "usd": 0.001 * rollouts},
            prompt_tokens=len(text) // 4,
        )

    def end(self, status: str = "succeeded", exit_code: int = 0, error: str = "") -> None:
        self.emit("run_finished", status=status, exit_code=exit_code, error=error, metrics={}, duration_s=12.5)

    def close(self) -> None:
        self.journal.close()
        self.calls.close()


def whole_run(runs_dir: Path, run: str = RUN, n: int = 12, hostile: str = "") -> Path:
    """A finished run, baseline then apo then final."""
    fake = FakeRun(runs_dir, run, n, hostile)
    fake.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    fake.apo()
    fake.evaluate("final", 3, BEST_PROMPT, 0.9)
    fake.emit("gate", "final", met=True, checks=[{"name": "min.reward", "value": 0.9, "bound": 0.8, "met": True}])
    fake.end()
    fake.close()
    return fake.path
