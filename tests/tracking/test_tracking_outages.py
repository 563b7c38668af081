"""The tracking server down, deaf or killed: the run loses at most five seconds, and ``sync`` completes it later."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from lightningrun.tracking.mirror import Mirror, read_state
from lightningrun.tracking.summary import holder_alive
from lightningrun.tracking.sync import MirrorFailed, sync
from tests.tracking.conftest import Server, counts, exporter_pid, query, wait_until
from tests.tracking.fake_run import BEST_PROMPT, SEED_PROMPT, FakeRun, whole_run

ALLOWED_S = 5.0


def start(run: Path, uri: str) -> Mirror:
    return Mirror.start(run, uri=uri, experiment="sql_agent", runs_dir=run.parent, environ=os.environ)


def test_a_closed_port_costs_little_and_sync_to_a_live_server_completes(runs_dir: Path, server: Server) -> None:
    run = whole_run(runs_dir)
    mirror = start(run, "http://127.0.0.1:9")
    wait_until(lambda: read_state(run).error)
    began = time.monotonic()
    state = mirror.finish(4)
    assert time.monotonic() - began < ALLOWED_S
    assert state.stored == 0 and state.emitted > 0 and not state.complete
    assert "does not answer" in state.note and f"lightningrun sync {run}" in state.note
    wait_until(lambda: not holder_alive(run / ".mirror.lock"))

    state = sync(run, server.uri, environ={})
    assert state.complete and state.stored == state.emitted and not state.note
    assert state.deep_link.startswith(f"{server.uri}/#/experiments/")
    once = counts(runs_dir)
    sync(run, server.uri, environ={})
    assert counts(runs_dir) == once and once["trace_info"] > 20
    (run / "mirror.json").unlink()
    sync(run, server.uri, environ={})
    assert counts(runs_dir) == once


def test_a_server_that_never_answers_costs_little(runs_dir: Path) -> None:
    run = whole_run(runs_dir)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        mirror = start(run, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        wait_until(lambda: (run / ".mirror.lock").exists() and exporter_pid(run))
        began = time.monotonic()
        state = mirror.finish(4)
        assert time.monotonic() - began < ALLOWED_S
        assert not state.complete
        os.kill(exporter_pid(run), signal.SIGKILL)


def test_a_server_killed_during_the_run(runs_dir: Path, server: Server) -> None:
    fake = FakeRun(runs_dir)
    fake.start()
    mirror = start(fake.path, server.uri)
    fake.journal.observe(mirror.nudge)
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    wait_until(lambda: read_state(fake.path).stored >= 13)
    server.kill()
    fake.apo()
    fake.evaluate("final", 3, BEST_PROMPT, 0.9)
    fake.end()
    fake.close()
    wait_until(lambda: read_state(fake.path).error)
    began = time.monotonic()
    state = mirror.finish(4)
    assert time.monotonic() - began < ALLOWED_S
    assert 0 < state.stored < state.emitted
    wait_until(lambda: not holder_alive(fake.path / ".mirror.lock"))

    try:
        sync(fake.path, server.uri, environ={})
        raise AssertionError("nobody was there to sync with")
    except MirrorFailed as error:
        assert "does not answer" in str(error)
    server.start()
    state = sync(fake.path, server.uri, environ={})
    assert state.complete and state.stored == state.emitted
    names = query(runs_dir, "SELECT name, status FROM runs ORDER BY name")
    assert names == [
        ("1-baseline", "FINISHED"),
        ("2-apo", "FINISHED"),
        ("3-final", "FINISHED"),
        ("sql_agent-abc123", "FINISHED"),
    ]


@pytest.mark.slow
def test_a_server_that_comes_back_during_the_run_gets_everything(runs_dir: Path, server: Server) -> None:
    server.kill()
    fake = FakeRun(runs_dir)
    fake.start()
    mirror = start(fake.path, server.uri)
    wait_until(lambda: read_state(fake.path).error)
    server.start()
    fake.evaluate("baseline", 1, SEED_PROMPT, 0.3)
    wait_until(lambda: read_state(fake.path).stored > 12)
    fake.end()
    fake.close()
    mirror.finish(4)
    wait_until(lambda: read_state(fake.path).complete)
    assert read_state(fake.path).error == ""
