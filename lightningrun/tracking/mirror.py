"""The runner's side of the mirror: start the exporter, nudge it, wait a bounded time, never fail."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightningrun.files import read_journal, write_atomic
from lightningrun.tracking.store import environment

STATE = "mirror.json"
LOG = "mirror.log"
_NUDGE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class MirrorState:
    """How far a run's journal is mirrored. ``emitted`` and ``stored`` count events.

    Two cursors: the story (runs, metrics, prompts, status) goes ahead, up to ``told`` events and byte ``offset``;
    traces are slower to store and follow, up to event ``traced``. ``closed``: the story is stored to its end.
    ``complete``: the traces too. ``note`` is one line for a person when something is missing.
    """

    uri: str = ""
    experiment: str = ""
    experiment_id: str = ""
    run_id: str = ""
    deep_link: str = ""
    emitted: int = 0
    stored: int = 0
    told: int = 0
    offset: int = 0
    traced: int = 0
    traces: int = 0
    closed: bool = False
    complete: bool = False
    error: str = ""
    note: str = ""

    def save(self, run_dir: Path) -> None:
        write_atomic(run_dir / STATE, json.dumps(asdict(self), indent=1))


def read_state(run_dir: Path) -> MirrorState:
    """What ``mirror.json`` says; an empty state if there is none or it does not parse."""
    try:
        record = json.loads((run_dir / STATE).read_text("utf-8"))
        return MirrorState(**{name: record[name] for name in MirrorState.__dataclass_fields__ if name in record})
    except (OSError, ValueError, TypeError):
        return MirrorState()


def current_state(run_dir: Path) -> MirrorState:
    """The state with ``emitted`` as of now and a note that says what is missing and what to do."""
    state = read_state(run_dir)
    emitted = state.told
    for _, event in read_journal(run_dir / "journal.jsonl", state.offset):
        emitted = event["seq"] + 1
    state = replace(state, emitted=emitted)
    if state.complete and state.stored == emitted:
        return replace(state, note="")
    if not (run_dir / LOG).exists():
        return replace(state, note="MLflow: off in this run")
    run = run_dir.name if run_dir.parent == Path("runs").absolute() else str(run_dir)
    todo = f"complete it with: lightningrun sync {run}"
    if state.error:
        return replace(state, note=f"MLflow: {state.stored} of {emitted} events stored ({state.error}); {todo}")
    rest = "traces of the rest follow" if state.closed else "the rest follows"
    sure = f"to make sure: lightningrun sync {run}"
    return replace(state, note=f"MLflow: {state.stored} of {emitted} events stored, {rest} in the background; {sure}")


class Mirror:
    """A running exporter. Methods never raise and never block, ``finish`` apart, which is bounded."""

    def __init__(self, run_dir: Path, process: subprocess.Popen[bytes] | None, problem: str = "") -> None:
        self.run_dir = run_dir
        self._process = process
        self._problem = problem
        self._began = time.monotonic()
        self._nudged = 0.0

    @classmethod
    def start(
        cls, run_dir: Path, *, uri: str, experiment: str, runs_dir: Path, environ: Mapping[str, str] = os.environ
    ) -> Mirror:
        """Start the exporter as a process of its own session, so that Ctrl-C and the end of the runner spare it."""
        command = [sys.executable, "-m", "lightningrun.tracking.exporter", str(run_dir)]
        command += ["--experiment", experiment, "--runs-dir", str(runs_dir.absolute())]
        # The URI may hold a password: it travels in the environment, where other users cannot list it.
        env = environment({**environ, "MLFLOW_TRACKING_URI": uri})
        try:
            with open(run_dir / LOG, "ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=env,
                    start_new_session=True,
                    bufsize=0,
                )
            assert process.stdin is not None
            os.set_blocking(process.stdin.fileno(), False)
        except OSError as error:
            return cls(run_dir, None, f"the exporter could not be started: {error}")
        return cls(run_dir, process)

    def nudge(self, event: object = None) -> None:
        """Say that there is something new; cheap enough to be an observer of the journal."""
        now = time.monotonic()
        if self._process is not None and now - self._nudged >= _NUDGE_EVERY_S:
            self._nudged = now
            self._send(b".")

    def finish(self, timeout_s: float = 4.0) -> MirrorState:
        """Say that the journal is complete, wait until the story is stored, and tell how far the mirror is.

        Traces may follow in the background. A run of a second is not kept waiting for ``timeout_s`` either.
        """
        deadline = time.monotonic() + min(timeout_s, 2.0 + 0.1 * (time.monotonic() - self._began))
        if self._process is None:
            return replace(current_state(self.run_dir), error=self._problem, note=f"MLflow: {self._problem}")
        self._send(b"q")
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        while self._process.poll() is None and time.monotonic() < deadline and not read_state(self.run_dir).closed:
            time.sleep(0.03)
        state = current_state(self.run_dir)
        code = self._process.poll()
        if code and not state.error:
            problem = f"the exporter ended with {code}, see {LOG}"
            todo = f"lightningrun sync {self.run_dir.name}"
            return replace(state, error=problem, note=f"MLflow: {problem}; complete it with: {todo}")
        if code is None:
            _forget(self._process)
        return state

    def _send(self, byte: bytes) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._process.stdin.write(byte)  # type: ignore[union-attr]


def _forget(process: Any) -> None:
    """Let go of a child that outlives us on purpose, without the warning that Popen gives when it is collected."""
    process.returncode = 0
