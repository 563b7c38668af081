"""verl's trainer as a process of its own, below a guard, with all it writes in a folder of this run's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightningrun.agents.proctree import descendants
from lightningrun.errors import StageFailed
from lightningrun.stages.verl_grpo.cluster.plugin import DEVICE
from lightningrun.stages.verl_grpo.cluster.settings import Tree
from lightningrun.types import Task

_LONGEST_FOLDER = 40
"""Characters: Ray puts sockets some 60 characters deeper, and a socket's path may have 107."""
_END_S = 30.0
_ERROR = re.compile(r"([\w.]*(?:Error|Exception)\b[^:]{0,40}: .+)")
"""The last line of a traceback."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_WORKER = re.compile(r"^\([\w. ]+ pid=\d+\) ")
_NOT_OURS = frozenset({"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR"})
"""Of another cluster."""


class Trainer:
    """``folder`` (short, private, gone at the end) holds Ray's session, the socket, the data and verl's metrics."""

    def __init__(self, log: Path) -> None:
        root = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="lr-", dir=root if len(root) < _LONGEST_FOLDER - 12 else "/tmp"))
        self.socket = self.folder / "s"
        self.metrics = self.folder / "metrics.jsonl"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self._began_at = 0

    def write(self, tree: Tree, rows: Mapping[str, Iterable[Task]], checkpoints: Path) -> None:
        """verl's configuration and data. ``rows``: train and eval, each in the order in which verl shall take them."""
        for split, tasks in rows.items():
            lines = [_row(split, index, task) for index, task in enumerate(tasks)]
            (self.folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        loop = {
            "name": "lightningrun",
            "_target_": "lightningrun.stages.verl_grpo.cluster.agent_loop.GatewayAgentLoop",
            "socket": str(self.socket),
        }
        (self.folder / "loops.yaml").write_text(yaml.safe_dump([loop]), "utf-8")
        places: dict[str, Any] = {
            "data.train_files": str(self.folder / "train.jsonl"),
            "data.val_files": str(self.folder / "eval.jsonl"),
            "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(self.folder / "loops.yaml"),
            "trainer.default_local_dir": str(checkpoints),
            "ray_kwargs.ray_init._temp_dir": str(self.folder / "ray"),
            "ray_kwargs.ray_init.address": "local",
            "ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        }
        for dotted, value in places.items():
            *path, last = dotted.split(".")
            place = tree
            for name in path:
                place = place.setdefault(name, {})
            place[last] = value
        hydra = {"searchpath": ["pkg://verl.trainer.config"], "run": {"dir": str(self.folder)}, "output_subdir": None}
        whole = {"defaults": ["ppo_trainer", "_self_"], "hydra": hydra, **tree}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), "utf-8")

    def start(self, device: str, hidden: Iterable[str]) -> None:
        """Start the guard and, below it, verl. ``hidden``: names of environment variables that it shall not have."""
        command = [sys.executable, "-m", "lightningrun.stages.verl_grpo.cluster.guard", str(self.folder)]
        command += [sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", str(self.folder)]
        command += ["--config-name", "run"]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._began_at = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(device, set(hidden)),
                start_new_session=True,
            )

    def _environment(self, device: str, hidden: set[str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in hidden | _NOT_OURS}
        home = [path for path in (os.getcwd(), kept.get("PYTHONPATH", "")) if path]
        quiet = {
            "HYDRA_FULL_ERROR": "1",
            "RAY_DEDUP_LOGS": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "VERL_LOGGING_LEVEL": "WARNING",
        }
        patient = {
            "RAY_agent_register_timeout_ms": "600000",
            "RAY_gcs_server_request_timeout_seconds": "300",
            "RAY_health_check_timeout_ms": "120000",
            "RAY_worker_register_timeout_seconds": "600",
        }  # on few cores that others use too, a start takes minutes
        if device == "cpu":  # threads of several processes on few cores cost far more than they give
            quiet |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            kept.pop("CUDA_VISIBLE_DEVICES", None)  # Ray would count the logical GPU against it
        return {
            **quiet,
            **patient,
            **kept,
            "PYTHONPATH": os.pathsep.join(home),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "TMPDIR": str(self.folder),
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
            "VERL_FILE_LOGGER_PATH": str(self.metrics),
            "VERL_USE_EXTERNAL_MODULES": "lightningrun.stages.verl_grpo.cluster.plugin",
            DEVICE: device,
        }

    @property
    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll() if self._process else None

    @property
    def is_ready(self) -> bool:
        """Whether it is through with its start: its first act then is to open the file of metrics."""
        return self.metrics.is_file()

    def new_metrics(self) -> list[tuple[int, dict[str, float]]]:
        """What verl has logged since the last time: (step, numbers by verl's names)."""
        if not self.metrics.is_file():
            return []
        with self.metrics.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        lines = [json.loads(line) for line in whole.splitlines() if line]
        return [(int(line["step"]), _numbers(line["data"])) for line in lines]

    def cpu_s(self) -> float:
        """Processor time of the processes that live now."""
        return sum(_cpu_s(pid) for pid in descendants(self._process.pid)) if self._process else 0.0

    def failure(self) -> StageFailed:
        """Why it ended, as far as its log tells."""
        with self._log.open("rb") as file:
            file.seek(self._began_at)
            said = file.read().decode("utf-8", "replace").splitlines()
        plain = [_WORKER.sub("", _COLOUR.sub("", line)).strip() for line in said]
        errors = [found[1] for line in plain if (found := _ERROR.match(line)) and "RayTaskError" not in line]
        last = (errors or plain or ["it said nothing"])[-1]
        return StageFailed(
            f"verl's trainer ended with status {self.status}: {last[:400]}",
            hint=f"all that it said is in {self._log}; `resume` goes on from its last checkpoint",
        )

    @property
    def was_too_slow(self) -> bool:
        """Whether it ended because Ray, which allows itself 30 s for that, could not start on a busy machine."""
        return not self.is_ready and "timed out during startup" in self.failure().message

    async def end(self) -> None:
        """Kill whatever is left of it, and wait until it is gone."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            for _ in range(round(_END_S / 0.05)):
                if self._process.poll() is not None:
                    break
                await asyncio.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)


def _row(split: str, index: int, task: Task) -> str:
    """A row as verl's data set has them: nothing of it is shown to the agent, which gets the task's own fields."""
    return json.dumps(
        {
            "data_source": split,
            "prompt": [{"role": "user", "content": task.id}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"split": split, "index": index},
        }
    )


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in data.items() if isinstance(value, (int, float))}


def _cpu_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
