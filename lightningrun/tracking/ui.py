"""``lightningrun ui``: MLflow's own site over the runs folder's store, on loopback, with a link that shows charts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightningrun.errors import StageFailed, UsageError
from lightningrun.tracking.mirror import read_state
from lightningrun.tracking.store import deep_link, default_uri, environment, page, preparing, public_uri

START_TIMEOUT_S = 90.0
"""A fresh store is migrated first, which takes a busy machine a quarter of a minute."""


def serve(
    runs_dir: Path | str = "runs",
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], Any] = print,
) -> int:
    """Serve until Ctrl-C or SIGTERM, then end every process of the server. Returns an exit code.

    With a tracking server of the user's own there is nothing to start: the link into it is said. Raises UsageError
    if no port is free, StageFailed if MLflow ends.
    """
    runs_dir = Path(runs_dir).absolute()
    uri = default_uri(runs_dir, None, environ)
    experiment_id = _latest_experiment(runs_dir, uri)
    if uri.startswith(("http://", "https://")):
        say(f"MLflow: {deep_link(uri, experiment_id) or public_uri(uri)}")
        return 0
    free = free_port(host, port)
    if free != port:
        say(f"port {port} is taken, using {free}")
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = None
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with preparing(uri):
            process = _start(uri, host, free, runs_dir, environ, log)
            _wait_until_it_answers(process, f"http://{host}:{free}/health", log)
        say(f"MLflow: http://{host}:{free}{page(experiment_id) if experiment_id else ''}\n(Ctrl-C ends it)")
        code = process.wait()
        raise StageFailed(f"MLflow ended by itself with {code}: {_tail(log)}")
    except KeyboardInterrupt:
        return 0
    finally:
        if process is not None:
            _end(process)
        signal.signal(signal.SIGTERM, previous)


def free_port(host: str, wanted: int, tries: int = 50) -> int:
    """The first port from ``wanted`` on that nobody listens on. Raises UsageError if there is none."""
    for port in range(wanted, min(wanted + tries, 65536)):
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except PermissionError as error:
                raise UsageError(
                    f"port {port} is not ours to use: {error.strerror}", hint="name one above 1023"
                ) from None
            except OSError:
                continue
    raise UsageError(f"no free port from {wanted} to {wanted + tries - 1}", hint="name another with --port")


def _start(
    uri: str, host: str, port: int, runs_dir: Path, environ: Mapping[str, str], log: Any
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--default-artifact-root", (runs_dir / "artifacts").as_uri()]
    env = environment({**environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    env.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Any) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StageFailed(f"MLflow's server did not start: {_tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    raise StageFailed(f"MLflow's server did not answer within {START_TIMEOUT_S:.0f} s: {_tail(log)}")


def _end(process: subprocess.Popen[bytes], grace_s: float = 5.0) -> None:
    """End the server and all that it started: they share a process group of their own."""
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _latest_experiment(runs_dir: Path, uri: str) -> str:
    """The experiment of the newest run that is mirrored in this store."""
    for folder in sorted(runs_dir.glob("*/mirror.json"), reverse=True):
        state = read_state(folder.parent)
        if state.experiment_id and state.uri == public_uri(uri):
            return state.experiment_id
    return ""


def _tail(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-3:])
