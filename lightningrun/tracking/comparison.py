"""Two evaluations of the same rows, compared: the headline gain with its interval, and the rows that tell the story."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lightningrun.files import read_record
from lightningrun.types import Json

RESAMPLES = 4000
PASS = 0.5
"""A row is called passed when its mean score over samples is at least this."""
_QUESTION_FIELDS = ("question", "input", "query", "instruction", "prompt", "problem", "text", "task")


@dataclass(frozen=True, slots=True)
class Row:
    """One task's scored rollouts in one stage. ``score`` is the mean; output and feedback are of the worst sample."""

    task_id: str
    split: str
    score: float
    output: Json
    feedback: str
    status: str
    tags: tuple[str, ...] = ()
    call_refs: tuple[int, ...] = ()
    key: str = ""
    """Of the worst sample."""

    @property
    def passed(self) -> bool:
        return self.score >= PASS


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that the first or the last evaluation failed, with what was said in each."""

    task_id: str
    question: str
    before: Row
    after: Row

    @property
    def fixed(self) -> bool:
        return self.after.passed

    @property
    def broken(self) -> bool:
        return self.before.passed


@dataclass(frozen=True, slots=True)
class Headline:
    """Baseline against final. ``low`` and ``high`` bound the paired gain (95% bootstrap); ``n`` rows are shared.

    ``source`` names where the gain is from: the search's own confirmation on test, or the two evaluations.
    """

    baseline: float | None = None
    baseline_low: float | None = None
    baseline_high: float | None = None
    baseline_stage: str = ""
    final: float | None = None
    final_low: float | None = None
    final_high: float | None = None
    final_stage: str = ""
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    split: str = ""
    source: str = ""


def read_rows(records: Iterable[Mapping[str, Any]]) -> dict[str, Row]:
    """Scored rollout records by task id; several samples are averaged."""
    samples: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("score") is not None:
            samples.setdefault(record["task_id"], []).append(record)
    rows = {}
    for task_id, found in samples.items():
        worst = min(found, key=lambda record: (record["score"], record["sample"]))
        rows[task_id] = Row(
            task_id,
            worst["split"],
            fmean(record["score"] for record in found),
            worst.get("output"),
            worst.get("feedback") or worst.get("error") or "",
            worst["status"],
            tuple(worst.get("tags") or ()),
            tuple(worst.get("call_refs") or ()),
            worst.get("key") or "",
        )
    return rows


def paired_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap of the mean of paired differences."""
    draw = random.Random(seed)
    n = len(differences)
    means = sorted(fmean(draw.choices(differences, k=n)) for _ in range(RESAMPLES))
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]


def compare_rows(before: Mapping[str, Row], after: Mapping[str, Row]) -> list[tuple[Row, Row]]:
    """Pairs of the same task, in order of task ids."""
    return [(before[id], after[id]) for id in sorted(before) if id in after and before[id].split == after[id].split]


def headline(
    evaluations: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Row]]], searches: Sequence[Mapping[str, Any]]
) -> Headline | None:
    """From (stage, metrics, rows) of the evaluations in order, and the metrics of the searches; None before any number.

    The search's own paired test of its promoted winner is preferred where it speaks of the same two numbers;
    otherwise the rows of the first and the last evaluation on one split are paired here.
    """
    search = next((m for m in reversed(searches) if m.get("promoted") and m.get("test_gain") is not None), None)
    if not evaluations:
        return _from_search(search) if search else None
    last_id, last, last_rows = evaluations[-1]
    split = next((row.split for row in last_rows.values()), "")
    final = {"final": last["reward"], "final_low": last.get("reward_low"), "final_high": last.get("reward_high")}
    for id, metrics, rows in evaluations[:-1]:
        pairs = compare_rows(rows, last_rows)
        if not pairs:
            continue
        gain = fmean(b.score - a.score for a, b in pairs)
        if search and abs(search["test_gain"] - gain) < 1e-6 and search.get("test_gain_low") is not None:
            low, high, source = search["test_gain_low"], search["test_gain_high"], "search"
        else:
            low, high = paired_interval([b.score - a.score for a, b in pairs])
            source = "evaluations"
        return Headline(
            baseline=metrics["reward"],
            baseline_low=metrics.get("reward_low"),
            baseline_high=metrics.get("reward_high"),
            baseline_stage=id,
            final_stage=last_id,
            gain=gain,
            low=low,
            high=high,
            n=len(pairs),
            split=split,
            source=source,
            **final,
        )
    if search and len(evaluations) == 1:
        return _from_search(search)
    return Headline(final_stage=last_id, split=split, n=len(last_rows), **final)


def headlines(
    evaluations: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Row]]], searches: Sequence[Mapping[str, Any]]
) -> tuple[Headline, ...]:
    """One for each split with two evaluations, as ``headline`` tells it; what the run came to is the last."""
    last = {next((row.split for row in rows.values()), ""): n for n, (_, _, rows) in enumerate(evaluations, 1)}
    told = [headline(evaluations[:n], searches) for n in last.values() if n < len(evaluations)]
    heads = [head for head in told if head is not None and head.baseline is not None]
    return (*heads, *filter(None, [headline(evaluations, searches)]))


def _from_search(metrics: Mapping[str, Any]) -> Headline:
    return Headline(
        baseline=metrics.get("test_seed"),
        final=metrics.get("test_best"),
        gain=metrics["test_gain"],
        low=metrics.get("test_gain_low"),
        high=metrics.get("test_gain_high"),
        n=int(metrics.get("test_n") or 0),
        split="test",
        source="search",
    )


def telling_changes(run_dir: Path, pairs: Sequence[tuple[Row, Row]], limit: int = 12) -> tuple[RowChange, ...]:
    """Rows that failed before or after: the repaired first, then the broken, then those still failing.

    At most ``limit`` of each; tags are taken in turn, so that one kind of question does not crowd out the others.
    """
    fixed = _in_turn([(a, b) for a, b in pairs if not a.passed and b.passed])[:limit]
    broken = _in_turn([(a, b) for a, b in pairs if a.passed and not b.passed])[:limit]
    still = _in_turn([(a, b) for a, b in pairs if not a.passed and not b.passed])[:limit]
    shown = fixed + broken + still
    asked = questions(run_dir, {before.split for before, _ in shown})
    return tuple(RowChange(a.task_id, asked.get(a.task_id) or _asked(run_dir, a.call_refs), a, b) for a, b in shown)


def _in_turn(pairs: Sequence[tuple[Row, Row]]) -> list[tuple[Row, Row]]:
    groups: dict[tuple[str, ...], list[tuple[Row, Row]]] = {}
    for pair in sorted(pairs, key=lambda pair: (pair[0].score - pair[1].score, pair[0].task_id)):
        groups.setdefault(pair[0].tags, []).append(pair)
    ordered = []
    while any(groups.values()):
        ordered += [group.pop(0) for group in groups.values() if group]
    return ordered


def questions(run_dir: Path, splits: set[str]) -> dict[str, str]:
    """Task id -> its question, for rows in JSONL files that are still where the recipe said."""
    import yaml

    try:
        task = yaml.safe_load((run_dir / "resolved.yaml").read_text("utf-8"))["task"]
        files = [Path(path) for split, path in task["data"].items() if split in splits]
        key = task.get("id") or "id"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}
    found = {}
    for file in files:
        try:
            rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, ValueError):
            continue
        for row in rows:
            if isinstance(row, dict) and key in row:
                text = next((row[name] for name in _QUESTION_FIELDS if isinstance(row.get(name), str)), "")
                found[str(row[key])] = text
    return found


def _asked(run_dir: Path, refs: Sequence[int]) -> str:
    """The last thing that the agent's first LLM call was told by its user."""
    try:
        with open(run_dir / "calls.jsonl", "rb") as stream:
            messages = read_record(stream.fileno(), refs[0])["request"]["messages"]
        said = [message["content"] for message in messages if message.get("role") == "user"]
        return said[-1] if isinstance(said[-1], str) else json.dumps(said[-1])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
