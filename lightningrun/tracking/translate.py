"""Events of the journal, told to MLflow.

    run_started    -> experiment, parent run, params, seed prompts in the registry
    stage_started  -> child run ``<ordinal>-<stage>``; a resumed stage is a fresh child, the old one is KILLED
    metric         -> ``log_batch`` with steps on the child
    rollout        -> trace under the child (all of an evaluation; of a search a sample and every failure)
    prompt         -> version in the registry, found again by its digest, tagged with its candidate, score and the
                      versions it came from; alias ``best-<run>`` on what was shipped
    stage_finished -> metrics and cost; of a search also its lineage (page, JSON) and a table of candidates
    stage_reused   -> a child run with the story that was kept with the outputs
    run_finished   -> ``final/*`` metrics, a note with the headline, the status
    (end)          -> files of the run as artifacts

Everything is written so that telling it twice changes nothing. What MLflow refuses for its content (a name it does
not like, a text too long) is noted in ``refused`` and left out; that it is not reachable is raised.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lightningrun.files import digest
from lightningrun.tracking.lineage import lineages
from lightningrun.tracking.registry import Registry
from lightningrun.tracking.report import render_lineage
from lightningrun.tracking.standings import GRID, grid_of
from lightningrun.tracking.store import preparing, sqlite_file
from lightningrun.tracking.story import read_story
from lightningrun.tracking.summary import holder_alive, read_json, seed_prompts, summarise
from lightningrun.tracking.terms import candidates_table, cells_table, final_metrics, flat, key, note
from lightningrun.tracking.trace_queue import TraceQueue

MAX_PARAMS = 20
CANDIDATES = "candidates.json"
CELLS = "cells.json"
_ON_PARENT = ("val_reward", "reward")
_WAIT_AND_RETRY = {401, 403, 408, 429}
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Translator:
    """Hears events in order; ``flush`` sends what was gathered. While not ``live`` it only learns the story so far."""

    def __init__(self, run_dir: Path, uri: str, experiment: str, runs_dir: Path) -> None:
        self.run_dir = run_dir
        self.run = run_dir.name
        self.hex = self.run.rsplit("-", 1)[-1]
        self.live = True
        self.refused: list[str] = []
        self._recipe = _read(run_dir / "resolved.yaml")
        self._lock = _read(run_dir / "lock.json")
        # Some calls of the client look at the process's own setting instead of their client's.
        mlflow.set_tracking_uri(uri)
        with preparing(uri):
            self._client = MlflowClient(uri)
            self.experiment_id = self._experiment(uri, experiment)
        self._runs: dict[str, Run] = self._find_runs()
        self._runs_dir = runs_dir
        self._swept = False
        self._name = str(self._recipe.get("name") or self.run)
        self._registry = Registry(self._client, self.run, self._name, self._ask)
        self.traces = TraceQueue(run_dir, uri, self.experiment_id, self._registry, self._ask)
        self._finished = False
        self._last_ms = 0
        self._offset = 0
        self._types: dict[str, str] = {}
        self._children: dict[str, str] = {}
        self._open: set[str] = set()
        self._metrics: dict[str, list[Metric]] = {}
        self._curves: dict[str, tuple[Any, list[tuple[Mapping[str, Any], int, int]]]] = {}
        self._seen_splits: set[tuple[str, str]] = set()
        self._searches: dict[str, dict[int, Mapping[str, Any]]] = {}
        self._seeds = seed_prompts(run_dir)

    @property
    def run_id(self) -> str | None:
        """The parent run's id in MLflow, None before it exists."""
        parent = self._runs.get("0")
        return str(parent.info.run_id) if parent is not None else None

    def hear(self, event: Mapping[str, Any], offset: int) -> None:
        """Take in one event, which stands at byte ``offset`` of the journal."""
        self._offset = offset
        self._last_ms = int(event["ts"] * 1000)
        handler: Callable[[Mapping[str, Any]], None] | None = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event)

    # ---------------------------------------------------------------- runs

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        self._registry.remember(self._seeds)
        if self.live:
            self._parent(event)
            self._sweep()
        for name, text in self._seeds.items():
            self._registry.expect(name, text)
            if self.live:
                self._registry.register(name, text, "seed", {})

    def _on_run_resumed(self, event: Mapping[str, Any]) -> None:
        self._finished = False
        self._recipe = _read(self.run_dir / "resolved.yaml")
        for stage in list(self._open):
            self._end_child(stage, "KILLED")
        if self.live and self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            self._sweep()

    def _on_run_finished(self, event: Mapping[str, Any]) -> None:
        self._finished = True
        if not self.live or self.run_id is None:
            return
        self.flush()
        summary = summarise(self.run_dir)
        self._log(self.run_id, final_metrics(summary))
        words = note(summary)
        self._ask(self._client.set_tag, self.run_id, "mlflow.note.content", words)
        self._ask(self._client.set_experiment_tag, self.experiment_id, "mlflow.note.content", f"Latest: {words}")
        self.flush()
        self._client.set_terminated(self.run_id, _STATUS.get(event["status"], "FAILED"), self._last_ms)

    def _on_stage_started(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        if stage in self._open:
            self._end_child(stage, "KILLED")
        self._types[stage] = event["type"]
        self._open.add(stage)
        told = self._curves.get(stage)
        if told is None or told[0] != event.get("key"):
            self._curves[stage] = told = (event.get("key"), [])
        self._child(event, {"lightningrun.attempt": str(event.get("attempt", 1))})
        # A resumed stage goes on with its curves: the fresh child gets their beginning too.
        for values, step, ms in told[1]:
            self._child_metrics(stage, values, step, ms)

    def _on_stage_reused(self, event: Mapping[str, Any]) -> None:
        self._types[event["stage"]] = event["type"]
        self._child(event, {"lightningrun.reused": event.get("reason") or "true"})
        for told in read_story(self.run_dir / "stages" / event["stage"] / "outputs"):
            getattr(self, f"_on_{told['kind']}")({**told, "ts": event["ts"]})
        self._stage_metrics(event)
        self._end_child(event["stage"], "FINISHED")

    def _on_stage_finished(self, event: Mapping[str, Any]) -> None:
        stage = event["stage"]
        self._stage_metrics(event)
        if self.live and event.get("error") and stage in self._children:
            error = str(event["error"])[:2000]
            self._ask(self._client.set_tag, self._children[stage], "lightningrun.error", error)
        self._end_child(stage, _STATUS.get(event["status"], "FAILED"))

    def _parent(self, event: Mapping[str, Any]) -> None:
        tags = {"lightningrun.level": "recipe", "lightningrun.recipe": event.get("recipe_digest", "")}
        tags["lightningrun.notes"] = "; ".join(event.get("notes") or ())
        commit = self._at("git", "commit", source=self._lock)
        if commit:
            tags["mlflow.source.git.commit"] = str(commit)
        run = self._create_run("0", f"{self._name}-{self.hex}", tags)
        params = [Param(k, v) for k, v in self._params().items() if k not in run.data.params]
        self._ask(self._client.log_batch, run.info.run_id, params=params)

    def _child(self, event: Mapping[str, Any], tags: dict[str, str]) -> None:
        seq = str(event["seq"])
        stage = event["stage"]
        if self.live:
            level = {"lightningrun.level": "stage", "lightningrun.stage": stage, "lightningrun.type": event["type"]}
            parent = {"mlflow.parentRunId": self.run_id or ""}
            run = self._create_run(seq, f"{event['ordinal']}-{stage}", {**level, **tags, **parent})
            config = {k: v for k, v in flat(self._at("stages", stage) or {}).items() if k not in run.data.params}
            params = [Param(k, v) for k, v in list(config.items())[:MAX_PARAMS]]
            self._ask(self._client.log_batch, run.info.run_id, params=params)
        if seq in self._runs:
            self._children[stage] = str(self._runs[seq].info.run_id)

    def _create_run(self, seq: str, name: str, tags: Mapping[str, str]) -> Run:
        if seq not in self._runs:
            with contextlib.suppress(Exception):
                tags = {"mlflow.user": getpass.getuser(), **tags}
            identity = {"lightningrun.run_id": self.run, "lightningrun.seq": seq}
            tags = {k: v[:5000] for k, v in {**tags, **identity, "mlflow.source.name": "lightningrun"}.items() if v}
            self._runs[seq] = self._client.create_run(self.experiment_id, self._last_ms, tags, name)
        return self._runs[seq]

    def _end_child(self, stage: str, status: str) -> None:
        self._open.discard(stage)
        if self.live and stage in self._children:
            self._log_search(stage)
            self._log_grid(stage)
            self.flush()
            self._client.set_terminated(self._children[stage], status, self._last_ms)

    def _log_search(self, stage: str) -> None:
        """A search's lineage, as artifacts of its child run."""
        run = summarise(self.run_dir) if stage in self._searches else None
        for search in lineages(run) if run is not None else ():
            if run is not None and search.stage == stage:
                files = {
                    "lineage.html": render_lineage(run, search),
                    "lineage.json": json.dumps(search.to_json(), ensure_ascii=False, indent=1, default=str),
                    CANDIDATES: candidates_table(search),
                }
                self._log_texts(stage, files, CANDIDATES)

    def _log_grid(self, stage: str) -> None:
        """The cells of a grid, as artifacts of its child run."""
        grid = grid_of(stage, read_json(self.run_dir / "stages" / stage / "outputs" / GRID))
        if grid is not None:
            text = json.dumps(asdict(grid), ensure_ascii=False, indent=1)
            self._log_texts(stage, {GRID: text, CELLS: cells_table(grid)}, CELLS)

    def _log_texts(self, stage: str, files: Mapping[str, str], table: str) -> None:
        """Texts as artifacts; the one called ``table`` is shown as that."""
        for name, text in files.items():
            self._ask(self._client.log_text, self._children[stage], text, name)
        tables = json.dumps([{"path": table, "type": "table"}])
        self._ask(self._client.set_tag, self._children[stage], "mlflow.loggedArtifacts", tables)

    def _find_runs(self) -> dict[str, Run]:
        query = f"tags.`lightningrun.run_id` = '{self.run}'"
        return {run.data.tags["lightningrun.seq"]: run for run in self._search(query)}

    def _search(self, query: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            batch = self._client.search_runs([self.experiment_id], query, ViewType.ACTIVE_ONLY, 500, page_token=token)
            found += batch
            token = batch.token
            if not token:
                return found

    def _experiment(self, uri: str, name: str) -> str:
        for _ in range(2):
            known = self._client.get_experiment_by_name(name)
            if known is not None:
                if known.lifecycle_stage == "deleted":
                    self._client.restore_experiment(known.experiment_id)
                return str(known.experiment_id)
            file = sqlite_file(uri)
            folder = (file.parent / "artifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri() if file else None
            with contextlib.suppress(MlflowException):
                return str(self._client.create_experiment(name, artifact_location=folder))
        raise MlflowException(f"experiment {name!r} can neither be found nor created")

    def _sweep(self) -> None:
        """Close what killed runners left RUNNING. A run counts as dead if neither runner nor exporter of it lives."""
        if self._swept:
            return
        self._swept = True
        for run in self._search("attributes.status = 'RUNNING'"):
            id = run.data.tags.get("lightningrun.run_id", "")
            folder = self._runs_dir / id
            if not id or id == self.run or not (folder / "journal.jsonl").is_file():
                continue
            if not holder_alive(folder / ".lock") and not holder_alive(folder / ".mirror.lock"):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def close(self, *, dead: bool) -> None:
        """After the last event: the run's files, and KILLED for what a dead runner left open."""
        self.flush()
        if self.run_id is None:
            return
        if dead and not self._finished:
            for stage in list(self._open):
                self._end_child(stage, "KILLED")
            self._client.set_terminated(self.run_id, "KILLED", self._last_ms)
        for name in ("recipe.yaml", "resolved.yaml", "lock.json", "report.html"):
            if (self.run_dir / name).is_file():
                self._ask(self._client.log_artifact, self.run_id, str(self.run_dir / name))

    # ---------------------------------------------------------------- metrics

    def _on_metric(self, event: Mapping[str, Any]) -> None:
        self._point(event["stage"], event["values"], int(event["step"]))

    def _on_candidate(self, event: Mapping[str, Any]) -> None:
        self._registry.remember(event.get("prompts") or {})
        self._searches.setdefault(event["stage"], {})[event["id"]] = event
        if event.get("val"):
            self._point(event["stage"], {"candidate/val_reward": event["val"]["mean"]}, int(event["id"]))

    def _point(self, stage: str, values: Mapping[str, Any], step: int) -> None:
        """One point of a stage's curves; told again (a winner's verdict, say) it is left out."""
        _, told = self._curves.setdefault(stage, (None, []))
        if (values, step) not in [(old, at) for old, at, _ in told]:
            told.append((values, step, self._last_ms))
            self._child_metrics(stage, values, step)
            if self.live and self.run_id is not None:
                # On the parent too: the page that compares runs shows parents, their children being folded.
                self._log(self.run_id, {f"{stage}/{name}": values[name] for name in _ON_PARENT if name in values}, step)

    def _stage_metrics(self, event: Mapping[str, Any]) -> None:
        self._child_metrics(event["stage"], event.get("metrics") or {})
        cost = {
            f"cost/{role}/{name}": value
            for role, parts in (event.get("cost") or {}).items()
            for name, value in parts.items()
        }
        self._child_metrics(event["stage"], cost)

    def _child_metrics(self, stage: str, values: Mapping[str, Any], step: int = 0, ms: int | None = None) -> None:
        if self.live and stage in self._children:
            self._log(self._children[stage], values, step, ms)

    def _log(self, run_id: str, values: Mapping[str, Any], step: int = 0, ms: int | None = None) -> None:
        usable = {key(name): float(v) for name, v in values.items() if isinstance(v, (int, float))}
        metrics = [Metric(name, value, ms or self._last_ms, step) for name, value in usable.items()]
        self._metrics.setdefault(run_id, []).extend(metrics)

    def flush(self) -> None:
        """Send the metrics gathered so far."""
        for run_id, metrics in self._metrics.items():
            for start in range(0, len(metrics), 900):
                self._ask(self._client.log_batch, run_id, metrics=metrics[start : start + 900])
        self._metrics.clear()

    # ---------------------------------------------------------------- rollouts

    def _on_rollout(self, event: Mapping[str, Any]) -> None:
        stage, record = event["stage"], event["rollout"]
        wanted = self.traces.wanted(self._types.get(stage, ""), stage, record, self._at("tracking", "traces") or {})
        if stage not in self._children:
            return
        if self.live and (stage, record["split"]) not in self._seen_splits:
            self._seen_splits.add((stage, record["split"]))
            self._log_dataset(self._children[stage], record["split"])
        if wanted:
            self.traces.add(event["seq"], self._offset, self._children[stage])

    def _log_dataset(self, run_id: str, split: str) -> None:
        source = str((self._at("task", "data") or {}).get(split) or split)
        known = self._at("digests", "data", source=self._lock)
        text = (known.get(split) if isinstance(known, Mapping) else known) or digest(source)
        dataset = Dataset(f"{self._name}-{split}", str(text)[:36], "local", json.dumps({"uri": source}))
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", split)])]
        self._ask(self._client.log_inputs, run_id, inputs)

    # ---------------------------------------------------------------- prompts

    def _on_prompt(self, event: Mapping[str, Any]) -> None:
        name, text = event["name"], event["text"]
        self._registry.expect(name, text)
        if not self.live:
            return
        facts = {**(event.get("metrics") or {}), **self._origin(event)}
        facts = {f"lightningrun.{k}": str(v) for k, v in facts.items()}
        version = self._registry.register(name, text, event["label"], facts)
        if event["label"] != "best" or version is None:
            return
        if not event.get("promoted"):
            version = self._registry.register(name, self._seeds.get(name, text), "seed", {})
        full = self._registry.full_name(name)
        self._ask(self._client.set_prompt_alias, full, f"best-{self.hex}", version)
        self._ask(self._client.link_prompt_version_to_run, self.run_id, f"prompts:/{full}/{version}")

    def _origin(self, event: Mapping[str, Any]) -> dict[str, str]:
        """Which candidate of its search a prompt belongs to, and which versions it came from."""
        told = self._searches.get(event["stage"], {})
        origin = told.get(event.get("candidate", -1))
        if origin is None:
            return {}
        parents = [told[id] for id in origin.get("parents") or () if id in told]
        texts = [(parent.get("prompts") or {}).get(event["name"]) for parent in parents]
        versions = [self._registry.version(event["name"], text) for text in dict.fromkeys(texts) if text is not None]
        return {
            "candidate": str(origin["id"]),
            "stage": event["stage"],
            "parents": ", ".join(str(parent["id"]) for parent in parents),
            "parent_versions": ", ".join(str(version) for version in versions if version is not None),
        }

    # ---------------------------------------------------------------- asking

    def _ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call that MLflow may refuse for its content: then it is noted, and None is returned.

        Raises MlflowException if the server is not well or not there: the batch is then told again later.
        """
        try:
            return call(*arguments, **named)
        except MlflowException as error:
            status = error.get_http_status_code()
            if not 400 <= status < 500 or status in _WAIT_AND_RETRY:
                raise
            self.refused.append(f"refused by MLflow: {error.message}"[:300])
            return None

    def _at(self, *keys: str, source: Any = None) -> Any:
        value: Any = self._recipe if source is None else source
        for name in keys:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def _params(self) -> dict[str, str]:
        """The handful of settings by which runs are told apart."""
        wanted = {
            "seed": self._at("seed"),
            "agent": self._at("agent", "entrypoint") or self._at("agent", "command"),
            "reward": self._at("reward", "function"),
            "stages": ", ".join(self._at("stages") or {}),
        }
        for role, model in (self._at("models") or {}).items():
            wanted[f"models.{role}"] = f"{model.get('provider')}:{model.get('name')}"
        wanted.update({f"vars.{name}": value for name, value in flat(self._at("vars") or {}).items()})
        return {key(k): str(v)[:500] for k, v in list(wanted.items())[:MAX_PARAMS] if v not in (None, "")}


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
