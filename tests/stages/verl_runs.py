"""What the tests of verl's own trainers look at: the processes of a run, what it leaves, and its checkpoint."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lightningrun.models.local import checkpoint
from lightningrun.models.local.packing import Segment, pack


class Watched:
    """An observer that keeps count of the processes of a run."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.seen: set[psutil.Process] = set()

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        if event["kind"] == "metric":
            self.seen |= set(psutil.Process().children(recursive=True))

    def named(self, word: str) -> list[psutil.Process]:
        """Those that run under this name; not their guard, which has it among its later arguments."""
        return [one for one in self.seen if word in command_line(one, 4)]

    def is_gone(self) -> bool:
        _, alive = psutil.wait_procs(list(self.seen), timeout=10)
        return bool(self.seen) and not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def command_line(process: psutil.Process, words: int | None = None) -> str:
    """Empty for one that has ended, whether or not anybody has asked for it yet."""
    try:
        return " ".join(process.cmdline()[:words])
    except psutil.Error:
        return ""


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders go; a run must leave none. Short: the paths of sockets are. pytest's is made before."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert not list(folder.glob("lr-*"))
    shutil.rmtree(folder, ignore_errors=True)


def loads_in_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": "say 1"}]
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        packed = pack([[Segment(tuple(ids[:4]), None, False), Segment(tuple(ids[4:]), 0, True)]])
        ours = checkpoint.load(folder).log_probs(packed)
    wanted = torch.stack([theirs[place - 1, ids[place]] for place in range(4, len(ids))])
    assert torch.allclose(ours, wanted, atol=1e-4)
