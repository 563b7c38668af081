"""Options of the ``apo`` stage, its plan-time checks and its forecast. The defaults come from simulated tasks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lightningrun.dataset.counts import RowCounts
from lightningrun.recipe.model import Config, StageConfig
from lightningrun.recipe.suggest import did_you_mean
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.types import ArtifactKind

if TYPE_CHECKING:
    from lightningrun.recipe.model import Recipe


CRITIQUE_FIELDS = ("current_prompt", "failures", "prompt_names")
REWRITE_FIELDS = (*CRITIQUE_FIELDS, "critique", "answer_form")
VAL_SHARE, LEAST_VAL = 8, 20
"""The search reads at most an eighth as many val rows as it has rollouts, but not fewer than these if there are more:
where rollouts are few, steps are worth more than the last digit of a score."""
BACKED_SHARE, BACKED_LEAST = 12, 16
"""The same where the confirmation reads training rows beside those of val: there (simulated, 100 and 250 rollouts) more
steps won more than more rows of val."""
COACH_SHARE, LEAST_COACH_CALLS = 4, 20
"""By default the coach is asked at most once for so many rollouts, but this often at least."""
FIELD = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)\}(?!\})")
"""A field of a question to the coach; doubled braces are literal ones."""


def fields_of(text: str) -> set[str]:
    return set(FIELD.findall(text))


class ReflectionConfig(Config):
    """What the coach is shown."""

    batch: int = Field(default=8, ge=1, description="Failures shown for one proposal, all rounds together")
    rounds: int = Field(
        default=2,
        ge=1,
        description="Coach calls a proposal: each rewrites from its share of the batch. 1 suits a coach that attends "
        "to all it is shown",
    )
    source: Literal["failures"] = "failures"
    pool: Literal["parent"] = Field(default="parent", description="All that is known of the parent on train")
    dedupe_by: Literal["feedback", "none"] = Field(default="feedback", description="Show different feedbacks first")
    max_trace_tokens: int = Field(default=4000, ge=50, description="Longest trace of one failure; the middle is cut")


class AcceptanceConfig(Config):
    """Whether a proposal is worth scoring on all of val."""

    batch: int = Field(default=8, ge=1, description="Training rows on which parent and child are compared")
    source: Literal["uniform"] = Field(default="uniform", description="Failures only would let any child pass by luck")
    rule: Literal["strict_improvement", "no_worse"] = "strict_improvement"
    steps: int = Field(default=5, ge=1, description="Accepted one after the other before the newest is scored on val")
    good: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="From this mean on (share of the reward's range) `most` holds and steps is 1",
    )
    most: int = Field(default=40, ge=1, description="Rows of a comparison that fewer do not decide")


class ParentConfig(Config):
    """Which candidate is improved next."""

    strategy: Literal["epsilon_greedy", "pareto", "current_best"] = "epsilon_greedy"
    epsilon: float = Field(default=0.2, ge=0, le=1, description="Share of other parents once proposals are in vain")
    frontier: Literal["rows", "metrics", "both"] = Field(
        default="rows",
        description="`pareto`: whoever is best on a row of val, in the mean of a metric of reward.objective, or in "
        "either, is drawn",
    )

    @model_validator(mode="after")
    def _frontier(self) -> ParentConfig:
        if self.frontier != "rows" and self.strategy != "pareto":
            raise ValueError(f"frontier: {self.frontier} has no effect without strategy: pareto")
        return self


class ProposalsConfig(Config):
    """How many proposals are in flight together: more is faster, and a little less sample-efficient."""

    parents: int = Field(default=1, ge=1)
    per_parent: int = Field(default=1, ge=1)


class BeamConfig(Config):
    """`textual_gradient_beam`: how wide the search is, and on how many rows the halving begins."""

    width: int = Field(default=2, ge=1, description="Prompts improved in a round: the best of those scored on val")
    branch: int = Field(default=3, ge=1, description="Proposals for each of them")
    batch: int = Field(default=8, ge=1, description="Training rows of the first comparison; each halving doubles them")


class GepaConfig(Config):
    """`gepa`: what the package's own search takes. `proposals`, `acceptance.rule` and `component_selector` hold too."""

    minibatch: int = Field(default=3, ge=1, description="Training rows that a proposal is written from and tested on")
    selection: Literal["pareto", "current_best"] = Field(default="pareto", description="Which candidate is improved")
    merge: bool = Field(default=False, description="Put the prompts of two candidates together now and then")


class DemosConfig(Config):
    """`bootstrap_fewshot`, `reflective`: examples of good answers at the end of a prompt, from rollouts on train that
    passed."""

    max: int = Field(default=0, ge=0, description="Examples in a prompt; 0: four, or with `reflective` none")
    sets: int = Field(default=16, ge=1, description="`bootstrap_fewshot`: sets of examples drawn and compared")
    source: Literal["passing_traces"] = "passing_traces"


class GuardsConfig(Config):
    """What a proposed prompt must satisfy before a rollout is spent on it."""

    placeholders: Literal["reject", "ignore"] = Field(default="reject", description="One that the seed has and it lost")
    leak_ngram: int = Field(default=8, ge=0, description="Words in a row quoted from a gold answer; 0: not checked")
    leak_fields: list[str] = Field(default=["sql", "answer", "gold", "expected", "output", "target"])
    max_prompt_tokens: int = Field(default=2000, ge=1, description="Estimated at four characters a token")
    dedupe: bool = True


class TemplateConfig(Config):
    """A question to the coach: its text, or the file that holds it. A bare string in YAML is the text."""

    file: str | None = Field(default=None, description="Path of a UTF-8 text file, relative to the recipe file")
    text: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> TemplateConfig:
        if (self.file is None) == (self.text is None):
            raise ValueError("give either 'text' or 'file'")
        return self

    def problem(self, required: Collection[str], known: Collection[str]) -> str:
        """What is wrong with the fields of the text, or ''."""
        used = fields_of(self.text) if self.text is not None else set(required)
        for name in sorted(used - set(known)):
            hint = did_you_mean(name, known)
            return f"unknown field {{{name}}}: {hint}; braces that are no field are doubled"
        lost = [f"{{{name}}}" for name in required if name not in used]
        return f"must contain {' and '.join(lost)}" if lost else ""


class CoachPrompts(Config):
    """The questions to the coach in words of your own. With `critique` a proposal takes two calls: what is wrong, then
    the rewrite. How to answer is added to `rewrite` unless it says {answer_form} itself."""

    critique: TemplateConfig | None = Field(default=None, description="Has {current_prompt} and {failures}")
    rewrite: TemplateConfig | None = Field(
        default=None, description="Has {current_prompt}, and {failures} or, with a critique, {critique}"
    )

    @field_validator("critique")
    @classmethod
    def _critique(cls, value: TemplateConfig | None) -> TemplateConfig | None:
        problem = value.problem(("current_prompt", "failures"), CRITIQUE_FIELDS) if value else ""
        if problem:
            raise ValueError(problem)
        return value

    @field_validator("rewrite")
    @classmethod
    def _rewrite(cls, value: TemplateConfig | None, info: ValidationInfo) -> TemplateConfig | None:
        basis = "critique" if info.data.get("critique") else "failures"
        known = REWRITE_FIELDS if basis == "critique" else [one for one in REWRITE_FIELDS if one != "critique"]
        problem = value.problem(("current_prompt", basis), known) if value else ""
        if problem:
            raise ValueError(problem)
        return value


class MergeConfig(Config):
    """`reflective`: put two candidates of different branches together."""

    enabled: bool = False
    max: int = Field(default=5, ge=1, description="Merges in a search")


class FocusConfig(Config):
    """Improve the rows with a tag, and let nothing else get worse: the search sees no other rows of train and val."""

    tag: str | list[str] = Field(description="Rows with this tag, or with one of these")
    margin: float = Field(
        default=0.1, ge=0, description="The winner ships if on val's other rows it is not worse than the seed by more"
    )

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.tag,) if isinstance(self.tag, str) else tuple(self.tag)


class ConfirmConfig(Config):
    """How the winner is shown to be better than the seed, beyond chance and beyond the search's own luck."""

    mode: Literal["corrected", "sealed", "fresh", "none"] = "corrected"
    alpha: float = Field(default=0.1, gt=0, lt=1)
    on_inconclusive: Literal["keep_seed", "ship_winner"] = "keep_seed"
    noise_floor: bool = Field(
        default=False, description="Run the seed on val a second time: how far apart equal prompts score"
    )


class ApoBudget(Config):
    """Upper bounds that hold for the whole stage, confirmation and test comparison included."""

    max_rollouts: int = Field(default=500, ge=1)
    max_coach_calls: int | None = Field(
        default=None, ge=1, description="null: one for every four rollouts, and at least 20"
    )
    max_llm_calls: int | None = Field(default=None, ge=1)
    max_cost_usd: float | None = Field(default=None, gt=0)
    timeout_s: float | None = Field(default=None, gt=0, description="The batch in flight is finished")


class StopConfig(Config):
    """When to stop before the budget is spent."""

    score: float = Field(default=1.0, description="A val mean that cannot or need not be improved")
    patience: int = Field(default=15, ge=1, description="Candidates scored on val without a new best")
    stall_proposals: int = Field(default=40, ge=1, description="Proposals in a row that were not accepted")


class ReportConfig(Config):
    """The comparison of seed and winner on rows that the search never saw."""

    split: str | None = Field(
        default=None,
        description="null: the split named 'test' if there is one and it costs at most a quarter of max_rollouts; "
        "a name: that split, always; 'none': no comparison",
    )


_READ_BY: dict[str, tuple[str, ...]] = {
    "reflection": ("reflective", "textual_gradient_beam"),
    "parent": ("reflective",),
    "proposals": ("reflective", "gepa"),
    "beam": ("textual_gradient_beam",),
    "gepa": ("gepa",),
    "demos": ("bootstrap_fewshot", "reflective"),
    "merge": ("reflective",),
}
"""Options that not every algorithm reads -> those that do: set for another, one is refused rather than ignored."""


class ApoConfig(StageConfig):
    """Automatic prompt optimisation: rewrite prompts from failures, keep what is shown to be better."""

    type: Literal["apo"] = "apo"
    algorithm: Literal["reflective", "textual_gradient_beam", "bootstrap_fewshot", "gepa"] = "reflective"
    optimize: list[str] = Field(default=[], description="Names in agent.prompts; empty: all of them, together")
    component_selector: Literal["all", "round_robin"] = "all"
    coach: str = Field(default="coach", description="A role in `models`")
    coach_prompts: CoachPrompts = CoachPrompts()
    mode: Literal["rewrite", "edits"] = Field(default="rewrite", description="Whole prompts, or search and replace")
    coach_temperature: float | None = Field(default=None, ge=0, description="null: the role's own")
    train: str = "train"
    val: str = "val"
    val_rows: int | None = Field(
        default=None,
        ge=1,
        description="Rows of val that the search reads; null: all, but at most a twelfth of the rollouts, and at least "
        "16 (an eighth, and 20, where training rows do not count for the confirmation)",
    )
    samples: int = Field(default=1, ge=1, description="Rollouts a row, averaged")
    reflection: ReflectionConfig = ReflectionConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()
    parent: ParentConfig = ParentConfig()
    proposals: ProposalsConfig = ProposalsConfig()
    beam: BeamConfig = BeamConfig()
    gepa: GepaConfig = GepaConfig()
    demos: DemosConfig = DemosConfig()
    merge: MergeConfig = MergeConfig()
    guards: GuardsConfig = GuardsConfig()
    focus: FocusConfig | None = None
    confirm: ConfirmConfig = ConfirmConfig()
    budget: ApoBudget = ApoBudget()
    stop: StopConfig = StopConfig()
    report: ReportConfig = ReportConfig()

    @field_validator(*_READ_BY)
    @classmethod
    def _has_an_effect(cls, value: Config, info: ValidationInfo) -> Config:
        name, algorithm = str(info.field_name), info.data.get("algorithm")
        readers = _READ_BY[name]
        if algorithm and algorithm not in readers and value != type(value)():
            raise ValueError(f"algorithm: {algorithm} does not read this, so it has no effect; {readers[0]} does")
        return value

    def roles(self) -> tuple[tuple[str, str], ...]:
        return (("coach", self.coach),) if self.least_coach_calls() else ()

    def extras(self) -> tuple[tuple[str, str, str], ...]:
        return (("algorithm", "gepa", "gepa"),) if self.algorithm == "gepa" else ()

    def splits(self) -> tuple[tuple[str, str], ...]:
        report = self.report.split
        named = (("report.split", report),) if report and report != "none" else ()
        return (("train", self.train), ("val", self.val), *named)

    def in_focus(self, rows: Mapping[str, int]) -> Mapping[str, int]:
        """The row counts with those of train and val as the search sees them."""
        if self.focus is None or not isinstance(rows, RowCounts):
            return rows
        return {**rows, **{split: rows.tagged(split, self.focus.tags) for split in (self.train, self.val)}}

    def searched(self, rows: Mapping[str, int]) -> Mapping[str, int]:
        """The row counts that the search has, val as far as it is read (with what `sealed` sets aside)."""
        seen = self.in_focus(rows)
        backed = self.algorithm == "reflective" and self.confirm.mode == "corrected"
        share, least = (BACKED_SHARE, BACKED_LEAST) if backed else (VAL_SHARE, LEAST_VAL)
        most = self.val_rows or max(least, self.budget.max_rollouts // (share * self.samples))
        return {**seen, self.val: min(seen.get(self.val, 0), most)}

    def rest_cost(self, rows: Mapping[str, int]) -> int:
        """Rollouts to see that nothing else got worse: seed and winner on val's rows out of focus."""
        return 2 * self.samples * (rows.get(self.val, 0) - self.in_focus(rows).get(self.val, 0))

    def sealed_rows(self, val_rows: int) -> int:
        """Val rows set aside for the confirmation: a third, in `sealed` mode."""
        return val_rows // 3 if self.confirm.mode == "sealed" else 0

    def confirm_cost(self, val_rows: int) -> int:
        """Rollouts that the confirmation takes at most."""
        if self.confirm.mode == "sealed":
            return 2 * self.sealed_rows(val_rows) * self.samples
        return val_rows * self.samples if self.confirm.mode == "fresh" else 0

    def noise_cost(self, val_rows: int) -> int:
        """Rollouts of the seed against itself."""
        return (val_rows - self.sealed_rows(val_rows)) * self.samples if self.confirm.noise_floor else 0

    def least_search(self, train_rows: int, val_rows: int) -> int:
        """Rollouts of the smallest search: the seed on val, one proposal against its parent, and that on val.

        Examples need a look at as many training rows, and one set of them on val.
        """
        rows = {
            "textual_gradient_beam": self.beam.batch,
            "gepa": self.gepa.minibatch * self.proposals.parents * self.proposals.per_parent,
        }.get(self.algorithm, self.acceptance.batch)
        compared = min(rows, train_rows) * (1 if self.algorithm == "bootstrap_fewshot" else 2)
        return self.samples * (2 * (val_rows - self.sealed_rows(val_rows)) + compared)

    def most_search(self, train_rows: int, val_rows: int) -> int | None:
        """Rollouts that the search cannot exceed whatever its budget is; None if only the budget ends it."""
        if self.algorithm != "bootstrap_fewshot":
            return None
        return self.samples * (1 + self.demos.sets) * (train_rows + val_rows - self.sealed_rows(val_rows))

    def most_coach_calls(self) -> int:
        """Coach calls that the search cannot exceed."""
        if not self.least_coach_calls():
            return 0
        by_rollouts = max(LEAST_COACH_CALLS, self.budget.max_rollouts // COACH_SHARE)
        return self.budget.max_coach_calls or by_rollouts

    def least_coach_calls(self) -> int:
        """Coach calls of the smallest search; 0 if there is no coach."""
        return {"textual_gradient_beam": 2, "bootstrap_fewshot": 0}.get(self.algorithm, self.calls_a_round())

    def calls_a_round(self) -> int:
        """Coach calls of one round of `reflective`."""
        return 2 if self.coach_prompts.critique else 1

    def report_split(self, rows: Mapping[str, int]) -> str:
        """The split of the final comparison, '' for none."""
        name = self.report.split
        if name is None:
            fits = 8 * rows.get("test", 0) * self.samples <= self.budget.max_rollouts
            return "test" if rows.get("test") and fits and "test" not in (self.train, self.val) else ""
        return "" if name == "none" else name

    def report_cost(self, rows: Mapping[str, int]) -> int:
        """Rollouts of the final comparison: seed and winner on each row."""
        return 2 * rows.get(self.report_split(rows), 0) * self.samples


def _after_search(config: ApoConfig, rows: Mapping[str, int]) -> int:
    """Rollouts to confirm and report."""
    val = config.searched(rows).get(config.val, 0)
    return config.confirm_cost(val) + config.rest_cost(rows) + config.noise_cost(val) + config.report_cost(rows)


def forecast(config: ApoConfig, recipe: Recipe, rows: Mapping[str, int]) -> Forecast:
    """Upper bounds of what the stage spends; errors for what makes it impossible."""
    errors = _mistakes(config, recipe, rows)
    warnings: list[str] = []
    limit = config.budget.max_rollouts
    seen = config.searched(rows)
    train, val = seen.get(config.train, 0), seen.get(config.val, 0)
    if train and val:
        search, after = config.least_search(train, val), _after_search(config, rows)
        if search + after > limit:
            errors.append(
                f"budget.max_rollouts={limit} is too small to do anything: the seed on {config.val}, one proposal and "
                f"its confirmation need {search + after} rollouts ({search} to search, {after} to confirm and report)"
            )
        most, least = config.most_coach_calls(), config.least_coach_calls()
        if most < least:
            errors.append(
                f"budget.max_coach_calls={most} is too small to do anything: one proposal takes {least} calls"
            )
        if config.confirm.mode == "corrected" and 0.5**val > config.confirm.alpha:
            errors.append(f"{val} rows in {config.val!r} can never confirm a winner at alpha={config.confirm.alpha:g}")
    if rows.get("test") and config.report.split is None and not config.report_split(rows):
        warnings.append(
            f"no comparison on test within the stage: {2 * rows['test'] * config.samples} rollouts are more than a "
            f"quarter of budget.max_rollouts={limit} (report.split: test insists on it)"
        )
    most_search = config.most_search(train, val)
    rollouts = limit if most_search is None else min(limit, most_search + _after_search(config, rows))
    calls = {config.policy: rollouts}
    if config.least_coach_calls():
        calls[config.coach] = calls.get(config.coach, 0) + config.most_coach_calls()
    if "judge" in recipe.models:  # a reward asks it at least once for each rollout
        calls["judge"] = calls.get("judge", 0) + rollouts
    return Forecast(rollouts=rollouts, calls=calls, warnings=tuple(warnings), errors=tuple(errors))


def _mistakes(config: ApoConfig, recipe: Recipe, rows: Mapping[str, int]) -> list[str]:
    known = recipe.agent.prompts
    errors = [f"optimize: the agent has no prompt {name!r}" for name in config.optimize if name not in known]
    if not known:
        errors.append("the agent declares no prompts, so there is nothing to optimise: add agent.prompts")
    if config.least_coach_calls() and config.coach not in recipe.models:
        errors.append(f"coach: no model has the role {config.coach!r}")
    if config.algorithm in ("gepa", "bootstrap_fewshot"):
        asks = "asks its own question" if config.algorithm == "gepa" else "asks no coach"
        given = {"coach_prompts": config.coach_prompts != CoachPrompts(), "mode": config.mode != "rewrite"}
        errors += [f"{key}: {config.algorithm} {asks}, so this has no effect" for key, set_ in given.items() if set_]
    wanted = {"train": config.train, "val": config.val}
    if config.report.split not in (None, "none"):
        wanted["report.split"] = str(config.report.split)
    errors += [f"{key}: the task has no split {name!r}" for key, name in wanted.items() if not rows.get(name)]
    if len(set(wanted.values())) < len(wanted):
        errors.append("train, val and report.split must be different splits")
    errors += _unknown_tags(config, rows)
    if config.parent.frontier != "rows" and not recipe.reward.objective:
        errors.append(f"parent.frontier={config.parent.frontier}: reward.objective names no metrics")
    val = config.searched(rows)[config.val]
    if config.confirm.mode == "sealed" and val and config.sealed_rows(val) < 4:
        errors.append(f"confirm.mode=sealed: a third of {val} val rows is too few to show anything")
    return errors


def _unknown_tags(config: ApoConfig, rows: Mapping[str, int]) -> list[str]:
    if config.focus is None or not isinstance(rows, RowCounts):
        return []
    return [
        f"focus.tag: no row of {split!r} has the tag {tag!r}; {did_you_mean(tag, rows.tags(split)) or 'there are none'}"
        for split in (config.train, config.val)
        for tag in config.focus.tags
        if rows.get(split) and not rows.tagged(split, (tag,))
    ]


SPEC = StageSpec(
    type="apo",
    version=5,
    summary="optimise prompts from failures, and confirm the winner",
    config=ApoConfig,
    consumes={"prompts": ArtifactKind.PROMPTS, "model": ArtifactKind.MODEL},
    produces={"prompts": ArtifactKind.PROMPTS, "rollouts": ArtifactKind.ROLLOUTS, "metrics": ArtifactKind.METRICS},
    entry="lightningrun.stages.apo.stage:run",
    forecast=forecast,
)
