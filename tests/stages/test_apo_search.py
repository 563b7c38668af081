"""The search on small worlds: it improves, it does not fool itself, it keeps to its budget, it repeats itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from world import Answer, HiddenRules, context, rows

from lightningrun.errors import BudgetReached, ModelError, UsageError
from lightningrun.stages.apo.config import ApoConfig
from lightningrun.stages.apo.stage import run
from lightningrun.types import RolloutStatus, StageResult, Task


def options(rollouts: int = 300, **given: Any) -> ApoConfig:
    budget = {"max_rollouts": rollouts, **given.pop("budget", {})}
    return ApoConfig.model_validate({"type": "apo", "budget": budget, **given})


def told(ctx: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in ctx.journal.events() if event["kind"] == kind]


def trajectory(ctx: Any) -> list[Any]:
    return [
        {key: value for key, value in event.items() if key not in ("seq", "ts")}
        for event in ctx.journal.events()
        if event["kind"] in ("candidate", "metric", "prompt", "log")
    ]


async def optimise(world: HiddenRules, folder: Path, config: ApoConfig, **more: Any) -> tuple[StageResult, Any]:
    ctx = world.context(folder, config, **more)
    result = await run(ctx, {})
    ctx.journal.close()
    return result, ctx


async def test_repairs_the_prompt_from_feedback_and_says_how(tmp_path: Path) -> None:
    world = HiddenRules()
    result, ctx = await optimise(world, tmp_path, options(400))
    prompts = result.outputs["prompts"].value
    assert world.true(prompts) > world.true(world.prompts) + 0.3
    assert result.metrics["promoted"] is True
    assert result.metrics["p_value"] <= result.metrics["p_threshold"]
    assert result.metrics["best_val"] > result.metrics["seed_val"]
    assert result.metrics["rollouts"] == ctx.engine.executed <= 400
    assert result.metrics["llm_calls"] == ctx.engine.executed + ctx.service.paid
    assert (tmp_path / "outputs/prompts/system.md").read_text() == prompts["system"]
    candidates = told(ctx, "candidate")
    assert [event["id"] for event in candidates[:2]] == [0, 1]
    assert candidates[0]["verdict"] == "seed"
    assert candidates[-1]["verdict"] == "promoted"
    accepted = next(event for event in candidates if event["verdict"] == "accepted" and event["val"])
    assert accepted["val"]["n"] == 30
    assert accepted["acceptance"]["after"] > accepted["acceptance"]["before"]
    assert "+" in accepted["diff"]
    assert set(accepted["critique"].split("\n\n")) == {"Some rules were missing."}
    assert all(ctx.service.read(ref).owner == f"coach:{accepted['id']}" for ref in accepted["coach"])
    curve = [event["values"]["val_reward"] for event in told(ctx, "metric")]
    assert curve == sorted(curve)
    best = [event for event in told(ctx, "prompt") if event["label"] == "best"]
    assert best[0]["promoted"] is True
    assert best[0]["text"] == prompts["system"]


async def test_graded_rewards_are_improved_and_confirmed_by_permutation(tmp_path: Path) -> None:
    world = HiddenRules(3, graded=True)
    result, _ = await optimise(world, tmp_path, options(400), reward_range=(0.0, 1.0))
    assert result.metrics["promoted"] is True
    assert world.true(result.outputs["prompts"].value) > world.true(world.prompts) + 0.3


async def test_never_ships_worse_than_the_seed_where_nothing_can_be_gained(tmp_path: Path) -> None:
    promoted, regressed, tried = 0, 0, 0
    for number in range(60):
        world = HiddenRules(number, null=True)
        result, _ = await optimise(world, tmp_path / str(number), options(200), seed=number)
        promoted += bool(result.metrics["promoted"])
        seed = world.true(world.prompts)
        regressed += world.true(result.outputs["prompts"].value) < seed - 0.005
        tried += int(result.metrics["proposals"])
    assert regressed <= 1
    assert promoted <= 6
    assert tried > 60


@pytest.mark.parametrize("more", [{}, {"proposals": {"parents": 2, "per_parent": 2}}], ids=["one", "generation"])
async def test_the_result_does_not_depend_on_who_finishes_first(tmp_path: Path, more: dict[str, Any]) -> None:
    seen = []
    for shuffle in (0, 1, 2):
        result, ctx = await optimise(HiddenRules(5), tmp_path / str(shuffle), options(350, **more), shuffle=shuffle)
        calls = ("coach", "critique")
        seen.append((result.metrics, [{k: v for k, v in e.items() if k not in calls} for e in trajectory(ctx)]))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("mode", ["corrected", "sealed", "fresh", "none"])
async def test_no_budget_is_overshot_by_even_one(tmp_path: Path, mode: str) -> None:
    ran = 0
    for limit in sorted({*range(1, 130, 7), 76, 77, 106, 107, 200, 201}):
        config = options(limit, confirm={"mode": mode}, budget={"max_coach_calls": 9})
        world = HiddenRules(1)
        ctx = world.context(tmp_path / f"{mode}{limit}", config)
        try:
            result = await run(ctx, {})
        except UsageError as refused:
            assert "max_rollouts" in str(refused)
            assert ctx.engine.executed == ctx.service.paid == 0
            continue
        ran += 1
        assert ctx.engine.executed == result.metrics["rollouts"] <= limit
        assert ctx.service.paid <= result.metrics["coach_calls"] <= 9
    assert ran >= 5


async def test_resume_from_any_point_repeats_nothing_and_ends_the_same(tmp_path: Path) -> None:
    world, config = HiddenRules(2), options(250, confirm={"mode": "fresh"}, proposals={"parents": 2})
    whole, first = await optimise(world, tmp_path / "whole", config)
    lines = (tmp_path / "whole/journal.jsonl").read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines), len(lines) // 6):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
        again, ctx = await optimise(world, folder, config, service=first.service.restarted())
        assert again.outputs["prompts"].value == whole.outputs["prompts"].value
        assert again.metrics == whole.metrics
        assert ctx.service.paid == 0
        kept = sum(b'"kind":"rollout"' in line for line in lines[:cut])
        assert ctx.engine.executed == first.engine.executed - kept
        verdicts = [(e["id"], e["verdict"]) for e in told(ctx, "candidate")]
        assert verdicts == [(e["id"], e["verdict"]) for e in told(first, "candidate")]
        shutil.rmtree(folder)


async def test_another_key_of_the_stage_is_told_from_the_start(tmp_path: Path) -> None:
    world, config = HiddenRules(2), options(150)
    ctx = world.context(tmp_path, config)
    for key in ("first", "first", "second"):
        ctx.journal.emit("stage_started", stage="apo", key=key)
        await run(ctx, {})
    seeds = [event for event in told(ctx, "candidate") if event["verdict"] == "seed"]
    assert len(seeds) == 2


async def test_what_happens_on_test_rows_is_reported_and_decides_nothing(tmp_path: Path) -> None:
    world = HiddenRules()
    result, ctx = await optimise(world, tmp_path, options(400), more={"test": rows("test", 40)})
    metrics = result.metrics
    assert metrics["test_gain_low"] <= metrics["test_gain"] <= metrics["test_gain_high"]
    assert metrics["test_gain"] == pytest.approx(metrics["test_best"] - metrics["test_seed"])
    assert ctx.engine.executed <= 400
    questions = [c.request["messages"][0]["content"] for c in ctx.service.calls if c.role == "coach"]
    assert questions
    assert not any("test" in question or "val" in question.split("placeholders")[0] for question in questions)


async def test_a_call_budget_ends_the_search_with_what_it_has(tmp_path: Path) -> None:
    def spent(executed: int) -> None:
        if executed >= 90:
            raise BudgetReached("the budget of 90 LLM calls is spent")

    ctx = HiddenRules().context(tmp_path, options(300))
    ctx.engine.limit = spent
    result = await run(ctx, {})
    assert ctx.engine.executed == 90
    assert "90 LLM calls" in str(result.metrics["stopped"])


async def test_time_that_is_over_ends_a_search_and_is_remembered(tmp_path: Path) -> None:
    world = HiddenRules()
    hurried = options(300, budget={"timeout_s": 1e-9})
    result, _ = await optimise(world, tmp_path, hurried)
    assert result.metrics["stopped"] == "budget.timeout_s is over"
    patient = options(300, budget={"timeout_s": 1e9})
    again, _ = await optimise(world, tmp_path, patient)
    assert again.metrics == result.metrics


async def test_a_perfect_seed_costs_one_validation(tmp_path: Path) -> None:
    splits = {"train": rows("train", 20), "val": rows("val", 16)}
    config = options(200)
    ctx = context(tmp_path, config, {"system": "Fine."}, splits, lambda p, t, s: Answer(1.0), lambda q, n: "")
    result = await run(ctx, {})
    assert (ctx.engine.executed, ctx.service.paid) == (16, 0)
    assert result.metrics["promoted"] is False
    assert result.outputs["prompts"].value == {"system": "Fine."}


async def test_luck_in_a_comparison_does_not_win_over_a_good_prompt(tmp_path: Path) -> None:
    """'Lucky' is as right as 'Good' on val, and better where the two are compared first: only there."""
    asked: set[str] = set()

    def student(prompts: dict[str, str], task: Task, sample: int) -> Answer:
        number, prompt = int(task.id.lstrip("trainvl")), prompts["system"].split()[0]
        if prompt == "Lucky" and task.split == "train":
            asked.add(task.id)
            right = len(asked) <= 16
        else:
            right = number % {"Seed": 3, "Good": 6, "Lucky": 6}[prompt] != (prompt == "Lucky")
        return Answer(float(right), "right" if right else f"wrong {number}")

    def coach(question: str, again: int) -> str:
        return "```\nGood {question}\n```" if "Seed {question}" in question else "```\nLucky {question}\n```"

    splits = {"train": rows("train", 60), "val": rows("val", 40)}
    config = options(500, reflection={"rounds": 1})
    ctx = context(tmp_path, config, {"system": "Seed {question}"}, splits, student, coach)
    await run(ctx, {})
    candidates = told(ctx, "candidate")
    assert {event["prompts"]["system"].split()[0] for event in candidates if event["val"]} == {"Seed", "Good", "Lucky"}
    assert [event["text"].split()[0] for event in told(ctx, "prompt") if event["label"] == "best"] == ["Good"]


@pytest.mark.parametrize(("every", "chances"), [(2, 1), (4, 4)])
async def test_each_rewrite_of_a_good_seed_counts_for_the_confirmation(
    tmp_path: Path, every: int, chances: int
) -> None:
    """Three rewrites are worse, the fourth is right. The seed fails on every second row, or on every fourth."""
    answers = iter(["Worse", "Bad", "Idle"])

    def student(prompts: dict[str, str], task: Task, sample: int) -> Answer:
        number, prompt = int(task.id.lstrip("trainvl")), prompts["system"].split()[0]
        right = prompt == "Right" or (prompt == "Seed" and number % every > 0)
        return Answer(float(right), "right" if right else f"wrong {number}")

    splits = {"train": rows("train", 60), "val": rows("val", 40)}
    config = options(300, reflection={"rounds": 1})
    ctx = context(tmp_path, config, {"system": "Seed {question}"}, splits, student,
                  lambda question, again: f"```\n{next(answers, 'Right')} {{question}}\n```")  # fmt: skip
    result = await run(ctx, {})
    assert result.metrics["p_threshold"] == pytest.approx(0.1 / chances)
    assert result.metrics["promoted"] is True


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("```\nAnswer with care.\n```", "lost the placeholder {question}"),
        ("```\n{question} " + "and so on " * 2000 + "\n```", "over 2000"),
        ("```\n{question} select a from b where c is d order by e limit 1\n```", "quotes a gold answer"),
        ("I'm sorry, I cannot do that.", "refused"),
        ("", "empty"),
        ("x" * 50_000, "tokens long"),
    ],
)
async def test_a_bad_proposal_costs_no_rollout(tmp_path: Path, answer: str, reason: str) -> None:
    gold = rows("train", 20, sql="SELECT a FROM b WHERE c IS d ORDER BY e LIMIT 1")
    splits = {"train": gold, "val": rows("val", 20)}
    config = options(100, stop={"stall_proposals": 3}, reflection={"rounds": 1})
    seed = {"system": "Take {question}."}
    ctx = context(tmp_path, config, seed, splits, lambda p, t, s: Answer(0.0, "wrong"), lambda q, n: answer)
    result = await run(ctx, {})
    bad = [event for event in told(ctx, "candidate") if event["id"]]
    assert [event["verdict"] for event in bad] == ["invalid"] * 3
    assert reason in bad[0]["reason"]
    assert ctx.engine.executed == 16 + 8
    assert result.outputs["prompts"].value == seed


async def test_a_duplicate_costs_no_rollout_and_equal_questions_get_fresh_answers(tmp_path: Path) -> None:
    asked: list[int] = []

    def coach(question: str, again: int) -> str:
        asked.append(again)
        return "```\nTake {question}.\n```"

    splits = {"train": rows("train", 8), "val": rows("val", 16)}
    config = options(100, stop={"stall_proposals": 4}, reflection={"rounds": 1, "batch": 1})
    student = lambda p, t, s: Answer(0.0, "wrong") if t.id in ("train3", "val3") else Answer(1.0)  # noqa: E731
    ctx = context(tmp_path, config, {"system": "Take {question}."}, splits, student, coach)
    await run(ctx, {})
    bad = [event for event in told(ctx, "candidate") if event["id"]]
    assert {event["verdict"] for event in bad} == {"duplicate"}
    assert asked == [0, 1, 2, 3]
    assert ctx.engine.executed == 24


async def test_failed_rollouts_count_and_broken_rewards_do_not(tmp_path: Path) -> None:
    def student(prompts: Any, task: Task, sample: int) -> Answer:
        if task.id == "val0":
            return Answer(None, status=RolloutStatus.REWARD_ERROR)
        if task.id == "val1":
            return Answer(0.0, "TypeError", RolloutStatus.FAILED)
        return Answer(1.0 if task.split == "val" else 0.0, "wrong")

    splits = {"train": rows("train", 10), "val": rows("val", 12)}
    config = options(100, stop={"stall_proposals": 1})
    ctx = context(tmp_path, config, {"p": "a"}, splits, student, lambda q, n: "")
    result = await run(ctx, {})
    assert result.metrics["seed_val"] == pytest.approx(10 / 11)


async def test_two_prompts_are_rewritten_together(tmp_path: Path) -> None:
    def student(prompts: Any, task: Task, sample: int) -> Answer:
        both = "amber" in prompts["planner"] and "basil" in prompts["writer"]
        return Answer(float(both), "" if both else "the planner needs amber, the writer basil")

    def coach(question: str, again: int) -> str:
        assert '<current_prompt name="planner">' in question
        return json.dumps({"planner": "Plan {x}. amber", "writer": "Write. basil"})

    splits = {"train": rows("train", 20), "val": rows("val", 20)}
    seed = {"planner": "Plan {x}.", "writer": "Write.", "judge": "Judge."}
    config = options(200, optimize=["planner", "writer"])
    ctx = context(tmp_path, config, seed, splits, student, coach)
    result = await run(ctx, {})
    assert result.outputs["prompts"].value == {
        "planner": "Plan {x}. amber",
        "writer": "Write. basil",
        "judge": "Judge.",
    }
    assert result.metrics["best_val"] == 1.0


async def test_a_coach_that_cannot_be_reached_stops_the_stage_unscored(tmp_path: Path) -> None:
    def coach(question: str, again: int) -> str:
        raise ModelError("503 until the deadline", kind="http_503", status=503, retryable=True)

    splits = {"train": rows("train", 20), "val": rows("val", 20)}
    ctx = context(tmp_path, options(200), {"p": "a"}, splits, lambda p, t, s: Answer(0.0), coach)
    with pytest.raises(ModelError):
        await run(ctx, {})


@pytest.mark.parametrize("strategy", ["pareto", "current_best"])
async def test_other_parents_work_too(tmp_path: Path, strategy: str) -> None:
    world = HiddenRules(4)
    result, _ = await optimise(world, tmp_path, options(400, parent={"strategy": strategy}))
    assert world.true(result.outputs["prompts"].value) > world.true(world.prompts) + 0.2


async def test_an_unconfirmed_winner_is_kept_beside_the_seed(tmp_path: Path) -> None:
    world = HiddenRules(1)
    config = options(200, confirm={"mode": "sealed", "alpha": 1e-4})
    result, _ = await optimise(world, tmp_path, config)
    assert result.metrics["promoted"] is False
    assert result.outputs["prompts"].value == world.prompts
    assert (tmp_path / "outputs/unpromoted/system.md").read_text() != world.prompts["system"]


async def test_the_noise_floor_is_measured_on_request_and_decides_nothing(tmp_path: Path) -> None:
    plain, _ = await optimise(HiddenRules(4), tmp_path / "plain", options(300))
    noisy, ctx = await optimise(HiddenRules(4), tmp_path / "noisy", options(340, confirm={"noise_floor": True}))
    assert "noise" not in plain.metrics
    assert noisy.metrics["noise_low"] <= noisy.metrics["noise"] <= noisy.metrics["noise_high"]
    assert noisy.outputs["prompts"].value == plain.outputs["prompts"].value
    assert ctx.engine.executed == noisy.metrics["rollouts"] <= 340
