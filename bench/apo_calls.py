"""What a prompt optimisation costs beside its LLM calls: a whole run of an ``apo`` recipe against the 1 ms endpoint.

    python bench/apo_calls.py [--repeats 3] [--peer-python VENV/bin/python]

Ours is the command line on a recipe with a budget of 245 calls; the peer's is agentlightning 0.3.0's APO with the
settings of its tutorial, which makes about as many in several minutes. Both have 29 rows to train and 29 to validate
on, and 8 workers. Wall time is from the start of the process to its end. MLflow is left out, since the peer has none.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from measuring import HERE, Measurement, endpoint, measure, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--peer-python", type=os.path.abspath, help="of agentlightning 0.3.0; runs once")
    chosen = parser.parse_args()
    script = str(HERE / "apo_contestants.py")
    series: dict[str, list[Measurement]] = {"ours": []}
    with endpoint(chosen.latency_ms) as base:
        for _ in range(chosen.repeats):
            series["ours"].append(measure("ours", [sys.executable, script, "ours"], base))
        if chosen.peer_python:
            series["peer"] = [measure("peer", [chosen.peer_python, script, "peer"], base)]
    print(f"\n{'apo':<8}{'calls':>8}{'wall s':>10}{'CPU s':>10}{'peak MiB':>10}")
    for label, runs in series.items():
        columns = zip(*((m.calls, m.wall_s, m.cpu_s, m.peak_mib) for m in runs), strict=True)
        calls, wall, cpu, mib = map(statistics.median, columns)
        print(f"{label:<8}{calls:>8.0f}{wall:>10.2f}{cpu:>10.2f}{mib:>10.0f}")
    save("apo", [measurement for runs in series.values() for measurement in runs])


if __name__ == "__main__":
    main()
