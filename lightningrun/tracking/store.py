"""Where the mirror is: the tracking URI, its environment, its locks, and the link into its pages. Imports no mlflow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightningrun.errors import Locked

if TYPE_CHECKING:
    from lightningrun.recipe.model import TrackingConfig

SQLITE = "sqlite:///"
_DEFAULTS = {
    # MLflow's own defaults would block one call for four minutes when the server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def default_uri(runs_dir: Path, tracking: TrackingConfig | None, environ: Mapping[str, str]) -> str:
    """The tracking URI of a run: the environment's, else the recipe's, else a SQLite file in the runs folder."""
    named = environ.get("MLFLOW_TRACKING_URI") or (tracking.uri if tracking is not None else None)
    return named or f"{SQLITE}{runs_dir.absolute() / 'mlflow.db'}"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a process that talks to MLflow: short timeouts and no telemetry, unless the user chose."""
    return {**_DEFAULTS, **environ}


def public_uri(uri: str) -> str:
    """``uri`` without user and password, fit for files and screens."""
    return re.sub(r"(?<=://)[^/@]+@", "", uri)


def page(experiment_id: str) -> str:
    """The page of MLflow's site that compares an experiment's runs in charts."""
    return f"/#/experiments/{experiment_id}/runs?compareRunsMode=CHART"


def deep_link(uri: str, experiment_id: str) -> str:
    """A link that opens the comparison, or the empty string for a store that no server shows yet."""
    if not experiment_id or not uri.startswith(("http://", "https://")):
        return ""
    return public_uri(uri).rstrip("/") + page(experiment_id)


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, else None."""
    return Path(uri[len(SQLITE) :]).absolute() if uri.startswith(SQLITE) else None


@contextlib.contextmanager
def preparing(uri: str) -> Iterator[None]:
    """Hold while a store is opened first: processes that migrate one new SQLite file together crash.

    A SQLite store is put in WAL mode, so that a reader (the UI) never blocks the mirror.
    """
    file = sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file.with_name(file.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.closing(sqlite3.connect(file, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        yield
    finally:
        os.close(handle)


class MirrorLock:
    """One exporter at a time for a run; the file holds its process id. Released by the kernel however it ends."""

    def __init__(self, run_dir: Path, *, wait: bool) -> None:
        path = run_dir / ".mirror.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(self._fd)
            raise Locked(
                "another process is mirroring this run", where=str(run_dir), hint="wait for it to finish"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._fd)
