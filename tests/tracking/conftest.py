"""A migrated SQLite store, made once and copied, since making one takes seconds; and a real MLflow server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightningrun.tracking.mirror import read_state
from lightningrun.tracking.store import environment

MAKE_STORE = "import sys; from mlflow.tracking import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without the user's tracking server and leaves the environment as it was."""
    before = dict(os.environ)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    subprocess.run([sys.executable, "-c", MAKE_STORE, f"sqlite:///{file}"], check=True, env=environment(os.environ))
    return file


@pytest.fixture
def runs_dir(tmp_path: Path, empty_store: Path) -> Path:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    return runs


def uri_of(runs_dir: Path) -> str:
    return f"sqlite:///{runs_dir}/mlflow.db"


def query(runs_dir: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(runs_dir / "mlflow.db", timeout=20)) as connection:
        return connection.execute(sql).fetchall()


def counts(runs_dir: Path) -> dict[str, int]:
    """How many of everything the store holds: what a duplicate would change."""
    tables = ("runs", "metrics", "params", "trace_info", "spans", "assessments", "model_versions", "inputs", "datasets")
    return {table: query(runs_dir, f"SELECT count(*) FROM {table}")[0][0] for table in tables}


def wait_until(true: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def exporter_pid(run: Path) -> int:
    return int((run / ".mirror.lock").read_text() or 0)


def wait_mirrored(run: Path) -> None:
    wait_until(lambda: read_state(run).complete)


class Server:
    """``mlflow server`` on a store, which can be killed and started again on the same port."""

    def __init__(self, runs_dir: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.runs_dir = runs_dir
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", uri_of(self.runs_dir)]
        command += ["--artifacts-destination", str(self.runs_dir / "served")]
        env = environment({**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
            return False

        wait_until(answers)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def server(runs_dir: Path) -> Iterator[Server]:
    running = Server(runs_dir)
    yield running
    running.kill()
