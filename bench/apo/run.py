"""Prompt optimisers side by side on simulated worlds, by true accuracy: what ``make bench-apo`` runs.

    python bench/apo/run.py [--worlds 100:108] [--families additive,...] [--contestants ours,gepa-tuned,...] [--jobs 2]

Every finished measurement is a line of ``--out``, so that an interrupted benchmark goes on where it was; a line made
with other code or settings is measured anew. docs/bench-apo.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import ours
import trials
import worlds
from contestants import BUDGETS, Contestant, contestant
from measuring import served
from report import Report

import lightningrun

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
WORLDS_A_PROCESS = 8
"""Peers take seconds to import, so that one process optimises several worlds."""

Key = tuple[str, str, str, int, int]
"""Kind (curve, kill, wall), contestant, family, world, budget."""
KEY_NAMES = ("kind", "contestant", "family", "world", "budget")
WORLD_OPTIONS: dict[str, float] = {}
"""What `simulation.py` takes in a model's name, for all contestants alike."""
TRIAL_FAMILIES = ("additive", "graded", "two_prompts")


class Measured:
    """The lines of a results file that are true of the present code, by key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.lines: dict[Key, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError):
                one = json.loads(line)
                self.lines[_key(one)] = one

    def missing(self, one: Contestant, family: str, number: int, budgets: Sequence[int]) -> list[int]:
        """The budgets that have to be measured."""
        return [budget for budget in budgets if not self.has(("curve", one.name, family, number, budget), one)]

    def has(self, key: Key, one: Contestant) -> bool:
        """Whether the measurement is there, made with the present code and settings."""
        return key in self.lines and self.lines[key]["made_by"] == made_by(one)

    def add(self, line: dict[str, Any]) -> None:
        with self._lock:
            self.lines[_key(line)] = line
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")


def _key(line: Mapping[str, Any]) -> Key:
    return line["kind"], line["contestant"], line["family"], line["world"], line["budget"]


def made_by(one: Contestant) -> str:
    """A digest of the settings and the code behind a measurement."""
    settings = json.dumps([one.options, WORLD_OPTIONS], sort_keys=True)
    return hashlib.sha256(f"{settings}{_code(one.engine)}".encode()).hexdigest()[:12]


_codes: dict[str, str] = {}


def _code(engine: str) -> str:
    if engine not in _codes:
        names = ["worlds.py", "coach.py", "simulation.py"]
        names += ["ours.py", "agent.py", "recipe.yaml"] if engine == "ours" else ["peers.py"]
        paths = [HERE / name for name in names]
        if engine == "ours":
            stages = Path(lightningrun.__file__).parent / "stages"
            paths += [*sorted(stages.glob("*.py")), *sorted((stages / "apo").rglob("*.py"))]
        _codes[engine] = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return _codes[engine]


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """The simulation in a process of its own; yields its base URL."""
    with served(HERE / "simulation.py") as port:
        yield f"http://127.0.0.1:{int(port)}/v1"


def stats(base: str, run: str) -> dict[str, float]:
    """What the endpoint counted for one run; it is forgotten."""
    origin = base.removesuffix("/v1")
    with urllib.request.urlopen(f"{origin}/stats/{run}") as reply:
        counted: dict[str, float] = json.load(reply)
    urllib.request.urlopen(urllib.request.Request(f"{origin}/forget/{run}", data=b"{}")).close()
    return counted


def run_ours(base: str, one: Contestant, family: str, number: int, budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One run of the command line for each budget."""
    world = worlds.make(family, number)
    for budget in budgets:
        run = f"{one.name}-{world.name}-{budget}-{time.time_ns()}".lower().replace(":", "-")
        with tempfile.TemporaryDirectory(prefix="lightningrun-bench-apo-") as name:
            folder = Path(name)
            options = {**one.options, "budget": {"max_rollouts": budget}}
            ours.write_project(folder, world, base, f"{world.name}{_suffix()}@{run}", options)
            wall_s = ours.run(folder)
            done = ours.outcome(folder, world)
        counted, metrics = stats(base, run), done["metrics"]
        yield _line(
            one, family, number, budget,
            prompts=done["prompts"], claim=metrics["reward"], rollouts=counted.get("student", 0),
            coach=counted.get("coach", 0), wall_s=wall_s, ended=metrics["stopped"], promoted=metrics["promoted"],
            best_val=metrics["best_val"],
        )  # fmt: skip


def run_peer(
    base: str, python: str, one: Contestant, family: str, numbers: Sequence[int], budgets: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """One process for several worlds, each searched once at the largest budget and read at every one."""
    job = {
        "base": base, "engine": one.engine, "worlds": [f"{family}-{number}" for number in numbers],
        "run": f"{one.name}-{time.time_ns()}".replace(":", "-"), "budget": max(budgets), "options": one.options,
        "settings": _suffix(),
    }  # fmt: skip
    done = subprocess.run(
        [python, str(HERE / "peers.py"), json.dumps(job)], capture_output=True, text=True, env=ours.environment()
    )
    if done.returncode:
        raise RuntimeError(f"{one.name} failed on {job['worlds']}:\n{done.stderr[-3000:]}")
    for text in done.stdout.splitlines():
        search = json.loads(text)
        number = int(search["world"].rpartition("-")[2])
        for budget in budgets:
            mark = [mark for mark in search["marks"] if mark["rollouts"] <= budget][-1]
            coach = sum(rollouts <= budget for rollouts in search["asked"])
            yield _line(
                one, family, number, budget,
                prompts=mark["prompts"], claim=mark["claim"], rollouts=min(budget, search["rollouts"]), coach=coach,
                wall_s=search["wall_s"], ended=search["ended"],
            )  # fmt: skip


def _suffix() -> str:
    return "".join(f"+{key}={value:g}" for key, value in WORLD_OPTIONS.items())


def _line(one: Contestant, family: str, number: int, budget: int, **what: Any) -> dict[str, Any]:
    world = worlds.make(family, number)
    return {
        **dict(zip(KEY_NAMES, ("curve", one.name, family, number, budget), strict=True)), "made_by": made_by(one),
        "true": world.true(what["prompts"]), "seed": world.true(world.seed_prompts), **what,
    }  # fmt: skip


def measure(
    measured: Measured, base: str, peer_python: str | None, names: Sequence[str], families: Sequence[str],
    numbers: Sequence[int], budgets: Sequence[int], jobs: int,
) -> list[str]:  # fmt: skip
    """Whatever is missing, ``jobs`` processes at a time. Returns what failed; the rest is measured all the same."""
    began = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        pending = {}
        for family in families:
            for one in map(contestant, names):
                todo = [number for number in numbers if measured.missing(one, family, number, budgets)]
                if one.engine == "ours":
                    for number in todo:
                        task = pool.submit(
                            _keep,
                            measured,
                            run_ours(base, one, family, number, measured.missing(one, family, number, budgets)),
                        )
                        pending[task] = f"{one.name} {family}-{number}"
                elif peer_python:
                    for start in range(0, len(todo), WORLDS_A_PROCESS):
                        chunk = todo[start : start + WORLDS_A_PROCESS]
                        task = pool.submit(_keep, measured, run_peer(base, peer_python, one, family, chunk, budgets))
                        pending[task] = f"{one.name} {family}-{chunk[0]}..{chunk[-1]}"
        failures = []
        try:
            for done, task in enumerate(as_completed(pending), 1):
                problem = task.exception()
                if problem:
                    failures.append(f"{pending[task]}: {problem}")
                said = "FAILED" if problem else f"{time.monotonic() - began:.0f} s"
                _progress(f"{done}/{len(pending)} {pending[task]}  {said}", done == len(pending))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit("interrupted; the same command goes on from here") from None
    return failures


def _keep(measured: Measured, lines: Iterator[dict[str, Any]]) -> None:
    for line in lines:
        measured.add(line)


def _progress(text: str, last: bool) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def try_trials(measured: Measured, base: str, families: Sequence[str], number: int, anew: bool = False) -> list[str]:
    """The trials of ours alone, one after the other, since they take the time. Returns what failed."""
    one, failures = contestant("ours"), []
    for kind, trial in (("kill", trials.kill_and_resume), ("wall", trials.wall)):
        for family in families:
            key = (kind, one.name, family, number, 0)
            if measured.has(key, one) and not anew:
                continue
            try:
                found = trial(base, lambda run: stats(base, run), family, number)
            except RuntimeError as error:
                failures.append(f"{kind} {family}-{number}: {error}")
                continue
            measured.add({**dict(zip(KEY_NAMES, key, strict=True)), "made_by": made_by(one), **found})
            _progress(f"{kind} {family}-{number}", True)
    return failures


def numbers_of(text: str) -> list[int]:
    """World numbers from ``100:116`` or ``100,103``."""
    first, colon, end = text.partition(":")
    return list(range(int(first), int(end))) if colon else [int(part) for part in text.split(",")]


def taking_part(names: Sequence[str], peers: bool) -> list[str]:
    """Those that can be measured, each setting once: tuned is no contestant where it is the defaults."""
    settings: dict[str, str] = {}
    for name in names:
        one = contestant(name)
        if peers or one.engine == "ours":
            first = settings.setdefault(f"{one.engine} {json.dumps(one.options, sort_keys=True)}", name)
            if first != name:
                print(f"{name} has the settings of {first} and is left out", file=sys.stderr)
    return list(settings.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default="100:116", help="100:116 are for development, all others are held out")
    parser.add_argument("--families", default=",".join(worlds.FAMILIES))
    parser.add_argument("--contestants", default="ours,ours-tuned,gepa,gepa-tuned,agentlightning,agentlightning-tuned")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--peer-python", type=os.path.abspath, help="of a venv with the peers; without it, ours alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "apo.jsonl")
    parser.add_argument("--no-trials", action="store_true", help="no kill and resume, no wall time")
    parser.add_argument("--only-trials", action="store_true", help="only these, measured anew: for a quiet machine")
    parser.add_argument("--odd", type=float, default=0.0, help="share of the coach's answers in an unexpected form")
    chosen = parser.parse_args()
    WORLD_OPTIONS.update({"odd": chosen.odd} if chosen.odd else {})
    numbers, families = numbers_of(chosen.worlds), chosen.families.split(",")
    budgets = [int(text) for text in chosen.budgets.split(",")]
    names = taking_part(chosen.contestants.split(","), bool(chosen.peer_python))
    measured = Measured(chosen.out)
    with endpoint() as base:
        failures = []
        if not chosen.only_trials:
            failures = measure(measured, base, chosen.peer_python, names, families, numbers, budgets, chosen.jobs)
        tried = [] if chosen.no_trials else [family for family in TRIAL_FAMILIES if family in families]
        failures += try_trials(measured, base, tried, numbers[0], chosen.only_trials)
    wanted = [*(("curve", n, f, w, b) for n in names for f in families for w in numbers for b in budgets)]
    wanted += [(kind, "ours", family, numbers[0], 0) for kind in ("kill", "wall") for family in tried]
    report = Report([measured.lines[key] for key in wanted if key in measured.lines], budgets)
    text = f"{report.tables()}\n\n{report.bars()}\n"
    print(text)
    chosen.out.with_suffix(".txt").write_text(text)
    if report.plot(chosen.out.with_suffix(".svg")):
        print(f"single runs: {chosen.out}; plot: {chosen.out.with_suffix('.svg')}")
    for failure in failures:
        print(f"FAILED {failure}")
    raise SystemExit(1 if failures or not report.met else 0)


if __name__ == "__main__":
    main()
