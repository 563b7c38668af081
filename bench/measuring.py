"""Measuring a contestant from outside: the endpoint counts its calls, the kernel its CPU time, a thread its memory."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Measurement:
    """One run of a contestant. ``span_s`` is from its first call to its last, ``wall_s`` from start to exit."""

    label: str
    calls: int
    span_s: float
    wall_s: float
    cpu_s: float
    peak_mib: float

    @property
    def rate(self) -> float:
        return (self.calls - 1) / self.span_s


class PeakMemory(threading.Thread):
    """The peak of the summed PSS of a process tree, sampled (it costs the tree nothing)."""

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                tree = [self._root, *self._root.children(recursive=True)]
                self.peak_mib = max(self.peak_mib, sum(_pss(process) for process in tree) / 2**20)
            except psutil.Error:
                continue

    def end(self) -> float:
        self._over.set()
        self.join()
        return self.peak_mib


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:
        return 0.0


@contextlib.contextmanager
def served(script: Path, *options: str) -> Iterator[str]:
    """A server in a process of its own; yields the line by which it tells that it is up, and where."""
    command = [sys.executable, str(script), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline()
        finally:
            process.kill()


@contextlib.contextmanager
def endpoint(latency_ms: float) -> Iterator[str]:
    """The endpoint in a process of its own; yields its origin."""
    with served(HERE / "endpoint.py", "--latency-ms", str(latency_ms)) as port:
        yield f"http://127.0.0.1:{int(port)}"


def measure(label: str, command: list[str], base: str) -> Measurement:
    """Run ``command --base ...`` to its end, in an empty folder that takes whatever it writes."""
    _call(base, "/reset", b"{}")
    before, began = _cpu_s(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-") as folder:
        errors = Path(folder, "stderr.txt")
        with (
            open(errors, "w") as log,
            subprocess.Popen(
                [*command, "--base", f"{base}/v1"], stdout=subprocess.DEVNULL, stderr=log, cwd=folder
            ) as process,
        ):
            memory = PeakMemory(process.pid)
            process.wait()
            wall_s = time.perf_counter() - began
        peak_mib = memory.end()
        if process.returncode:
            raise SystemExit(f"{label} failed:\n{errors.read_text(errors='replace')[-3000:]}")
    stats = _call(base, "/stats")
    return Measurement(label, int(stats["calls"]), stats["last"] - stats["first"], wall_s, _cpu_s() - before, peak_mib)


def save(name: str, measurements: list[Measurement]) -> None:
    """Keep the single runs, beside what was printed of them, in ``bench/results``."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps([asdict(measurement) for measurement in measurements], indent=1) + "\n")
    print(f"\nsingle runs: {path.relative_to(HERE.parent)}")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _call(base: str, path: str, data: bytes | None = None) -> dict[str, float]:
    with urllib.request.urlopen(urllib.request.Request(base + path, data=data)) as reply:
        return json.load(reply)  # type: ignore[no-any-return]
