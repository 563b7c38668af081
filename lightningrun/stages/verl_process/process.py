"""One of verl's trainers as a process of its own, below a guard, with all it writes in a folder of this run's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightningrun.agents.proctree import descendants
from lightningrun.errors import StageFailed
from lightningrun.stages.verl_process.configuration import DEVICE, Tree

_LONGEST_FOLDER = 40
"""Characters: Ray puts sockets some 60 characters deeper, and a socket's path may have 107."""
_END_S = 30.0
_ERROR = re.compile(r"([\w.]*(?:Error|Exception)\b[^:]{0,40}: .+)")
"""The last line of a traceback."""
_FULL = re.compile(
    r"No space left on device|File too large|PytorchStreamWriter failed|inline_container.*unexpected pos"
)
"""What a full disk is called by Python, and by torch when it saves."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_WORKER = re.compile(r"^(\([\w. ]+ pid=\d+\) |\[rank\d+\]: )")
_QUIET = {
    "HYDRA_FULL_ERROR": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VERL_LOGGING_LEVEL": "WARNING",
    "VERL_USE_EXTERNAL_MODULES": "lightningrun.stages.verl_grpo.cluster.plugin",
}


class VerlProcess:
    """``folder`` (short, private, gone at the end) is where it runs; it holds configuration, data, verl's metrics."""

    def __init__(self, log: Path) -> None:
        root = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="lr-", dir=root if len(root) < _LONGEST_FOLDER - 12 else "/tmp"))
        self.metrics = self.folder / "metrics.jsonl"
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self._began_at = 0

    def configure(self, name: str, tree: Tree) -> None:
        """Write ``tree`` as what goes over verl's own configuration ``name``."""
        hydra = {"searchpath": ["pkg://verl.trainer.config"], "run": {"dir": str(self.folder)}, "output_subdir": None}
        whole = {"defaults": [name, "_self_"], "hydra": hydra, **tree}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), "utf-8")

    def launch(self, program: Sequence[str], device: str, hidden: Iterable[str], own: Mapping[str, str]) -> None:
        """Start the guard and, below it, ``program``, what Python is to run, on what ``configure`` wrote.

        ``hidden``: names of environment variables that it shall not have; ``own``: those that it shall, whatever the
        environment says.
        """
        command = [sys.executable, "-m", "lightningrun.stages.verl_process.guard", str(self.folder)]
        command += [sys.executable, *program, "--config-path", str(self.folder), "--config-name", "run"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._began_at = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self._environment(device, set(hidden)), **own},
                start_new_session=True,
            )

    def _environment(self, device: str, hidden: set[str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        home = [path for path in (os.getcwd(), kept.get("PYTHONPATH", "")) if path]
        few: dict[str, str] = {}
        if device == "cpu":  # threads of several processes on few cores cost far more than they give
            few = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            kept.pop("CUDA_VISIBLE_DEVICES", None)  # what is logical there would be counted against it
        return {
            **_QUIET,
            **few,
            **kept,
            "PYTHONPATH": os.pathsep.join(home),
            "TMPDIR": str(self.folder),
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
            "VERL_FILE_LOGGER_PATH": str(self.metrics),
            "VERL_USE_EXTERNAL_MODULES": _QUIET["VERL_USE_EXTERNAL_MODULES"],
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

    @property
    def said(self) -> int:
        """Bytes that it has logged: more of them are a sign of life."""
        return self.log.stat().st_size if self.log.is_file() else 0

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
        with self.log.open("rb") as file:
            file.seek(self._began_at)
            said = file.read().decode("utf-8", "replace").splitlines()
        plain = [_WORKER.sub("", _COLOUR.sub("", line)).strip() for line in said]
        errors = [found[1] for line in plain if (found := _ERROR.match(line)) and "RayTaskError" not in line]
        last = (errors or [line for line in plain if line] or ["it said nothing"])[-1]
        status = self.status or 0
        how = f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"
        full = any(_FULL.search(line) for line in plain)
        return StageFailed(
            f"verl's trainer {how}{' as it could not write, the disk is full' if full else ''}: {last[:400]}",
            hint=f"{'make room; ' if full else ''}all that it said is in {self.log}; `resume` goes on from its last "
            "checkpoint",
        )

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


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """verl's logger writes null for what is no number."""
    return {
        name: math.nan if value is None else float(value)
        for name, value in data.items()
        if value is None or isinstance(value, (int, float))
    }


def _cpu_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
