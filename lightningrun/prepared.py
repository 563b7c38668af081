"""A recipe, loaded and ready: checked before the first paid call, planned, and with its dataset at hand.

Light by intent: what a plan does not need (the gateway, slots, models, tracking) is not imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightningrun import dataset
from lightningrun.agents import interpreter
from lightningrun.agents.environment import agent_environment
from lightningrun.dataset import Dataset
from lightningrun.dataset.counts import RowCounts
from lightningrun.errors import DatasetError, Missing, Problem, RecipeError, UsageError
from lightningrun.models.prices import price_of
from lightningrun.planning import Plan, Planner, Selection, StagePlan, gather_facts
from lightningrun.recipe import LoadedRecipe
from lightningrun.recipe.checks import check as check_recipe
from lightningrun.recipe.checks import check_signatures
from lightningrun.recipe.locate import is_local, source_file
from lightningrun.recipe.model import Recipe
from lightningrun.stages.base import StageSpec
from lightningrun.types import Json, Usage

_ASSUMED_ROW_CHARS = 800
_ASSUMED_ANSWER_TOKENS = 200
"""What a forecast of dollars takes a call for, beside the prompt; measured calls are what the run reports."""


class Prepared:
    """A loaded recipe, ready to be checked, planned and run.

    ``root`` is the folder that entrypoints and ``args`` paths are relative to: the current one, or that of the run
    being resumed.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        specs: Mapping[str, StageSpec],
        runs_dir: Path,
        root: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.loaded = loaded
        self.specs = specs
        self.runs_dir = runs_dir
        self.root = root
        self.environ = environ
        self._data: Dataset | None = None

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def data(self) -> Dataset:
        """The dataset, read once. Raises DatasetError with every broken row located."""
        if self._data is None:
            task, locate = self.recipe.task, self.loaded.problem
            self._data = dataset.load(task, locate, root=self.root, environ=self.environ)
        return self._data

    @property
    def notes(self) -> tuple[str, ...]:
        """What the recipe's models say of themselves, e.g. that they are simulations."""
        return tuple(f"{role}: {model.note}" for role, model in self.recipe.models.items() if model.note)

    def check(self) -> list[str]:
        """Everything that can be wrong before the first paid call; returns warnings.

        Raises RecipeError or DatasetError with all problems, then Missing for absent keys and extras.
        """
        report = check_recipe(self.loaded, self.specs, root=self.root, environ=self.environ)
        problems: list[Problem] = [*report.problems, *self._unpriced()]
        lacking = [str(problem) for problem in report.missing]
        rows: dict[str, int] = {}
        try:
            splits = self.data.splits.values()
            rows = RowCounts({split.name: split.tasks for split in splits})
            problems += check_signatures(self.loaded, (task for split in splits for task in split.tasks), self.root)
        except (RecipeError, DatasetError) as error:
            problems += error.problems
        except Missing as error:
            lacking.append(str(error))
        lacking += self._lacking_python()
        warnings = list(report.warnings)
        if rows and not problems:
            for stage, config in self.recipe.stages.items():
                forecast = self.specs[config.type].forecast(config, self.recipe, rows)
                problems += [self.loaded.problem(f"stages.{stage}", f"{stage}: {text}") for text in forecast.errors]
                warnings += [f"{stage}: {text}" for text in forecast.warnings]
        if problems:
            raise RecipeError([*problems, *report.missing])
        if lacking:
            raise Missing("\n".join(lacking))
        return warnings

    def _unpriced(self) -> Iterator[Problem]:
        """Models whose price is not known, where a budget in dollars has to be kept."""
        limit = self.recipe.budget.max_cost_usd
        hint = "price: {input_per_mtok: ..., output_per_mtok: ...}; or budget: {max_cost_usd: null}"
        for role, model in self.recipe.models.items():
            if limit is not None and price_of(model) is None:
                text = f"models.{role}: no price of {model.name!r} is known: budget.max_cost_usd {limit:g} is no bound"
                yield self.loaded.problem(f"models.{role}", text, hint)

    def _lacking_python(self) -> Iterator[str]:
        """What an interpreter of the agent's own lacks: itself, or modules that the agent cannot do without."""
        agent = self.recipe.agent
        if agent.python is None or agent.entrypoint is None:
            return
        place = agent.entrypoint.rpartition(":")[0]
        file = source_file(agent.entrypoint, self.root) if is_local(agent.entrypoint, self.root) else None
        names = interpreter.imported(file) if file is not None else [place.partition(".")[0]]
        folders = [self.root, *([file.parent] if file is not None and place.endswith(".py") else [])]
        try:
            absent = self.python(names, folders).absent
            message = f"has no module {', '.join(map(repr, absent))}, which the agent imports" if absent else ""
        except Missing as error:
            absent, message = (), f"{error.message}{f'; {error.hint}' if error.hint else ''}"
        if message:
            hint = interpreter.installing(agent.python, file, absent)
            yield str(self.loaded.problem("agent.python", f"agent.python: {message}", hint))

    def python(self, names: Sequence[str] = (), local: Sequence[Path] = ()) -> interpreter.Interpreter:
        """What the interpreter of the agent's own says of itself. Raises Missing."""
        agent = self.recipe.agent
        assert agent.python is not None
        return interpreter.ask(agent.python, agent_environment(self.environ, agent.env), names, local)

    def python_facts(self) -> dict[str, Json] | None:
        """Version and packages of the interpreter of the agent's own, for what depends on them; None if it has none."""
        if self.recipe.agent.python is None:
            return None
        found = self.python()
        return {"version": found.version, "packages": dict(found.packages)}

    def plan(
        self,
        *,
        start: str | None = None,
        until: str | None = None,
        only: str | None = None,
        force: frozenset[str] | bool = frozenset(),
        no_cache: bool = False,
    ) -> Plan:
        """What would run, be reused or be skipped, and why; with each stage's forecast."""
        warnings = self.check()
        planner = self.planner(selection(start, until, only, force, no_cache))
        staged = tuple(self.priced(plan) for plan in planner.plan_all())
        return Plan(self.recipe.name, self.loaded.digest, self.recipe.seed, staged, tuple(warnings), self.notes)

    def planner(self, chosen: Selection) -> Planner:
        data = self.data
        digests = {name: split.digest for name, split in data.splits.items()}
        rows = RowCounts({name: split.tasks for name, split in data.splits.items()})
        facts = gather_facts(self.recipe, digests, self.root, self.python_facts())
        return Planner(self.recipe, self.specs, facts, rows, self.runs_dir, chosen, has_gpu())

    def priced(self, plan: StagePlan) -> StagePlan:
        """The plan with its forecast in dollars, where all prices are known."""
        return dataclasses.replace(plan, cost_usd=self._forecast_usd(plan.forecast.calls))

    def _forecast_usd(self, calls: Mapping[str, int]) -> float | None:
        """Dollars for ``calls`` (role -> number), at a prompt's and a row's length each; None without a price."""
        prompts = [len(prompt.text or "") for prompt in self.recipe.agent.prompts.values()]
        prompt_tokens = (sum(prompts) + _ASSUMED_ROW_CHARS) // 4
        total = 0.0
        for role, count in calls.items():
            model = self.recipe.models.get(role)
            price = price_of(model) if model is not None else None
            if price is None:
                return None
            total += count * price.of(Usage(prompt_tokens, _ASSUMED_ANSWER_TOKENS))
        return total


def selection(
    start: str | None, until: str | None, only: str | None, force: frozenset[str] | bool, no_cache: bool
) -> Selection:
    """The command line's choice of stages. Raises UsageError for a choice that contradicts itself."""
    if only is not None:
        if start is not None or until is not None:
            raise UsageError("--only cannot be combined with --from or --until")
        start = until = only
    forced = frozenset({"*"}) if force is True else force or frozenset()
    return Selection(start, until, forced, no_cache)


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, without importing torch."""
    return Path("/dev/nvidia0").exists()
