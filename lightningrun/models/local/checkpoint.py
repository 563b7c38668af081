"""Checkpoints as Hugging Face lays them out: ``config.json``, ``model.safetensors`` (one or sharded), tokenizer files.

Weights are read from safetensors only: data, never code. A folder that was saved here carries a manifest of digests and
is verified before it is loaded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightningrun.errors import UsageError
from lightningrun.files import MANIFEST, commit_folder, disk_errors, inside, verify_folder
from lightningrun.models.local.decoder import Decoder, Shape, initialise
from lightningrun.models.local.folder import content_digest, find
from lightningrun.models.local.tokenizer import ChatTokenizer

__all__ = ["content_digest", "find", "load", "read_shape", "save", "scratch", "weights_digest"]

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_WEIGHTS = "model.safetensors"
_NUMBERS = ("width", "layers", "heads", "kv_heads", "head_dim", "feed_forward", "context")
_SIZES = {"tiny": (96, 2, 3, 3, 32, 256, 1024), "small": (256, 6, 8, 4, 32, 704, 2048)}
"""Sizes of models made from nothing: about 290 thousand and 5 million parameters. vLLM wants heads of 32 or more."""


def scratch(tokenizer: ChatTokenizer, *, family: str = "llama", size: str = "tiny", seed: int = 0) -> Decoder:
    """A model with random weights, as large as ``size`` says, for the vocabulary of ``tokenizer``."""
    if family not in _ARCHITECTURES or size not in _SIZES:
        known = f"families {', '.join(_ARCHITECTURES)}; sizes {', '.join(_SIZES)}"
        raise UsageError(f"there is no model of family {family!r} and size {size!r}", hint=f"there are {known}")
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    present: dict[str, int | list[int]] = {key: value for key, value in special.items() if value is not None}
    numbers = dict(zip(_NUMBERS, _SIZES[size], strict=True))
    decoder = Decoder(Shape(family, vocab=tokenizer.size, special=present, **numbers))  # type: ignore[arg-type]
    initialise(decoder, seed)
    return decoder


def save(
    decoder: Decoder, tokenizer: ChatTokenizer | None, folder: Path, facts: Mapping[str, Any] | None = None
) -> str:
    """Write ``folder`` whole or not at all, in place of one that is there, and return its ``content_digest``.

    ``facts`` (JSON: the step, the loss, ...) go into its manifest. Raises DiskFull; then nothing has changed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder):
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with disk_errors(folder):
            building.chmod(0o755)
            weights = {name: weight.detach().cpu().contiguous() for name, weight in decoder.state_dict().items()}
            try:
                save_file(weights, building / _WEIGHTS, {"format": "pt"})
            except SafetensorError as error:  # it wraps the system's error, number and all, in words
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
            _write_json(building / "config.json", _config(decoder))
            _write_json(building / "generation_config.json", dict(decoder.shape.special))
            if tokenizer is not None:
                tokenizer.save(building)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            os.replace(folder, old)
            commit_folder(building, folder, dict(facts or {}))
            shutil.rmtree(old, ignore_errors=True)
        else:
            commit_folder(building, folder, dict(facts or {}))
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return content_digest(folder)


def load(folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder saved in ``folder``. Raises UsageError saying what is wrong with a folder that cannot be used."""
    where = str(folder)
    if (folder / MANIFEST).exists() and verify_folder(folder) is None:
        raise UsageError("the checkpoint is damaged: a file differs from its manifest", where=where)
    shape = read_shape(folder)
    with torch.device("meta"):
        decoder = Decoder(shape)
    wanted = decoder.state_dict()
    tensors = {name: tensor for name, tensor in _tensors(folder).items() if not _derived(name, shape)}
    missing, odd = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    for names, what in (
        (missing, "lacks"),
        (odd, "has unknown"),
        (wrong, "has in another shape than it should"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UsageError(f"the checkpoint {what} {', '.join(names[:3])}{more}", where=where)
    decoder.load_state_dict({name: tensors[name].to(device, dtype) for name in wanted}, assign=True)
    return decoder.requires_grad_(True)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex digest (16) of tensors by name, wherever they are; a gigabyte takes about a second."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode())
        sha.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def read_shape(folder: Path) -> Shape:
    """The shape that ``config.json`` describes. Raises UsageError for what this decoder does not do."""
    where = str(folder / "config.json")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        family = config["model_type"]
        unable = _unable(config)
        if unable:
            raise UsageError(f"this model cannot be served here: {unable}", where=where, hint="serve it with vLLM")
        heads = config["num_attention_heads"]
        theta, stretched = _rope(config)
        shape = Shape(
            family=family,
            vocab=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config["intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=theta,
            rope_llama3=stretched,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied=config.get("tie_word_embeddings", False),
            special=_special(folder, config),
        )
        numbers = {name: getattr(shape, name) for name in ("vocab", *_NUMBERS)}
        if not all(isinstance(number, int) and number > 0 for number in numbers.values()):
            raise ValueError(f"{numbers} are not all numbers of 1 or more")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"config.json cannot be used: {type(error).__name__}: {error}", where=where) from error
    return shape


def _unable(config: Mapping[str, Any]) -> str:
    if config["model_type"] not in _ARCHITECTURES:
        return f"its model_type is {config['model_type']!r}, of {', '.join(_ARCHITECTURES)}"
    if config.get("quantization_config"):
        return "it is quantised"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {config['hidden_act']!r}"
    if config["model_type"] == "llama" and (config.get("attention_bias") or config.get("mlp_bias")):
        return "it has biases that Llama has not"
    if config.get("use_sliding_window"):
        return "it uses a sliding window"
    return ""


def _rope(config: Mapping[str, Any]) -> tuple[float, tuple[float, float, float, int] | None]:
    """Base and stretching; newer files have one block, older ones ``rope_theta`` and ``rope_scaling``."""
    block = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(block.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = block.get("rope_type") or block.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"rope type {kind!r} is not known here")
    low, high, original = block["low_freq_factor"], block["high_freq_factor"], block["original_max_position_embeddings"]
    return theta, (float(block["factor"]), float(low), float(high), int(original))


def _special(folder: Path, config: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """Special ids; ``generation_config.json`` may name further ends of a turn."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {key: config[key] for key in keys if config.get(key) is not None}
    path = folder / "generation_config.json"
    if path.is_file():
        ends = json.loads(path.read_text("utf-8")).get("eos_token_id")
        found |= {"eos_token_id": ends} if ends is not None else {}
    return found


def _config(decoder: Decoder) -> dict[str, Any]:
    shape = decoder.shape
    dtype = str(decoder.head.dtype).removeprefix("torch.")
    rope: dict[str, Any] = {"rope_type": "default"}
    if shape.rope_llama3 is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope = {"rope_type": "llama3", **dict(zip(names, shape.rope_llama3, strict=True))}
    return {
        "architectures": [_ARCHITECTURES[shape.family]],
        "model_type": shape.family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_theta": shape.rope_theta, **rope},
        **({"rope_scaling": rope} if shape.rope_llama3 else {}),
        "tie_word_embeddings": shape.tied,
        **shape.special,
    }


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / f"{_WEIGHTS}.index.json"
    try:
        files = [_WEIGHTS]
        if index.is_file():
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        tensors: dict[str, Tensor] = {}
        for name in files:
            tensors |= load_file(inside(folder, name))
        return tensors
    except FileNotFoundError as error:
        hint = "weights in other forms (.bin, .pt) are code and are not read: convert them to safetensors"
        raise UsageError(
            "the checkpoint lacks a safetensors file", where=str(error.filename or folder), hint=hint
        ) from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the weights cannot be read: {error}", where=str(folder)) from error


def _derived(name: str, shape: Shape) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (shape.tied and name == "lm_head.weight")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
