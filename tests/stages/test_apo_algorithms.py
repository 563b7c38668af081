"""What every algorithm owes: it improves, never fools itself, keeps to its budgets, repeats itself, resumes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import RULES, Answer, HiddenRules, context, rows

from lightningrun.errors import BudgetReached, UsageError
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.stage import ALGORITHMS, run
from lightningrun.types import StageResult, Task

EACH = pytest.mark.parametrize("algorithm", list(ALGORITHMS))
ROWS = {f"question {split}{i}": f"{split}{i}" for split in ("train", "val") for i in range(40)}


class Killed(BaseException):
    """The process dies here."""


class Rules(HiddenRules):
    """Hidden rules that examples teach too, with a coach that criticises, edits, and reads any engine's question."""

    def quality(self, prompt: str, task: Task) -> float:
        shown = [Task(row, "train", {}) for asked, row in ROWS.items() if f"{asked}\n</given>" in prompt]
        taught = {rule for row in shown for rule in self.needs(row)}
        return super().quality(f"{prompt.partition('Examples of')[0]} {' '.join(taught)}", task)

    def coach(self, question: str, again: int) -> str:
        if "Do not rewrite anything yet" in question:
            return "\n".join(line for line in question.splitlines() if line.startswith("[feedback]"))
        if question.startswith("I provided an assistant"):
            _, current, rest = re.split(r"^```\n|\n```$", question, maxsplit=2, flags=re.MULTILINE)
            question = f'<current_prompt name="system">\n{current}\n</current_prompt>\n{rest}'
        return super().coach(question, again)


def options(algorithm: str, rollouts: int = 300, **given: Any) -> ApoConfig:
    budget = {"max_rollouts": rollouts, **given.pop("budget", {})}
    return ApoConfig.model_validate({"type": "apo", "algorithm": algorithm, "budget": budget, **given})


def told(ctx: Any, *kinds: str) -> list[dict[str, Any]]:
    times = ("seq", "ts")
    return [{k: v for k, v in e.items() if k not in times} for e in ctx.journal.events() if e["kind"] in kinds]


async def optimise(world: HiddenRules, folder: Path, config: ApoConfig, **more: Any) -> tuple[StageResult, Any]:
    ctx = world.context(folder, config, **more)
    result = await run(ctx, {})
    ctx.journal.close()
    return result, ctx


@EACH
async def test_improves_and_tells_how(tmp_path: Path, algorithm: str) -> None:
    world = Rules(1)
    result, ctx = await optimise(world, tmp_path, options(algorithm, 600))
    assert result.metrics["promoted"] is True
    assert world.true(result.outputs["prompts"].value) > world.true(world.prompts) + 0.25
    assert result.metrics["rollouts"] == ctx.engine.executed <= 600
    candidates = told(ctx, "candidate")
    assert (candidates[0]["verdict"], candidates[-1]["verdict"]) == ("seed", "promoted")
    scored = {event["id"] for event in candidates if event["verdict"] == "accepted" and event["val"]}
    assert len(scored) == result.metrics["candidates"] - 1
    assert 0.1 / len(scored) - 1e-9 <= result.metrics["p_threshold"] <= 0.2 / len(scored)
    known = {0}
    for event in candidates[1:-1]:
        assert set(event["parents"]) <= known
        assert event["reason"]
        if event["verdict"] == "accepted":
            assert event["diff"].count("\n+") > 0
            assert event["val"] is None or event["val"]["n"] == 30
            known.add(event["id"])


@EACH
async def test_never_ships_worse_than_the_seed_where_nothing_can_be_gained(tmp_path: Path, algorithm: str) -> None:
    worse = 0
    for number in range(12):
        world = Rules(number, null=True)
        result, _ = await optimise(world, tmp_path / str(number), options(algorithm, 200), seed=number)
        worse += world.true(result.outputs["prompts"].value) < world.true(world.prompts) - 0.005
    assert worse == 0


@EACH
async def test_the_result_does_not_depend_on_who_finishes_first(tmp_path: Path, algorithm: str) -> None:
    seen = []
    for shuffle in (0, 1, 2):
        result, ctx = await optimise(Rules(5), tmp_path / str(shuffle), options(algorithm, 350), shuffle=shuffle)
        story = [{k: v for k, v in e.items() if k != "coach"} for e in told(ctx, "candidate", "metric", "log")]
        seen.append((result.metrics, story))
    assert seen[0] == seen[1] == seen[2]


@EACH
@pytest.mark.parametrize("mode", ["corrected", "sealed", "fresh"])
async def test_no_budget_is_overshot_by_even_one(tmp_path: Path, algorithm: str, mode: str) -> None:
    ran = 0
    for limit in sorted({*range(1, 150, 9), 76, 77, 106, 107, 201}):
        config = options(algorithm, limit, confirm={"mode": mode}, budget={"max_coach_calls": 5})
        ctx = Rules(1).context(tmp_path / f"{mode}{limit}", config)
        try:
            result = await run(ctx, {})
        except UsageError as refused:
            assert "max_rollouts" in str(refused)
            assert ctx.engine.executed == ctx.service.paid == 0
            continue
        ran += 1
        assert ctx.engine.executed == result.metrics["rollouts"] <= limit
        assert ctx.service.paid == result.metrics["coach_calls"] <= 5
    assert ran >= 5


@EACH
async def test_killed_anywhere_it_goes_on_and_ends_the_same(tmp_path: Path, algorithm: str) -> None:
    config = options(algorithm, 220, confirm={"mode": "fresh"})
    whole, first = await optimise(Rules(2), tmp_path / "whole", config)
    executed, asked = first.engine.executed, first.service.paid
    deaths = [("rollout", n) for n in range(1, executed, executed // 6)] + [("coach", n) for n in range(1, asked + 1)]
    for what, number in deaths:
        folder = tmp_path / f"{what}{number}"
        world = Mortal(2, dies_at=number if what == "coach" else None)
        ctx = world.context(folder, config)
        if what == "rollout":
            ctx.engine.limit = dying(number)
        with pytest.raises(Killed):
            await run(ctx, {})
        ctx.journal.close()
        again, resumed = await optimise(Rules(2), folder, config, service=ctx.service.restarted(Rules(2).coach))
        assert again.metrics == whole.metrics, (what, number)
        assert again.outputs["prompts"].value == whole.outputs["prompts"].value
        assert ctx.engine.executed + resumed.engine.executed == executed
        assert ctx.service.paid + resumed.service.paid == asked
        names = ("id", "verdict", "parents", "diff", "reason")
        stories = [[[e[n] for n in names] for e in told(one, "candidate")] for one in (resumed, first)]
        assert stories[0] == stories[1]


def dying(number: int) -> Callable[[int], None]:
    def limit(executed: int) -> None:
        if executed >= number:
            raise Killed

    return limit


class Mortal(Rules):
    """Its process dies at the n-th question to the coach."""

    def __init__(self, number: int, dies_at: int | None) -> None:
        super().__init__(number)
        self.asked = 0
        self.dies_at = dies_at

    def coach(self, question: str, again: int) -> str:
        self.asked += 1
        if self.asked == self.dies_at:
            raise Killed
        return super().coach(question, again)


@EACH
async def test_a_call_budget_ends_the_search_with_what_it_has(tmp_path: Path, algorithm: str) -> None:
    def spent(executed: int) -> None:
        if executed >= 90:
            raise BudgetReached("the budget of 90 LLM calls is spent")

    ctx = Rules().context(tmp_path, options(algorithm, 300))
    ctx.engine.limit = spent
    result = await run(ctx, {})
    assert ctx.engine.executed == 90
    assert "90 LLM calls" in str(result.metrics["stopped"])


@EACH
async def test_time_that_is_over_ends_a_search_and_is_remembered(tmp_path: Path, algorithm: str) -> None:
    hurried = options(algorithm, 300, budget={"timeout_s": 1e-9})
    result, _ = await optimise(Rules(), tmp_path, hurried)
    assert result.metrics["stopped"] == "budget.timeout_s is over"
    again, _ = await optimise(Rules(), tmp_path, options(algorithm, 300, budget={"timeout_s": 1e9}))
    assert again.metrics == result.metrics


@EACH
async def test_a_perfect_seed_costs_one_validation(tmp_path: Path, algorithm: str) -> None:
    splits = {"train": rows("train", 20), "val": rows("val", 16)}
    config = options(algorithm, 200)
    ctx = context(tmp_path, config, {"system": "Fine."}, splits, lambda p, t, s: Answer(1.0), lambda q, n: "")
    result = await run(ctx, {})
    assert (ctx.engine.executed, ctx.service.paid) == (16, 0)
    assert result.outputs["prompts"].value == {"system": "Fine."}


def test_the_world_teaches_by_example() -> None:
    world, task = Rules(1), rows("val", 1)[0]
    example = next(row for row in rows("train", 40) if set(world.needs(task)) <= set(world.needs(row)))
    prompt = f"Answer. Examples of good answers:\n{example.fields['q']}\n</given>"
    assert set(world.needs(task)) <= set(RULES)
    assert world.quality(prompt, task) > world.quality("Answer.", task)
