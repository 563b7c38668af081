"""What happened in a run, read from its journal: one typed answer for terminal, ``show``, ``compare`` and the report.

Pure reading: a run that is unfinished, killed or failed is summarised as far as it came. A resumed stage goes on with
its story and does not tell it again, so its attempts are read as one; a stage that was planned anew (another key)
starts over. Light imports only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightningrun.files import digest, read_journal
from lightningrun.tracking.by_agent import by_agent
from lightningrun.tracking.comparison import (
    Headline,
    RowChange,
    compare_rows,
    headlines,
    read_rows,
    telling_changes,
)
from lightningrun.tracking.formats import unified_diff
from lightningrun.tracking.standings import GRID, Grid, Standing, grid_of, standings
from lightningrun.tracking.story import read_story
from lightningrun.types import Json

_ORIGIN = ("step", "parents", "component", "components", "algorithm", "way", "diff", "coach", "critique", "acceptance",
           "incumbent", "spend")  # fmt: skip
_BEGINNINGS = {"stage_started": "running", "stage_reused": "reused", "stage_skipped": "skipped"}
"""Event -> what it makes of a stage."""
Cost = Mapping[str, Mapping[str, float]]
"""Role -> calls, prompt_tokens, completion_tokens, usd."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    """One stage. ``status``: pending | running | succeeded | reused | skipped | failed | killed."""

    id: str
    type: str
    ordinal: int
    status: str = "pending"
    reason: str = ""
    attempt: int = 1
    key: str = ""
    metrics: Mapping[str, Json] = field(default_factory=dict)
    outputs: Mapping[str, Json] = field(default_factory=dict)
    cost: Cost = field(default_factory=dict)
    duration_s: float = 0.0
    error: str = ""
    forecast: Mapping[str, Json] = field(default_factory=dict)
    """Before it ran, at most: rollouts, llm_calls (by role, at one a rollout), cost_usd."""
    rollouts: int = 0
    """Rollouts that this run executed for it."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Where they come from: ``apo.prompts``, or what of the recipe it is."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What this run spent itself; a reused stage costs nothing again."""

    llm_calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    by_role: Cost = field(default_factory=dict)
    by_agent: Cost = field(default_factory=dict)
    """Agent -> calls, tokens, cost_usd, errors, latency_s (mean of its calls), where there are several."""
    rollouts: int = 0


@dataclass(frozen=True, slots=True)
class PromptChange:
    """A prompt before and after optimisation. ``best`` is the search's winner, shipped only if ``promoted``."""

    stage: str
    name: str
    seed: str
    best: str
    diff: str
    promoted: bool
    metrics: Mapping[str, Json] = field(default_factory=dict)


class TagResult(NamedTuple):
    """Mean reward of the rows of one tag, in the first and the last evaluation."""

    tag: str
    n: int
    before: float | None
    after: float


@dataclass(frozen=True, slots=True)
class RunSummary:
    """``status``: running | succeeded | failed | interrupted | killed."""

    run: str
    name: str
    path: Path
    status: str = "running"
    exit_code: int | None = None
    error: str = ""
    seed: int = 0
    notes: tuple[str, ...] = ()
    recipe_digest: str = ""
    started_at: float = 0.0
    duration_s: float = 0.0
    attempts: int = 1
    command: str = ""
    warnings: tuple[str, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    totals: Totals = Totals()
    headlines: tuple[Headline, ...] = ()
    """The first and the last evaluation of each split beside each other."""
    curves: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]] = field(default_factory=dict)
    """Stage -> metric -> (step, value) in order of steps."""
    candidates: Mapping[str, tuple[Mapping[str, Json], ...]] = field(default_factory=dict)
    """Stage -> candidate events, one for each id, as last told; ``took``: rollouts, llm_calls, usd of its own."""
    prompts: tuple[PromptChange, ...] = ()
    changes: tuple[RowChange, ...] = ()
    """Rows that the first or the last evaluation failed: ``fixed`` ones, ``broken`` ones, then the rest."""
    evaluations: tuple[Standing, ...] = ()
    grids: tuple[Grid, ...] = ()
    gates: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    mirror: Mapping[str, Json] = field(default_factory=dict)

    @property
    def headline(self) -> Headline | None:
        """What the run came to."""
        return self.headlines[-1] if self.headlines else None

    def by_tag(self) -> list[TagResult]:
        """Results of the last evaluation for each kind of row, beside the first's."""
        before = self.stage(self.headline.baseline_stage) if self.headline else None
        after = self.stage(self.headline.final_stage) if self.headline else None
        if after is None:
            return []
        found = []
        for name, reward in after.metrics.items():
            if name.startswith("tag.") and name.endswith(".reward"):
                tag = name.removeprefix("tag.").removesuffix(".reward")
                first = before.metrics.get(name) if before else None
                found.append(TagResult(tag, int(after.metrics.get(f"tag.{tag}.n") or 0), first, reward))
        return found

    def stage(self, id: str) -> StageSummary | None:
        return next((stage for stage in self.stages if stage.id == id), None)

    def to_json(self) -> dict[str, Json]:
        """The form of ``show --json``: everything, with ``stages`` by id."""
        record = asdict(self)
        record["headline"] = record["headlines"][-1] if self.headlines else None
        record["path"] = str(self.path)
        record["stages"] = {stage.id: asdict(stage) for stage in self.stages}
        return record


@dataclass(slots=True)
class _Stage:
    """What the journal has said of one stage so far."""

    id: str
    type: str = ""
    ordinal: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[float, float]] = field(default_factory=dict)
    candidates: dict[int, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    rollouts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, event: Mapping[str, Any], status: str) -> None:
        changed = event.get("key") != self.facts.get("key")
        self.type, self.ordinal = event.get("type", self.type), event.get("ordinal", self.ordinal)
        self.facts = {
            "status": status,
            **_given(event, "attempt", "key", "reason", "metrics", "cost", "forecast", "inputs"),
        }
        if changed:
            self.curves, self.gate = {}, {}
            self.candidates = {id: told for id, told in self.candidates.items() if id == 0}
            self.prompts = {name: {"seed": told["seed"]} for name, told in self.prompts.items() if "seed" in told}

    def hear(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind in _BEGINNINGS:
            self.begin(event, _BEGINNINGS[kind])
        elif kind == "stage_finished":
            self.facts.update(_given(event, "status", "metrics", "cost", "duration_s", "error"))
        elif kind == "rollout":
            self.rollouts[event["rollout"]["key"]] = event["rollout"]
        elif kind == "metric":
            for name, value in event["values"].items():
                if isinstance(value, (int, float)):
                    self.curves.setdefault(name, {})[event["step"]] = float(value)
        elif kind == "candidate":
            # The winner is told twice; the second time brings the verdict, the first how it came about.
            first = self.candidates.get(event["id"], {})
            self.candidates[event["id"]] = {**event, **{name: first[name] for name in _ORIGIN if name in first}}
        elif kind == "prompt":
            self.prompts.setdefault(event["name"], {})[event["label"]] = dict(event)
        elif kind == "gate":
            self.gate = {"met": event["met"], "checks": event["checks"]}

    def summary(self, dead: bool, outputs: Mapping[str, Any]) -> StageSummary:
        facts = dict(self.facts, outputs=outputs)
        if dead and facts.get("status") == "running":
            facts["status"] = "killed"
        return StageSummary(id=self.id, type=self.type, ordinal=self.ordinal, rollouts=len(self.rollouts), **facts)


def _given(event: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: event[name] for name in names if event.get(name) is not None}


@dataclass(slots=True)
class _Run:
    facts: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, _Stage] = field(default_factory=dict)
    last_ts: float = 0.0
    sittings: list[list[float]] = field(default_factory=list)
    """Start and last event of each process that worked on the run."""

    def hear(self, event: Mapping[str, Any]) -> None:
        kind, stage = event["kind"], event.get("stage")
        if kind in ("run_started", "run_resumed"):
            self._begin(event)
        elif kind == "run_finished":
            self.facts.update(status=event["status"], exit_code=event.get("exit_code"), error=event.get("error") or "")
        elif stage is not None:
            self.stages.setdefault(stage, _Stage(stage, ordinal=len(self.stages) + 1)).hear(event)
        if self.sittings:
            self.sittings[-1][1] = event["ts"]

    def _begin(self, event: Mapping[str, Any]) -> None:
        self.sittings.append([event["ts"], event["ts"]])
        self.facts.update(status="running", exit_code=None, error="", attempts=len(self.sittings))
        self.facts["command"] = event.get("argv") or ""
        if event["kind"] == "run_started":
            self.facts.update(name=event["name"], run=event["run"], seed=event.get("seed", 0), started_at=event["ts"])
            self.facts.update(recipe_digest=event.get("recipe_digest", ""), notes=tuple(event.get("notes") or ()))
            self.facts["warnings"] = tuple(event.get("warnings") or ())
        for number, (id, type) in enumerate((event.get("stages") or {}).items(), 1):
            self.stages.setdefault(id, _Stage(id)).type = type
            self.stages[id].ordinal = number


def summarise(run_dir: Path) -> RunSummary:
    """Read a run folder. Raises FileNotFoundError if it has no journal."""
    run_dir = run_dir.resolve()
    run = _Run()
    for _, event in read_journal(run_dir / "journal.jsonl"):
        run.hear(event)
    facts = {"run": run_dir.name, "name": run_dir.name, "status": "running", **run.facts}
    dead = facts["status"] != "running" or not holder_alive(run_dir / ".lock")
    if dead and facts["status"] == "running":
        facts["status"] = "killed"
    ordered = sorted(run.stages.values(), key=lambda stage: stage.ordinal)
    for stage in ordered:
        if stage.facts.get("status") == "reused":
            for event in read_story(run_dir / "stages" / stage.id / "outputs"):
                stage.hear(event)
    outputs = {stage.id: _outputs(run_dir, stage.id) for stage in ordered}
    stages = tuple(stage.summary(dead, outputs[stage.id]) for stage in ordered)
    rows = {stage.id: read_rows(_records(run_dir, stage)) for stage in ordered if stage.type == "evaluate"}
    grids = {id: grid for id in rows if (grid := grid_of(id, read_json(run_dir / "stages" / id / "outputs" / GRID)))}
    done = [s for s in stages if s.id in rows and s.id not in grids and s.metrics.get("reward") is not None]
    evaluated = [(s.id, s.metrics, rows[s.id]) for s in done]
    evaluations = standings(
        evaluated, {s.id: s.inputs for s in stages}, {s.id: s.metrics for s in stages}, _controls(run_dir, stages)
    )
    searches = [s.metrics for s in stages if s.type == "apo" and s.metrics]
    aside = {one.stage for one in evaluations if one.control_for}
    heads = headlines([one for one in evaluated if one[0] not in aside] or evaluated, searches)
    head = heads[-1] if heads else None
    changes: tuple[RowChange, ...] = ()
    if head is not None and head.baseline_stage and head.final_stage:
        pairs = compare_rows(rows[head.baseline_stage], rows[head.final_stage])
        changes = telling_changes(run_dir, pairs)
    return RunSummary(
        path=run_dir,
        duration_s=sum(end - start for start, end in run.sittings),
        stages=stages,
        totals=_totals(stages, by_agent(_told_of_agents(ordered))),
        headlines=heads,
        curves={
            s.id: {name: tuple(sorted(points.items())) for name, points in s.curves.items()}
            for s in ordered
            if s.curves
        },
        candidates={s.id: _candidates(run_dir, s) for s in ordered if s.candidates},
        prompts=tuple(change for stage in ordered for change in _prompt_changes(stage)),
        changes=changes,
        evaluations=evaluations,
        grids=tuple(grids.values()),
        gates={s.id: s.gate for s in ordered if s.gate},
        paths=_paths(run_dir, ordered),
        mirror=read_json(run_dir / "mirror.json"),
        **facts,
    )


def _controls(run_dir: Path, stages: Sequence[StageSummary]) -> dict[str, str]:
    """Stage -> the stage that it is the control of."""
    if all(stage.type != "sft" for stage in stages):
        return {}
    configs = recipe_of(run_dir).get("stages") or {}
    return {id: config["control_for"] for id, config in configs.items() if config.get("control_for")}


def holder_alive(lock: Path) -> bool:
    """Whether the process whose id a lock file names is alive. Asks without taking the lock."""
    try:
        pid = int(lock.read_text("ascii"))
        os.kill(pid, 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)
    try:
        # A killed process whose parent never asked for it is still listed, as a zombie.
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def add_costs(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Sum of costs, role by role."""
    total: dict[str, dict[str, float]] = {}
    for cost in costs:
        for role, parts in cost.items():
            sums = total.setdefault(role, {})
            for name, value in parts.items():
                if isinstance(value, (int, float)):
                    sums[name] = sums.get(name, 0) + value
    return total


def tokens_of(parts: Mapping[str, float]) -> int:
    """Tokens of one role's cost, in either of the two forms in use."""
    return int(parts.get("tokens", parts.get("prompt_tokens", 0) + parts.get("completion_tokens", 0)))


def _told_of_agents(stages: Iterable[_Stage]) -> Iterator[Mapping[str, Mapping[str, float]]]:
    return (rollout.get("agents") or {} for stage in stages for rollout in stage.rollouts.values())


def _totals(stages: Sequence[StageSummary], agents: Cost) -> Totals:
    roles = add_costs([stage.cost for stage in stages if stage.status not in ("reused", "skipped")])
    return Totals(
        llm_calls=int(sum(parts.get("calls", 0) for parts in roles.values())),
        tokens=sum(map(tokens_of, roles.values())),
        usd=sum(parts.get("usd", 0) for parts in roles.values()),
        by_role=roles,
        by_agent=agents,
        rollouts=sum(stage.rollouts for stage in stages),
    )


def _outputs(run_dir: Path, stage: str) -> dict[str, Any]:
    """The committed outputs of a stage by name: kind, value, path."""
    result = read_json(run_dir / "stages" / stage / "state.json").get("result") or {}
    return dict(result.get("outputs") or {})


def _records(run_dir: Path, stage: _Stage) -> Iterable[Mapping[str, Any]]:
    """Rollouts of a stage, from its outputs, else from the journal."""
    file = run_dir / "stages" / stage.id / "outputs" / "rollouts.jsonl"
    if file.is_file():
        return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    return stage.rollouts.values()


def _candidates(run_dir: Path, stage: _Stage) -> tuple[Mapping[str, Json], ...]:
    """A search's candidates in order of ids; a rollout's key begins with the digest of the prompts it ran with."""
    took: dict[str, dict[str, float]] = {}
    for record in _records(run_dir, stage):
        sums = took.setdefault(record["key"].partition("/")[0], {"rollouts": 0, "llm_calls": 0, "usd": 0.0})
        sums["rollouts"] += 1
        sums["llm_calls"] += record.get("llm_calls") or 0
        sums["usd"] += record.get("cost_usd") or 0.0
    ordered = [stage.candidates[id] for id in sorted(stage.candidates)]
    # Taken out once: a duplicate has the same prompts as the candidate that the rollouts were made for.
    return tuple({**told, "took": took.pop(digest(told.get("prompts") or {})[:12], {})} for told in ordered)


def _prompt_changes(stage: _Stage) -> list[PromptChange]:
    found = []
    for name, told in stage.prompts.items():
        if "best" in told:
            seed, best = told.get("seed", {}).get("text", ""), told["best"]
            diff = unified_diff(seed, best["text"], f"{name} (before)", f"{name} (after)")
            promoted, metrics = bool(best.get("promoted")), best.get("metrics") or {}
            found.append(PromptChange(stage.id, name, seed, best["text"], diff, promoted, metrics))
    return found


def recipe_of(run_dir: Path) -> dict[str, Any]:
    """The resolved recipe of a run; empty if it is not there or does not parse."""
    import yaml

    try:
        loaded = yaml.safe_load((run_dir / "resolved.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def seed_prompts(run_dir: Path) -> dict[str, str]:
    """The prompts that the recipe began with, by name."""
    try:
        prompts = recipe_of(run_dir)["agent"]["prompts"]
        return {name: prompt["text"] for name, prompt in prompts.items() if prompt.get("text")}
    except (KeyError, TypeError, AttributeError):
        return {}


def _paths(run_dir: Path, stages: Sequence[_Stage]) -> dict[str, str]:
    names = ("report.html", "resolved.yaml", "lock.json", "journal.jsonl", "calls.jsonl")
    paths = {name: str(run_dir / name) for name in names if (run_dir / name).exists()}
    for stage in stages:
        for file in sorted((run_dir / "stages" / stage.id / "outputs" / "prompts").glob("*.md")):
            paths[f"prompt {file.stem}"] = str(file)
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty if the file is not there or does not parse."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
