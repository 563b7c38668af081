"""A small project in a temporary folder, which is also the working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_project import AGENT, RECIPE, Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.write("pkg/agent.py", AGENT)
    made.write("prompts/system.md", "Write SQL.\n")
    for split in ("train", "test"):
        made.write(f"data/{split}.jsonl", f'{{"question": "{split}"}}\n')
    return made


@pytest.fixture
def changed() -> Callable[..., str]:
    """The whole recipe with some texts replaced."""

    def change(*pairs: str) -> str:
        text = RECIPE
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            assert old in text, old
            text = text.replace(old, new, 1)
        return text

    return change
