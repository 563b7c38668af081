"""The weights that verl saved, as a checkpoint that anything loads: Hugging Face's layout, adapters merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from lightningrun.errors import StageFailed
from lightningrun.files import commit_folder, disk_errors
from lightningrun.models.local.folder import TOKENIZER_FILES

_DESCRIBES = ("config.json", "generation_config.json")


def export(saved: Path, base: Path, target: Path) -> None:
    """Fill ``target`` with the weights of ``saved`` (one of verl's ``huggingface`` folders, or ``base`` itself) and
    the tokenizer that the stage began with. Raises StageFailed if there are no weights.
    """
    for name in _DESCRIBES:
        if (saved / name).is_file():
            shutil.copy2(saved / name, target / name)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy2(base / name, target / name)
    files = sorted(saved.glob("*.safetensors"))
    if not files:
        raise StageFailed(f"verl saved no weights in {saved}")
    adapters = saved.parent / "lora_train_meta.json"
    if adapters.is_file() and saved != base:
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        told = json.loads(adapters.read_text("utf-8"))
        save_file(merged(tensors, told["lora_alpha"] / told["r"]), target / "model.safetensors", {"format": "pt"})
        return
    for file in [*files, *saved.glob("*.safetensors.index.json")]:
        shutil.copy2(file, target / file.name)


def publish(saved: Path, base: Path, folder: Path, building: Path, facts: dict[str, Any]) -> None:
    """Put ``export``'s checkpoint in the place of ``folder``, whole or not at all. Raises StageFailed, DiskFull."""
    shutil.rmtree(building, ignore_errors=True)
    with disk_errors(building):
        building.mkdir()
        export(saved, base, building)
    shutil.rmtree(folder, ignore_errors=True)
    commit_folder(building, folder, facts)


def merged(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights by their own names, from those of a model wrapped by peft: each projection plus ``scale`` times B A."""
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    found: dict[str, Any] = {}
    for name, tensor in plain.items():
        if ".lora_" in name:
            continue
        place, _, kind = name.rpartition(".base_layer.")
        if place and kind == "weight" and f"{place}.lora_A.default.weight" in plain:
            down, up = (plain[f"{place}.lora_{side}.default.weight"] for side in "AB")
            tensor = (tensor.double() + scale * (up.double() @ down.double())).to(tensor.dtype)
        found[name.replace(".base_layer.", ".")] = tensor.contiguous()
    return found
