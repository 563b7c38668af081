"""The ``rollouts`` artifact: one ``Rollout`` as JSON a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightningrun.errors import StageFailed
from lightningrun.files import write_atomic
from lightningrun.types import Rollout


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write them whole or not at all. Raises DiskFull."""
    lines = [json.dumps(rollout.to_json(), ensure_ascii=False, default=str) for rollout in rollouts]
    write_atomic(path, "".join(f"{line}\n" for line in lines))


def read_rollouts(path: Path) -> Iterator[Rollout]:
    """Each rollout of a file. Raises StageFailed if it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                yield Rollout.from_json(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageFailed(f"cannot read these rollouts: {error}", where=str(path)) from error
