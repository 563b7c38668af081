"""What verl's SFT trainer is given: our tokens and our mask, as they are. Loaded in verl's process.

verl's own data set would write each message down by itself, which is not the conversation where a chat template looks
at more than one message, and learns all of the assistant's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from lightningrun.stages.sft.examples import Example


def write(examples: Sequence[Example], path: Path) -> None:
    """One example a line."""
    with path.open("w", encoding="utf-8") as file:
        for one in examples:
            file.write(json.dumps([one.ids, [int(flag) for flag in one.learn]]) + "\n")


class Encoded(Dataset[dict[str, Tensor]]):
    """Named in ``data.custom_cls``; ``parquet_files`` is what verl calls a data set's files."""

    def __init__(self, parquet_files: str, **_: Any) -> None:
        self._lines = Path(parquet_files).read_text("utf-8").splitlines()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids, learn = json.loads(self._lines[index])
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.arange(len(ids)),
            "loss_mask": torch.tensor(learn),
        }
