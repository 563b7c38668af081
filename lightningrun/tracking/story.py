"""A stage's story kept with its outputs: its candidates, curves and prompts, so that a reused result can tell them too.

A later run that takes a result from the cache has none of these events in its own journal, and the run that made them
may be gone. Times and sequence numbers are left out: the same work leaves the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightningrun.files import write_atomic

STORY = "story.jsonl"
_KINDS = ("candidate", "metric", "prompt")
_LEFT_OUT = ("seq", "ts")


def keep_story(events: Iterable[Mapping[str, Any]], stage: str, folder: Path) -> None:
    """Write the stage's newest story into ``folder``; nothing if there is no more to it than a number or two."""
    key, story = None, list[dict[str, Any]]()
    for event in events:
        if event.get("stage") != stage:
            continue
        if event["kind"] == "stage_started" and event.get("key") != key:
            key, story = event.get("key"), []
        elif event["kind"] in _KINDS:
            story.append({name: value for name, value in event.items() if name not in _LEFT_OUT})
    if len(story) > 1:
        write_atomic(folder / STORY, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in story))


def read_story(folder: Path) -> Iterator[dict[str, Any]]:
    """The events kept with the outputs in ``folder``; none if there is no story or it does not parse."""
    try:
        lines = (folder / STORY).read_text("utf-8").splitlines()
        yield from [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return
