"""The exporter: a process that follows a run's journal and mirrors it into MLflow.

    python -m lightningrun.tracking.exporter RUN_DIR --experiment NAME --runs-dir DIR      (URI: MLFLOW_TRACKING_URI)

Standard input is a pipe held by the runner: a byte says that there is something new, its end that there is nothing
more to come. The exporter drains the journal, marks a run without an end as KILLED, and exits. It runs at low
priority, since it shares the machine with the rollouts.

Nothing is stored twice. The cursor in ``mirror.json`` advances only after a batch is stored, and a batch that is
stored again (after a kill, or a lost answer) finds its runs by tags, its traces by ids made from the journal, its
metrics by their time, and its prompts by digest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.files import read_journal
from lightningrun.tracking.mirror import MirrorState, read_state
from lightningrun.tracking.store import MirrorLock, deep_link, environment, public_uri
from lightningrun.tracking.summary import holder_alive

if TYPE_CHECKING:
    from lightningrun.tracking.translate import Translator

BATCH = 200
"""Events between two advances of the cursor."""
_IDLE_S = 1.0
_COALESCE_S = 0.2
_RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0)


class Exporter:
    """Mirrors one run. ``pump`` stores what the journal holds; it raises whatever MLflow raises."""

    def __init__(self, run_dir: Path, uri: str, experiment: str, runs_dir: Path) -> None:
        self.run_dir = run_dir
        self.uri = uri
        self.experiment = experiment
        self.runs_dir = runs_dir
        self.state = read_state(run_dir)
        self._translator: Translator | None = None

    def pump(self) -> bool:
        """Tell what the journal holds beyond the cursor, then store some traces. True if more of them wait."""
        translator = self._translator or self._connect()
        told = 0
        for offset, event in read_journal(self.run_dir / "journal.jsonl", self.state.offset):
            if event["seq"] >= self.state.told + told:
                translator.hear(event, offset)
                told += 1
            if told == BATCH:
                self._told(translator, offset, event)
                told = 0
        if told:
            self._told(translator, offset, event)
        stored = translator.traces.store()
        if stored:
            self._save(traces=self.state.traces + stored)
        return len(translator.traces) > 0

    def close(self, *, dead: bool) -> None:
        """Store what comes after the last event: files, and the end of a run whose runner is ``dead``."""
        translator = self._translator or self._connect()
        translator.close(dead=dead)
        self._save(closed=True)

    def complete(self) -> None:
        """Note that all is stored, and what MLflow refused."""
        refused = self._translator.refused if self._translator is not None else []
        self._save(complete=True, error="; ".join(refused[:3]))

    def failed(self, error: BaseException) -> None:
        """Note a failure, and forget the connection: the next ``pump`` starts again from the cursor."""
        self._translator = None
        self._save(error=one_line(error), complete=False)

    def _connect(self) -> Translator:
        from lightningrun.tracking.translate import Translator

        same_place = self.state.uri == public_uri(self.uri) and self.state.experiment == self.experiment
        translator = Translator(self.run_dir, self.uri, self.experiment, self.runs_dir)
        if not same_place or translator.run_id is None:
            self.state = MirrorState(uri=public_uri(self.uri), experiment=self.experiment)
        translator.live, translator.traces.stored_before = False, self.state.traced
        for offset, event in read_journal(self.run_dir / "journal.jsonl"):
            if event["seq"] >= self.state.told:
                break
            translator.hear(event, offset)
        translator.live = True
        self._translator = translator
        self._save(error="")
        return translator

    def _told(self, translator: Translator, offset: int, event: Mapping[str, Any]) -> None:
        translator.flush()
        self._save(offset=offset, told=event["seq"] + 1, error="", closed=False, complete=False)

    def _save(self, **changes: Any) -> None:
        state = replace(self.state, uri=public_uri(self.uri), experiment=self.experiment, **changes)
        if self._translator is not None:
            at = self._translator
            link = deep_link(self.uri, at.experiment_id)
            state = replace(state, experiment_id=at.experiment_id, run_id=at.run_id or "", deep_link=link)
            state = replace(state, stored=state.told - len(at.traces), traced=at.traces.oldest(state.told))
        self.state = replace(state, emitted=max(state.emitted, state.told))
        self.state.save(self.run_dir)


def one_line(error: BaseException) -> str:
    """The gist of an exception, without MLflow's pages of advice and without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "Max retries exceeded" in text or "Connection refused" in text:
        text = "the tracking server does not answer"
    return public_uri(text)[:200]


def follow(exporter: Exporter, pipe: int) -> int:
    """Mirror until the pipe ends and the journal is drained. Returns an exit code."""
    parent = os.getppid()
    failures = 0
    ended = closed = False
    while True:
        try:
            more = exporter.pump()
            if ended and not closed:
                # A runner that resumed the run meanwhile has an exporter of its own, which waits for our lock.
                exporter.close(dead=not holder_alive(exporter.run_dir / ".lock"))
                closed = True
            if ended and not more:
                exporter.complete()
                return 0
            failures = 0
            ended = ended or _wait(pipe, 0.0 if more else _IDLE_S)
        except Exception as error:
            exporter.failed(error)
            print(f"{time.strftime('%H:%M:%S')} {one_line(error)}", file=sys.stderr, flush=True)
            if ended:
                return 1
            ended = _wait(pipe, _RETRY_S[min(failures, len(_RETRY_S) - 1)], eager=False)
            failures += 1
        ended = ended or os.getppid() != parent


def _wait(pipe: int, timeout_s: float, *, eager: bool = True) -> bool:
    """Wait for news or the timeout; True once the pipe has ended. Not ``eager``: only its end cuts the wait short."""
    deadline = time.monotonic() + timeout_s
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(pipe, 4096)
        if not data or b"q" in data:
            return True
        if eager:
            time.sleep(min(_COALESCE_S, timeout_s))
            return False
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description="mirror a run of lightningrun into MLflow")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--runs-dir", type=Path, required=True)
    options = parser.parse_args()
    os.environ.update(environment(os.environ))
    with contextlib.suppress(OSError):
        os.nice(10)
    lock = MirrorLock(options.run_dir, wait=True)
    try:
        uri = os.environ["MLFLOW_TRACKING_URI"]
        exporter = Exporter(options.run_dir, uri, options.experiment, options.runs_dir)
        return follow(exporter, sys.stdin.fileno())
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
