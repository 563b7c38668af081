"""Weights and optimizer in the middle of training, on disk, so that a kill costs seconds and changes nothing.

One safetensors file, written beside its place and renamed: numbers only, never code. Facts (the step, costs so far)
are JSON in its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightningrun.files import disk_errors, set_aside

_WEIGHT, _STATE = "weight/", "state/"


def save_state(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, facts: Any) -> None:
    """Write all that training needs to go on exactly. Raises DiskFull; then what was there before is still there."""
    tensors = {_WEIGHT + name: tensor.detach().contiguous() for name, tensor in weights.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"{_STATE}{index}/{name}"] = torch.as_tensor(value).detach().contiguous()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, beside, {"facts": json.dumps(facts)})
            with open(beside, "rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, path)
        except SafetensorError as error:
            raise OSError(28, str(error)) from error
        finally:
            beside.unlink(missing_ok=True)


def load_state(path: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put a saved state back into ``weights`` and ``optimizer``, and return its facts; None if there is none.

    One that cannot be read, or is of another model, is set aside: training begins anew.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        saved = {name.removeprefix(_WEIGHT): t for name, t in tensors.items() if name.startswith(_WEIGHT)}
        if saved.keys() != weights.keys() or any(saved[name].shape != weights[name].shape for name in saved):
            raise ValueError("it is of another model")
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_STATE):
                _, index, key = name.split("/")
                entries.setdefault(int(index), {})[key] = tensor
    except (SafetensorError, ValueError, KeyError, OSError):
        set_aside(path)
        return None
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    return dict(facts)
