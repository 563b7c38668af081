"""Build the splits of problems. Run: ``python -m tasks.calculator.build``

Deterministic, so the committed files can be compared with a rebuild. Results have at most two decimals and are above
zero; the same filled-in steps are asked for in one split only.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

from tasks.calculator.agent import TOOL
from tasks.calculator.stories import NAMES, STORIES, Story, numbers, worked

HERE = Path(__file__).parent
SEED = 11
SIZES = {"test": 84, "val": 42, "train": 42, "sft": 280, "rl": 420}
"""Split -> rows, as many of each kind."""


def build(folder: Path = HERE) -> None:
    """Write a ``.jsonl`` file for each split into a folder."""
    for split, rows in make_splits().items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_splits() -> dict[str, list[dict[str, Any]]]:
    rng = random.Random(SEED)
    used: set[str] = set()
    splits = {}
    for split, size in SIZES.items():
        rows = [_row(STORIES[i % len(STORIES)], rng, used) for i in range(size)]
        rng.shuffle(rows)
        splits[split] = [{"id": f"{split}-{i:03d}", **row} for i, row in enumerate(rows)]
    return splits


def _row(story: Story, rng: random.Random, used: set[str]) -> dict[str, Any]:
    """A combination that is not in ``used`` and has a plain result."""
    while True:
        values = numbers(rng)
        steps, answer = worked(story.steps, values)
        key = "; ".join(steps)
        if key in used or Fraction(answer) <= 0 or len(answer.partition(".")[2]) > 2:
            continue
        used.add(key)
        question = rng.choice(story.wordings).format(**values, name=rng.choice(NAMES))
        return {"question": question, "answer": answer, "steps": steps, "tags": [story.difficulty, *story.tags]}


def words() -> list[str]:
    """What is around the expression in every call of the calculator: two whole words, for a tokenizer."""
    call = {"name": TOOL["function"]["name"], "arguments": {"expression": "@"}}
    return json.dumps(call).split("@")


if __name__ == "__main__":
    build()
    print(f"built {', '.join(f'{split}.jsonl' for split in SIZES)} in {HERE}")
