"""The folder of a run: where each file lies, how a run is named, found and listed, and the state of its stages.

runs/<time>-<name>-<hex>/
  recipe.yaml  resolved.yaml  lock.json  journal.jsonl  calls.jsonl  mirror.json  report.html
  stages/<id>/{state.json, outputs/}  logs/
runs/cache/<key>/    runs/latest    runs/mlflow.db
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightningrun.errors import UsageError
from lightningrun.files import digest, disk_errors, safe_name, write_atomic
from lightningrun.types import Json, StageResult

SHARED = {"cache", "artifacts", "latest", "mlflow.db"}
"""Names in a runs folder that are not runs."""


@dataclass(frozen=True, slots=True)
class StageState:
    """What is known of one stage of one run; the file is rewritten whole at each change."""

    stage: str
    type: str
    ordinal: int
    status: str
    """running | succeeded | reused | skipped | failed"""
    key: str = ""
    reason: str = ""
    attempt: int = 1
    key_parts: Mapping[str, Json] = field(default_factory=dict)
    """What the key was made of, so that the next run can say what changed."""
    result: Mapping[str, Json] | None = None
    cost: Mapping[str, Json] = field(default_factory=dict)
    duration_s: float = 0.0
    error: str = ""

    @property
    def done(self) -> bool:
        return self.status in ("succeeded", "reused")

    def stage_result(self) -> StageResult:
        return StageResult.from_json(self.result or {"outputs": {}, "metrics": {}})


class RunFolder:
    """Paths of one run. ``path`` is absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.id = self.path.name
        self.recipe = self.path / "recipe.yaml"
        self.resolved = self.path / "resolved.yaml"
        self.lock = self.path / "lock.json"
        self.journal = self.path / "journal.jsonl"
        self.calls = self.path / "calls.jsonl"

    def stage(self, stage: str) -> Path:
        return self.path / "stages" / safe_name(stage, "stage id")

    def outputs(self, stage: str) -> Path:
        return self.stage(stage) / "outputs"

    def read_state(self, stage: str) -> StageState | None:
        """The stage's state, or None if it never started or its file does not parse."""
        try:
            record = json.loads((self.stage(stage) / "state.json").read_text("utf-8"))
            return StageState(**{k: record[k] for k in StageState.__dataclass_fields__ if k in record})
        except (OSError, ValueError, TypeError):
            return None

    def write_state(self, state: StageState) -> None:
        folder = self.stage(state.stage)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "state.json", json.dumps(asdict(state), indent=1, ensure_ascii=False))

    def read_lock(self) -> dict[str, Any]:
        """``lock.json``. Raises UsageError if this is not the folder of a run."""
        try:
            lock = json.loads(self.lock.read_text("utf-8"))
            if not isinstance(lock, dict) or not isinstance(lock.get("cwd"), str):
                raise ValueError("lock.json does not say where the run was started")
        except (OSError, ValueError) as error:
            raise UsageError(f"not a run of lightningrun: {error}", where=str(self.path)) from None
        return lock

    def freeze(self, lock: Mapping[str, Any], resolved: str) -> None:
        """Write ``lock.json`` and ``resolved.yaml``; the former knows the digest of the latter, now and before.

        A kill between the two leaves no run yet, or one whose older recipe still verifies.
        """
        known = [*lock.get("resolved_digests", ()), digest(resolved)]
        if not known[:-1]:
            write_atomic(self.resolved, resolved)
        write_atomic(self.lock, json.dumps({**lock, "resolved_digests": known}, indent=1, ensure_ascii=False))
        write_atomic(self.resolved, resolved)

    def read_resolved(self, lock: Mapping[str, Any]) -> str:
        """The frozen recipe. Raises UsageError if it is not, whole, what was frozen."""
        hint = "start anew from the recipe: what is unchanged is reused; to change a value, resume with KEY=VALUE"
        try:
            text = self.resolved.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the frozen recipe: {error}", where=str(self.resolved), hint=hint) from None
        known = lock.get("resolved_digests")
        if known is not None and digest(text) not in known:
            raise UsageError("the frozen recipe was damaged or edited", where=str(self.resolved), hint=hint)
        return text


def create(runs_dir: Path, name: str) -> RunFolder:
    """A new, empty run folder under ``runs_dir``, named by time, recipe and six random hex digits."""
    safe_name(name, "run name")
    with disk_errors(runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
        while True:
            path = runs_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(3)}"
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return RunFolder(path)


def point_latest(runs_dir: Path, run: RunFolder) -> None:
    """Make ``runs/latest`` a link to ``run``, by one rename."""
    temporary = runs_dir / f".latest-{secrets.token_hex(4)}"
    with disk_errors(temporary), contextlib.suppress(FileExistsError):
        os.symlink(run.id, temporary)
        os.replace(temporary, runs_dir / "latest")


def list_runs(runs_dir: Path) -> list[Path]:
    """Run folders under ``runs_dir``, oldest first."""
    if not runs_dir.is_dir():
        return []
    found = [p for p in runs_dir.iterdir() if p.name not in SHARED and (p / "lock.json").is_file()]
    return sorted(found, key=lambda path: path.name)


def find_run(ref: str, runs_dir: Path) -> Path:
    """The run named by ``latest``, an id, a unique part of one, or a folder. Raises UsageError with a suggestion."""
    names = [path.name for path in list_runs(runs_dir)]
    if ref == "latest":
        link = runs_dir / "latest"
        if link.is_dir():
            return link.resolve()
        if names:
            return runs_dir / names[-1]
        raise UsageError("there is no run yet", where=str(runs_dir), hint="start one: lightningrun RECIPE")
    if ref in names:
        return runs_dir / ref
    if os.sep in ref and (Path(ref) / "lock.json").is_file():
        return Path(ref).resolve()
    matching = [name for name in names if name.startswith(ref)] or [name for name in names if ref in name]
    if len(matching) == 1:
        return runs_dir / matching[0]
    if matching:
        raise UsageError(
            f"{ref!r} matches {len(matching)} runs: {', '.join(matching[-5:])}", hint="give more of the id"
        )
    close = difflib.get_close_matches(ref, ["latest", *names], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "see `lightningrun runs`"
    raise UsageError(f"no run {ref!r}", where=str(runs_dir), hint=hint)
