"""``ui`` as a process: it answers, its link leads to the experiment, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lightningrun.errors import UsageError
from lightningrun.tracking.sync import sync
from lightningrun.tracking.ui import free_port, serve
from tests.tracking.conftest import wait_until
from tests.tracking.fake_run import whole_run

SERVE = "import sys; from lightningrun.tracking.ui import serve; sys.exit(serve(sys.argv[1], port=int(sys.argv[2])))"


def test_ui_answers_on_the_next_free_port_and_ends_with_all_its_children(runs_dir: Path) -> None:
    state = sync(whole_run(runs_dir), environ={})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", SERVE, str(runs_dir), str(port)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert f"port {port} is taken" in process.stdout.readline()
        line = process.stdout.readline()
    link = re.search(r"http://127\.0\.0\.1:(\d+)/#/experiments/(\d+)/runs\?compareRunsMode=CHART", line)
    assert link is not None, line
    served, experiment = int(link[1]), link[2]
    assert served != port and experiment == state.experiment_id
    url = f"http://127.0.0.1:{served}/api/2.0/mlflow/experiments/get?experiment_id={experiment}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert b"sql_agent" in answer.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", served)) != 0

    wait_until(gone, 10)


def test_with_a_server_of_the_users_own_the_link_into_it_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    assert serve(tmp_path, environ={"MLFLOW_TRACKING_URI": "https://me:secret@mlflow.example"}, say=said.append) == 0
    assert said == ["MLflow: https://mlflow.example"]


def test_no_free_port_is_a_usage_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UsageError, match="no free port"):
            free_port("127.0.0.1", taken.getsockname()[1], tries=1)
