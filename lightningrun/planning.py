"""What would run, be reused or be skipped, and why: decided one stage at a time, from keys made of content.

A stage's key is the digest of everything that can change its result: its type and version, its config, the keys of its
inputs, its models, prompt texts, data, reward and agent sources, and its seed. Not in it: workers, timeouts of models,
paths, tracking. Equal key, equal result; so a key's parts, kept beside a result, also say what has changed since.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightningrun.errors import UsageError
from lightningrun.files import digest, file_digest, verify_folder
from lightningrun.models.local.folder import content_digest, find, is_output
from lightningrun.recipe.locate import source_file
from lightningrun.recipe.model import ModelConfig, Recipe, StageConfig
from lightningrun.recipe.when import parse as parse_when
from lightningrun.runfolder import RunFolder, StageState, list_runs
from lightningrun.stages.base import Forecast, StageSpec
from lightningrun.types import ArtifactKind, Json, StageResult

_MODEL_KEY_FIELDS = ("provider", "name", "base_url", "temperature", "top_p", "max_tokens", "args", "extra")
_AGENT_KEY_FIELDS = ("entrypoint", "command", "args", "timeout_s", "attempts", "env", "memory_mb")


class Action(str, enum.Enum):
    """What happens to a stage."""

    RUN = "run"
    CACHED = "cached"
    SKIPPED = "skipped"
    UNDECIDED = "undecided"
    """Its ``when:`` reads a metric that is not known yet."""


@dataclass(frozen=True, slots=True)
class Input:
    """Where a stage's input comes from: an earlier stage's output, or the recipe itself (``stage`` empty).

    Of the recipe ``output`` is what a stage that takes several in turn calls it: ``agent``, or a role.
    """

    stage: str
    output: str
    origin: str
    """given | auto | recipe"""

    def __str__(self) -> str:
        return f"{self.stage}.{self.output}" if self.stage else self.output or "recipe"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage, decided."""

    id: str
    type: str
    ordinal: int
    action: Action
    reason: str
    key: str = ""
    key_parts: Mapping[str, Json] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)
    forecast: Forecast = field(default_factory=Forecast)
    cost_usd: float | None = None
    """Forecast of dollars; None where a price is unknown."""

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "type": self.type,
            "action": self.action.value,
            "reason": self.reason,
            "key": self.key,
            "inputs": {name: {"from": str(i), "origin": i.origin} for name, i in self.inputs.items()},
            "forecast": {
                "rollouts": self.forecast.rollouts,
                "llm_calls": dict(self.forecast.calls),
                "cost_usd": self.cost_usd,
            },
            "warnings": list(self.forecast.warnings),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages, decided as far as can be known before anything runs."""

    name: str
    recipe_digest: str
    seed: int
    stages: tuple[StagePlan, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def pending(self) -> bool:
        return any(stage.action in (Action.RUN, Action.UNDECIDED) for stage in self.stages)

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name,
            "recipe_digest": self.recipe_digest,
            "seed": self.seed,
            "pending": self.pending,
            "stages": [stage.to_json() for stage in self.stages],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """Which stages the command line asked for."""

    start: str | None = None
    until: str | None = None
    force: frozenset[str] = frozenset()
    """Stage ids to run although cached; ``{"*"}`` means all."""
    no_cache: bool = False

    def forced(self, stage: str) -> bool:
        return "*" in self.force or stage in self.force

    def to_json(self) -> dict[str, Json]:
        return {"start": self.start, "until": self.until, "force": sorted(self.force), "no_cache": self.no_cache}

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Selection:
        return cls(
            record.get("start"), record.get("until"), frozenset(record.get("force", ())), record.get("no_cache", False)
        )


@dataclass(slots=True)
class Known:
    """What is known of an earlier stage while later ones are decided."""

    plan: StagePlan
    result: StageResult | None = None


class Planner:
    """Decides stages in order. ``facts`` are digests of everything outside the recipe that can change a result."""

    def __init__(
        self,
        recipe: Recipe,
        specs: Mapping[str, StageSpec],
        facts: Mapping[str, Json],
        rows: Mapping[str, int],
        runs_dir: Path,
        selection: Selection,
        has_gpu: bool,
    ) -> None:
        self.recipe = recipe
        self.specs = specs
        self.facts = facts
        self.rows = rows
        self.runs_dir = runs_dir
        self.selection = selection
        self.has_gpu = has_gpu
        self.ids = list(recipe.stages)
        only = selection.start == selection.until
        for option, stage in (("--from", selection.start), ("--until", selection.until)):
            option = "--only" if only else option
            if stage is not None and stage not in recipe.stages:
                raise UsageError(f"{option} {stage}: no such stage", hint=f"stages are {', '.join(self.ids)}")
        if selection.start is not None and self._beyond_until(selection.start):
            raise UsageError(f"--from {selection.start} comes after --until {selection.until}: no stage is left")
        for stage in selection.force - {"*"}:
            if stage not in recipe.stages:
                raise UsageError(f"--force={stage}: no such stage", hint=f"stages are {', '.join(self.ids)}")
        self._previous: dict[str, StageState] | None = None

    def plan_all(self) -> list[StagePlan]:
        """Decide every stage, taking those that would run as run."""
        known: dict[str, Known] = {}
        for stage in self.ids:
            plan = self.decide(stage, known)
            hit = self.cached_result(plan) if plan.action is Action.CACHED else None
            known[stage] = Known(plan, hit)
        return [entry.plan for entry in known.values()]

    def decide(self, stage: str, known: Mapping[str, Known]) -> StagePlan:
        """What to do with ``stage``, given what is known of the stages before it."""
        config = self.recipe.stages[stage]
        spec = self.specs[config.type]
        ordinal = self.ids.index(stage) + 1
        inputs = self._inputs(stage, config, spec, known)
        blank = StagePlan(stage, config.type, ordinal, Action.SKIPPED, "", inputs=inputs)
        if self._beyond_until(stage):
            return _replace(blank, reason=f"after --until {self.selection.until}")
        action, reason = self._when(config, known)
        if action is Action.SKIPPED:
            return _replace(blank, reason=reason)
        parts = self._key_parts(stage, config, spec, inputs, known)
        plan = _replace(
            blank, key=digest(parts), key_parts=parts, forecast=spec.forecast(config, self.recipe, self.rows)
        )
        if action is Action.UNDECIDED:
            return _replace(plan, action=action, reason=reason)
        return self._cached_or_run(plan)

    def _cached_or_run(self, plan: StagePlan) -> StagePlan:
        if self.selection.forced(plan.id):
            return _replace(plan, action=Action.RUN, reason="forced")
        if not self.selection.no_cache and self.cached_result(plan) is not None:
            return _replace(plan, action=Action.CACHED, reason=f"same key {plan.key[:8]} as an earlier result")
        if self._before_start(plan.id):
            raise UsageError(
                f"--from {self.selection.start} needs a cached result of {plan.id!r}, and there is none",
                hint=f"run `--only {plan.id}` first, or leave --from out",
            )
        if self.selection.no_cache:
            return _replace(plan, action=Action.RUN, reason="--no-cache")
        return _replace(plan, action=Action.RUN, reason=self._why(plan))

    def cached_result(self, plan: StagePlan) -> StageResult | None:
        """The result kept under the plan's key if its files are still there and verify."""
        if not plan.key or self.selection.no_cache:
            return None
        manifest = verify_folder(self.runs_dir / "cache" / plan.key)
        return StageResult.from_json(manifest["result"]) if manifest and "result" in manifest else None

    def _beyond_until(self, stage: str) -> bool:
        until = self.selection.until
        return until is not None and self.ids.index(stage) > self.ids.index(until)

    def _before_start(self, stage: str) -> bool:
        start = self.selection.start
        return start is not None and self.ids.index(stage) < self.ids.index(start)

    def _when(self, config: StageConfig, known: Mapping[str, Known]) -> tuple[Action, str]:
        condition = parse_when(config.when)
        if condition.stage is not None:
            entry = known.get(condition.stage)
            if entry is None or entry.result is None:
                if entry is not None and entry.plan.action is Action.SKIPPED:
                    return Action.SKIPPED, f"when: {config.when}, and {condition.stage} is skipped"
                return Action.UNDECIDED, f"when: {config.when}, known once {condition.stage} has run"
        metrics = {s: dict(entry.result.metrics) for s, entry in known.items() if entry.result is not None}
        met, reason = condition.decide(metrics, self.has_gpu)
        return (Action.RUN, reason) if met else (Action.SKIPPED, reason)

    def _inputs(self, stage: str, config: StageConfig, spec: StageSpec, known: Mapping[str, Known]) -> dict[str, Input]:
        found: dict[str, Input] = {}
        for name, kind in spec.consumes.items():
            if not config.uses(name):
                continue
            given = config.inputs.get(name)
            if given is not None:
                source, _, output = given.partition(".")
                found[name] = self._through_skipped(Input(source, output, "given"), kind, known)
                continue
            found[name] = self._newest(kind, config.policy, known) or Input("", "", "recipe")
        for name, values in config.choices().items():
            for number, value in enumerate(values):
                source, dot, output = value.partition(".")
                wanted = Input(source, output, "given") if dot else Input("", value, "recipe")
                found[f"{name}[{number}]"] = self._through_skipped(wanted, spec.consumes[name], known)
        return found

    def _newest(self, kind: ArtifactKind, policy: str, known: Mapping[str, Known]) -> Input | None:
        """The newest output of a kind; weights only of the role that answers here."""
        for earlier, entry in reversed(list(known.items())):
            if entry.plan.action is Action.SKIPPED or kind is ArtifactKind.METRICS:
                continue
            if kind is ArtifactKind.MODEL and self.recipe.stages[earlier].policy != policy:
                continue
            for output, produced in self.specs[entry.plan.type].produces.items():
                if produced is kind:
                    return Input(earlier, output, "auto")
        return None

    def _through_skipped(self, wanted: Input, kind: ArtifactKind, known: Mapping[str, Known]) -> Input:
        """A skipped stage passes on what it would itself have been given."""
        entry = known.get(wanted.stage)
        if entry is None or entry.plan.action is not Action.SKIPPED:
            return wanted
        for passed in entry.plan.inputs.values():
            if not passed.stage or self.specs[known[passed.stage].plan.type].produces.get(passed.output) is kind:
                return Input(passed.stage, passed.output, "given")
        return Input("", "", "recipe")

    def _key_parts(
        self,
        stage: str,
        config: StageConfig,
        spec: StageSpec,
        inputs: Mapping[str, Input],
        known: Mapping[str, Known],
    ) -> dict[str, Json]:
        recipe = self.recipe
        named = {role for other in recipe.stages.values() for role in (other.policy, *(r for _, r in other.roles()))}
        free = set(recipe.models) - named - {"policy"}  # agents and rewards may ask for them: a judge, a user
        roles = {config.policy, *(role for _, role in config.roles()), *free}
        splits = {split for _, split in config.splits()} or set(self.facts["data"])
        return {
            "type": spec.type,
            "version": spec.version,
            "config": config.model_dump(mode="json", exclude={"when", "inputs"}),
            "inputs": {n: known[i.stage].plan.key + "." + i.output if i.stage else str(i) for n, i in inputs.items()},
            "prompts": dict(self.facts["prompts"]),
            "models": {r: self.facts["models"][r] for r in sorted(roles) if r in self.facts["models"]},
            "agent": self.facts["agent"],
            "reward": self.facts["reward"],
            "data": {s: d for s, d in self.facts["data"].items() if s in splits},
            "references": {r: known[r].plan.key for _, r in config.references() if r in known},
            "seed": recipe.seed,
            "stage": stage,
        }

    def _why(self, plan: StagePlan) -> str:
        """In words, how this key differs from the one that the newest run of this recipe had for the stage."""
        if self._previous is None:
            self._previous = _newest_states(self.runs_dir, self.recipe.name)
        before = self._previous.get(plan.id)
        if before is None or not before.key_parts:
            return "no earlier result"
        changes = list(_differences(before.key_parts, plan.key_parts))
        if not changes:
            return "its cached result is gone" if before.done else f"it {before.status} the last time"
        return "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def _replace(plan: StagePlan, **changes: Any) -> StagePlan:
    return dataclasses.replace(plan, **changes)


def _newest_states(runs_dir: Path, name: str) -> dict[str, StageState]:
    """Stage id -> its newest state with a key, over the last runs of the recipe called ``name``."""
    found: dict[str, StageState] = {}
    runs = [RunFolder(path) for path in list_runs(runs_dir)[-50:]]
    for run in reversed(runs):
        stages = run.path / "stages"
        if f"-{name}-" not in run.id or not stages.is_dir():
            continue
        for folder in stages.iterdir():
            state = run.read_state(folder.name)
            if state is not None and state.key:
                found.setdefault(folder.name, state)
    return found


def _flatten(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _differences(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[str]:
    old, new = dict(_flatten(before)), dict(_flatten(after))
    for path in [*new, *(p for p in old if p not in new)]:
        if old.get(path) == new.get(path):
            continue
        if path.startswith("inputs."):
            yield f"input {path[7:]} changed"
        elif any(isinstance(side.get(path), str) and len(side[path]) > 40 for side in (old, new)):
            yield f"{path} changed"
        elif path not in old:
            yield f"{path} added: {new[path]}"
        elif path not in new:
            yield f"{path} removed"
        else:
            yield f"{path} {old[path]} -> {new[path]}"


def gather_facts(
    recipe: Recipe, data: Mapping[str, str], root: Path, python: Mapping[str, Json] | None = None
) -> dict[str, Json]:
    """Digests of what lies outside the recipe: ``data`` (split -> digest) and what is installed in the interpreter of
    the agent's own (``python``) are given, sources are read here.

    ``root`` is the folder that module entrypoints are looked up from.
    """
    agent = {name: getattr(recipe.agent, name) for name in _AGENT_KEY_FIELDS}
    agent["sources"] = _sources(recipe.agent.entrypoint, recipe.agent.sources, root)
    agent["files"] = _named_files([recipe.agent.args, recipe.agent.command], root)
    if python is not None:
        agent["python"] = dict(python)
    reward = recipe.reward.model_dump(mode="json", exclude={"timeout_s"})
    reward["sources"] = _sources(recipe.reward.function, (), root)
    reward["files"] = _named_files([recipe.reward.args], root)
    return {
        "agent": agent,
        "reward": reward,
        "data": dict(data),
        "prompts": {name: prompt.text or "" for name, prompt in recipe.agent.prompts.items()},
        "models": {role: _model_facts(model, root) for role, model in recipe.models.items()},
    }


def _model_facts(model: ModelConfig, root: Path) -> dict[str, Json]:
    dumped = model.model_dump(mode="json")
    facts = {name: dumped[name] for name in _MODEL_KEY_FIELDS}
    if model.provider == "python":
        facts["sources"] = _sources(model.name, (), root)
    if model.provider in ("local", "vllm"):
        facts |= {name: dumped[name] for name in ("dtype", "context")}
        if model.provider == "vllm":
            facts["server"] = model.server.args if model.server else []
        if not is_output(model.name) and model.base_url is None:
            facts["weights"] = content_digest(find(model.name))
    return facts


def _sources(entrypoint: str | None, extra: Iterable[str], root: Path) -> str:
    """Digest of the Python files beside an entrypoint (its own file at top level) and of ``extra``."""
    files: set[Path] = set()
    found = source_file(entrypoint, root) if entrypoint else None
    if found is not None:
        lone = found.parent.resolve() == root.resolve()
        files |= {found} if lone else {p for p in found.parent.rglob("*.py") if "__pycache__" not in p.parts}
    for pattern in extra:
        files |= {path for path in root.glob(pattern) if path.is_file()}
    named = sorted((str(p.relative_to(root)) if p.is_relative_to(root) else p.name, p) for p in files)
    return digest([[name, file_digest(path)] for name, path in named])


def _named_files(values: Iterable[Json], root: Path) -> dict[str, str]:
    """Digest of each file that a value names, so that a changed database is a changed agent."""
    found: dict[str, str] = {}
    for value in values:
        for _, leaf in _flatten(dict(enumerate(value)) if isinstance(value, (list, tuple)) else value or {}):
            if isinstance(leaf, str) and 0 < len(leaf) < 1024 and "\0" not in leaf and (root / leaf).is_file():
                found[leaf] = file_digest(root / leaf)
    return found
