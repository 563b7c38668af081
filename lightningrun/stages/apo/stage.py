"""The ``apo`` stage: search for better prompts, confirm the winner, compare it once on rows never seen.

Effects (rollouts, coach calls) are remembered by the run, so that a resumed stage runs this again from the start and
arrives at the same point without repeating any of them.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lightningrun.dataset.counts import RowCounts
from lightningrun.errors import BudgetReached, UsageError
from lightningrun.files import write_atomic
from lightningrun.models.ledger import Limits
from lightningrun.stages.apo.candidates import differences
from lightningrun.stages.apo.coach import Coach
from lightningrun.stages.apo.config import ApoConfig, forecast
from lightningrun.stages.apo.confirm import Confirmation, confirm
from lightningrun.stages.apo.demos import Demo, demonstration
from lightningrun.stages.apo.evaluation import Evaluation, RolloutBudget, jobs_for
from lightningrun.stages.apo.guards import Guards
from lightningrun.stages.apo.log import SearchLog
from lightningrun.stages.apo.search import Outcome, Search, Setting, spend
from lightningrun.stages.apo.traces import describe_failure
from lightningrun.stages.base import StageContext
from lightningrun.stages.rollout_file import write_rollouts
from lightningrun.stages.statistics import bootstrap_interval, mean
from lightningrun.types import Artifact, ArtifactKind, Json, Rollout, StageResult, Task

ALGORITHMS = {
    "reflective": "reflective:Reflective",
    "bootstrap_fewshot": "bootstrap:BootstrapFewshot",
    "gepa": "gepa_engine:GepaEngine",
    "textual_gradient_beam": "textual_gradient:TextualGradientBeam",
}
"""``algorithm`` -> the room's class, imported only when it is used."""


async def run(ctx: StageContext, inputs: Mapping[str, Artifact]) -> StageResult:
    """Run the stage. Raises UsageError for what the plan would have refused, BudgetReached if not even the seed
    could be scored."""
    room = _Room(ctx)
    outcome = await room.search()
    room.budget.reserved = room.report_cost + room.noise_cost + room.rest_cost
    judged = await room.confirm(outcome)
    judged, rest = await room.check_the_rest(outcome, judged)
    room.budget.reserved = room.report_cost
    noise = await room.noise_floor(outcome)
    room.budget.reserved = 0
    test = await room.compare_on_test(outcome)
    return room.result(outcome, judged, {**rest, **noise, **test})


@dataclass(frozen=True, slots=True)
class _Rows:
    train: Sequence[Task]
    val: Sequence[Task]
    rest: Sequence[Task]
    """Val rows out of focus."""
    sealed: Sequence[Task]
    report: Sequence[Task]


class _Room:
    """One run of the stage: what its steps share."""

    def __init__(self, ctx: StageContext) -> None:
        config: ApoConfig = ctx.config
        self.ctx = ctx
        self.config = config
        counts = RowCounts({name: split.tasks for name, split in ctx.data.splits.items()})
        problems = forecast(config, ctx.recipe, counts).errors
        if problems:
            raise UsageError(f"stages.{ctx.stage}: " + "; ".join(problems))
        self.optimize = config.optimize or sorted(ctx.prompts)
        self.rows = _split_rows(ctx)
        self.report_cost = config.report_cost(counts)
        val_rows = config.searched(counts)[config.val]
        self.rest_cost = config.rest_cost(counts)
        self.noise_cost = config.noise_cost(val_rows)
        reserved = config.confirm_cost(val_rows) + self.rest_cost + self.noise_cost + self.report_cost
        self.budget = RolloutBudget(config.budget.max_rollouts, reserved)
        self.evaluation = Evaluation(ctx.engine, self.budget)
        limits = config.budget
        ctx.service.open_stage(ctx.stage, Limits(limits.max_llm_calls, limits.max_cost_usd))
        asks = config.most_coach_calls() or None
        self.coach = Coach(ctx.service, ctx.stage, config.coach, asks, config.coach_temperature)
        self.log = SearchLog(ctx.journal, ctx.stage, config.algorithm)

    async def search(self) -> Outcome:
        ctx, config = self.ctx, self.config
        guarded = [task for split in ctx.data.splits.values() for task in split.tasks]
        reward_range = ctx.recipe.reward.range
        setting = Setting(
            config=config,
            seed=ctx.seed,
            prompts=ctx.prompts,
            optimize=self.optimize,
            train=self.rows.train,
            val=self.rows.val,
            bottom=reward_range[0] if reward_range else 0.0,
            top=reward_range[1] if reward_range else 1.0,
            weights=ctx.recipe.reward.objective or {},
            evaluation=self.evaluation,
            coach=self.coach,
            guards=Guards(config.guards, {name: ctx.prompts[name] for name in self.optimize}, guarded),
            describe=self._describer(),
            demonstrate=self._demonstrate,
            log=self.log,
            out_of_time=self._clock(),
        )
        return await _algorithm(config.algorithm)(setting).run()

    def _describer(self) -> Callable[[Rollout, Mapping[str, str]], str]:
        tasks = {task.id: task for task in self.rows.train}
        service, most = self.ctx.service, self.config.reflection.max_trace_tokens

        def describe(rollout: Rollout, prompts: Mapping[str, str]) -> str:
            calls = [service.read(ref) for ref in rollout.call_refs]
            return describe_failure(rollout, tasks[rollout.task_id], calls, prompts, most)

        return describe

    def _demonstrate(self, rollout: Rollout, name: str, prompts: Mapping[str, str]) -> Demo | None:
        calls = [self.ctx.service.read(ref) for ref in rollout.call_refs]
        return demonstration(rollout, name, calls, prompts, alone=len(self.optimize) == 1)

    def _clock(self) -> Callable[[int], bool]:
        """Whether the search's time is over, asked between generations; an earlier attempt's answer is repeated."""
        started, limit = time.monotonic(), self.config.budget.timeout_s

        def over(proposals: int) -> bool:
            if limit is None:
                return False
            return self.log.clock_has_stopped(proposals) or time.monotonic() - started > limit

        return over

    async def confirm(self, outcome: Outcome) -> Confirmation:
        config = self.config
        rows = self.rows.sealed if config.confirm.mode == "sealed" else self.rows.val
        judged = await confirm(
            config.confirm, outcome.pool[0], outcome.best, outcome.trials, self.evaluation, rows, config.samples,
            self.ctx.seed, outcome.further,
        )  # fmt: skip
        self.log.info(judged.reason)
        return judged

    async def check_the_rest(self, outcome: Outcome, judged: Confirmation) -> tuple[Confirmation, dict[str, float]]:
        """Whether a winner found on some rows is no worse on the others: a paired test of non-inferiority.

        The lower bound is one-sided, 90%, and must not be under ``-focus.margin``.
        """
        self.budget.reserved -= self.rest_cost
        focus = self.config.focus
        if focus is None or not judged.promoted:
            return judged, {}
        gaps = differences(outcome.pool[0].val or {}, outcome.best.val or {})
        told = {"focus_gain": mean(gaps)} if gaps else {}
        if not self.rows.rest:
            return judged, told
        jobs = [jobs_for(one, self.rows.rest, self.config.samples) for one in (outcome.pool[0], outcome.best)]
        try:
            await self.evaluation.run([*jobs[0], *jobs[1]])
            others = differences(*(self.evaluation.scores(each) for each in jobs))
        except BudgetReached as reached:
            others = []
            self.log.warn(f"the rows out of focus could not be paid for: {reached}")
        if not others:
            reason = f"{judged.reason}; the seed ships: nothing is known of the rows out of focus"
            return replace(judged, promoted=False, reason=reason), told
        low, _ = bootstrap_interval(others, self.ctx.seed, confidence=0.8)
        harmless = low >= -focus.margin
        reason = (
            f"{judged.reason}; on {len(others)} rows out of focus {mean(others):+.3f}, at least {low:+.3f}: "
            + ("" if harmless else "the seed ships, for this is not ")
            + f"within focus.margin {focus.margin:g}"
        )
        self.log.info(reason)
        told |= {"rest_gain": mean(others), "rest_low": low}
        return replace(judged, promoted=harmless, reason=reason), told

    async def noise_floor(self, outcome: Outcome) -> dict[str, float]:
        """The seed against itself, on request: ``noise*`` metrics say what difference two equal prompts can show."""
        if not self.config.confirm.noise_floor:
            return {}
        seed, samples = outcome.pool[0], self.config.samples
        again = jobs_for(seed, self.rows.val, samples, first=samples)
        try:
            await self.evaluation.run(again)
        except BudgetReached as reached:
            self.log.warn(f"no noise floor: {reached}")
            return {}
        gaps = differences(seed.val or {}, self.evaluation.scores(again))
        if not gaps:
            return {}
        low, high = bootstrap_interval(gaps, self.ctx.seed)
        self.log.info(f"noise floor: the seed against itself {mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}] on val")
        return {"noise": mean(gaps), "noise_low": low, "noise_high": high}

    async def compare_on_test(self, outcome: Outcome) -> dict[str, float]:
        """Seed and winner once on rows that nothing was decided on: ``test_*`` metrics, empty without such rows."""
        if not self.rows.report:
            return {}
        before, after = (
            jobs_for(one, self.rows.report, self.config.samples) for one in (outcome.pool[0], outcome.best)
        )
        try:
            await self.evaluation.run([*before, *after])
        except BudgetReached as reached:
            self.log.warn(f"no comparison on {self.config.report.split or 'test'}: {reached}")
            return {}
        seed, best = self.evaluation.scores(before), self.evaluation.scores(after)
        gaps = differences(seed, best)
        if not gaps:
            return {}
        low, high = bootstrap_interval(gaps, self.ctx.seed)
        scores = {"test_seed": mean(list(seed.values())), "test_best": mean(list(best.values()))}
        return {**scores, "test_gain": mean(gaps), "test_gain_low": low, "test_gain_high": high}

    def result(self, outcome: Outcome, judged: Confirmation, further: Mapping[str, float]) -> StageResult:
        """Write the outputs and say what came of the search."""
        shipped = outcome.best if judged.promoted else outcome.pool[0]
        self._announce(outcome, judged)
        folder = self.ctx.outputs
        (folder / "prompts").mkdir(parents=True, exist_ok=True)
        for name, text in shipped.prompts.items():
            write_atomic(folder / "prompts" / f"{name}.md", text)
        if outcome.best.id and not judged.promoted:
            (folder / "unpromoted").mkdir(exist_ok=True)
            for name in self.optimize:
                write_atomic(folder / "unpromoted" / f"{name}.md", outcome.best.prompts[name])
        write_rollouts(folder / "rollouts.jsonl", self.evaluation.all_rollouts())
        metrics: dict[str, Json] = {
            "reward": shipped.val_mean,
            "seed_val": outcome.pool[0].val_mean,
            "best_val": outcome.best.val_mean,
            "promoted": judged.promoted,
            "p_value": judged.p_value,
            "p_threshold": judged.threshold,
            **spend(self.evaluation, self.coach),
            "candidates": len(outcome.pool),
            "proposals": outcome.proposals,
            "stopped": outcome.stopped,
            **further,
        }
        outputs = {
            "prompts": Artifact(ArtifactKind.PROMPTS, dict(shipped.prompts), "prompts"),
            "rollouts": Artifact(ArtifactKind.ROLLOUTS, None, "rollouts.jsonl"),
            "metrics": Artifact(ArtifactKind.METRICS, metrics),
        }
        return StageResult(outputs, metrics)

    def _announce(self, outcome: Outcome, judged: Confirmation) -> None:
        best = outcome.best
        self.log.prompts(best, self.optimize, "best", judged.promoted)
        if best.id:
            spent = spend(self.evaluation, self.coach)
            self.log.verdict(best, outcome.pool[0], self.optimize, judged.promoted, judged.reason, spent)


def _algorithm(name: str) -> type[Search]:
    module, _, attr = ALGORITHMS[name].partition(":")
    return getattr(importlib.import_module(f"lightningrun.stages.apo.{module}"), attr)  # type: ignore[no-any-return]


def _split_rows(ctx: StageContext) -> _Rows:
    """The rows of each step: val as far as the budget can afford it; in ``sealed`` mode every third row of it is kept
    from the search."""
    config: ApoConfig = ctx.config
    splits = ctx.data.splits
    counts = {name: len(split.tasks) for name, split in splits.items()}
    train, val = list(splits[config.train].tasks), list(splits[config.val].tasks)
    rest: list[Task] = []
    if config.focus:
        tags = set(config.focus.tags)
        rest = [task for task in val if tags.isdisjoint(task.tags)]
        train, val = ([task for task in rows if not tags.isdisjoint(task.tags)] for rows in (train, val))
    read = config.searched(RowCounts({name: split.tasks for name, split in splits.items()}))[config.val]
    if read < len(val):
        kept = random.Random(f"{ctx.seed}/val").sample(range(len(val)), read)
        val = [val[number] for number in sorted(kept)]
    aside = config.sealed_rows(len(val))
    sealed = val[2::3][:aside]
    hidden = {task.id for task in sealed}
    report = config.report_split(counts)
    return _Rows(
        train,
        [task for task in val if task.id not in hidden],
        rest,
        sealed,
        splits[report].tasks if report else (),
    )
