"""Rollouts per second and CPU per rollout, beside a bare loop of OpenAI SDK calls on the same endpoint, in one run.

    python bench/rollouts.py [--n 1000] [--repeats 3] [--peer-python VENV/bin/python]

Contestants take turns, so that a busy machine hits all of them; medians are shown. calls/s is taken by the endpoint
(first call to last, start-up left out); CPU is that of the whole process tree, start-up and imports included. With
``--peer-python`` (a venv with agentlightning 0.3.0 and the dependencies of December 2025) the peer is measured too.
Exit 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
TARGETS = [
    ("ours, 1 slot", "calls/s", 0.6, "at least"),
    ("ours, 8 slots", "calls/s", 1.2, "at least"),
    ("ours, 1 slot", "CPU", 2.0, "at most"),
    ("ours, 8 slots", "CPU", 2.0, "at most"),
]


@dataclass
class Series:
    """Measurements of one contestant, one element for each repeat."""

    label: str
    command: list[str]
    rates: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median({"calls/s": self.rates, "CPU": self.cpu_s, "MiB": self.peak_mib}[what])


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


def call(base: str, path: str, data: bytes | None = None) -> dict[str, float]:
    with urllib.request.urlopen(urllib.request.Request(base + path, data=data)) as reply:
        return json.load(reply)  # type: ignore[no-any-return]


def measure(series: Series, base: str, n: int) -> None:
    call(base, "/reset", b"{}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*series.command, "--base", f"{base}/v1", "--n", str(n)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        memory = PeakMemory(process.pid)
        _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{series.label} failed:\n{errors[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stats = call(base, "/stats")
    if stats["calls"] != n:
        raise SystemExit(f"{series.label}: the endpoint saw {stats['calls']} calls instead of {n}")
    series.rates.append((n - 1) / (stats["last"] - stats["first"]))
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    series.cpu_s.append(cpu_s * 1000 / n)
    series.peak_mib.append(memory.end())


def report(contestants: list[Series]) -> bool:
    """Print the table and the verdicts; True if every target is met."""
    raw = contestants[0]
    print(f"\n{'':<16}{'calls/s':>10}{'x raw':>8}{'CPU-s/1000':>12}{'x raw':>8}{'peak MiB':>10}")
    for series in contestants:
        rate, cpu = series.median("calls/s"), series.median("CPU")
        print(
            f"{series.label:<16}{rate:>10.0f}{rate / raw.median('calls/s'):>8.2f}"
            f"{cpu:>12.2f}{cpu / raw.median('CPU'):>8.2f}{series.median('MiB'):>10.0f}"
        )
    print()
    met = True
    by_label = {series.label: series for series in contestants}
    for label, what, bound, sense in TARGETS:
        ratio = by_label[label].median(what) / raw.median(what)
        good = ratio >= bound if sense == "at least" else ratio <= bound
        met &= good
        print(f"{'pass' if good else 'FAIL'}  {label}: {what} {sense} {bound:g}x raw, is {ratio:.2f}x")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--peer-python", help="python of a venv with agentlightning 0.3.0")
    chosen = parser.parse_args()
    run = [sys.executable, str(HERE / "contestants.py")]
    contestants = [
        Series("raw", [*run, "raw"]),
        Series("ours, 1 slot", [*run, "ours", "--slots", "1"]),
        Series("ours, 8 slots", [*run, "ours", "--slots", "8"]),
    ]
    if chosen.peer_python:
        peer = [chosen.peer_python, str(HERE / "contestants.py"), "peer"]
        contestants += [Series(f"peer, {slots} slots", [*peer, "--slots", str(slots)]) for slots in (1, 8)]
    command = [sys.executable, str(HERE / "endpoint.py"), "--latency-ms", str(chosen.latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as endpoint:
        assert endpoint.stdout is not None
        base = f"http://127.0.0.1:{int(endpoint.stdout.readline())}"
        try:
            for number in range(chosen.repeats):
                for series in contestants:
                    measure(series, base, chosen.n)
                    print(f"{number + 1}/{chosen.repeats} {series.label}: {series.rates[-1]:.0f} calls/s", flush=True)
        finally:
            endpoint.kill()
    raise SystemExit(0 if report(contestants) else 1)


if __name__ == "__main__":
    main()
