"""Rollouts per second and CPU per rollout, beside a bare loop of OpenAI SDK calls on the same endpoint, in one run.

    python bench/rollouts.py [--n 1000] [--repeats 3] [--peer-python VENV/bin/python]

Contestants take turns, so that a busy machine hits all of them; medians are shown. calls/s is taken by the endpoint
(first call to last, start-up left out); CPU is that of the whole process tree, start-up and imports included. With
``--peer-python`` (a venv with agentlightning 0.3.0 and bench/constraints-peer.txt) the peer is measured too.
Exit 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from measuring import HERE, Measurement, endpoint, measure, save

TARGETS = [
    ("ours, 1 slot", "calls/s", 0.6, "at least"),
    ("ours, 8 slots", "calls/s", 1.2, "at least"),
    ("ours, 1 slot", "CPU", 2.0, "at most"),
    ("ours, 8 slots", "CPU", 2.0, "at most"),
]


class Series(list[Measurement]):
    """The repeats of one contestant."""

    def median(self, what: str) -> float:
        return statistics.median(
            {"calls/s": m.rate, "CPU": m.cpu_s * 1000 / m.calls, "MiB": m.peak_mib}[what] for m in self
        )


def report(table: dict[str, Series]) -> bool:
    """Print the table and the verdicts; True if every target is met."""
    raw = table["raw"]
    print(f"\n{'':<16}{'calls/s':>10}{'x raw':>8}{'CPU-s/1000':>12}{'x raw':>8}{'peak MiB':>10}")
    for label, series in table.items():
        rate, cpu = series.median("calls/s"), series.median("CPU")
        print(
            f"{label:<16}{rate:>10.0f}{rate / raw.median('calls/s'):>8.2f}"
            f"{cpu:>12.2f}{cpu / raw.median('CPU'):>8.2f}{series.median('MiB'):>10.0f}"
        )
    print()
    met = True
    for label, what, bound, sense in TARGETS:
        ratio = table[label].median(what) / raw.median(what)
        good = ratio >= bound if sense == "at least" else ratio <= bound
        met &= good
        print(f"{'pass' if good else 'FAIL'}  {label}: {what} {sense} {bound:g}x raw, is {ratio:.2f}x")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--peer-python", type=os.path.abspath, help="python of a venv with agentlightning 0.3.0")
    chosen = parser.parse_args()
    script = [str(HERE / "contestants.py")]
    commands = {
        "raw": [sys.executable, *script, "raw"],
        "ours, 1 slot": [sys.executable, *script, "ours", "--slots", "1"],
        "ours, 8 slots": [sys.executable, *script, "ours", "--slots", "8"],
    }
    if chosen.peer_python:
        for slots in ("1", "8"):
            commands[f"peer, {slots} slots"] = [chosen.peer_python, *script, "peer", "--slots", slots]
    table = {label: Series() for label in commands}
    with endpoint(chosen.latency_ms) as base:
        for number in range(chosen.repeats):
            for label, command in commands.items():
                measured = measure(label, [*command, "--n", str(chosen.n)], base)
                if measured.calls != chosen.n:
                    raise SystemExit(f"{label}: the endpoint saw {measured.calls} calls instead of {chosen.n}")
                table[label].append(measured)
                print(f"{number + 1}/{chosen.repeats} {label}: {measured.rate:.0f} calls/s", flush=True)
    met = report(table)
    save("rollouts", [measurement for series in table.values() for measurement in series])
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
