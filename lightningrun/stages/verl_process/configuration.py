"""verl's configuration: its defaults, a recipe's ``verl:`` block against them, and what a machine asks for.

The defaults are read from the files that come with verl, without importing it: that takes ten seconds.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightningrun.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig

Tree = dict[str, Any]

DEVICE = "LIGHTNINGRUN_VERL_DEVICE"
"""Environment variable: ``cpu`` or ``cuda``, for what verl's processes compute on."""

_FREE = ("override_config", "engine_kwargs", "ray_init", "sampler_kwargs", "runtime_env", "override_optimizer_config")
"""Blocks that verl hands on to others: any key may stand in them."""
_LONGEST = 8192
"""Tokens of prompt and answer where neither role nor checkpoint says fewer."""
TOKENS_A_PASS = 16384

PADDED: Tree = {"use_remove_padding": False, "override_config": {"attn_implementation": "sdpa"}}
"""A model without flash attention: verl lays sequences end to end only for that."""
CPU_ENGINE: Tree = {
    "model_dtype": "fp32",
    "dtype": "float32",
    "use_torch_compile": False,
    "mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
}
"""No compiler and no bfloat16."""
CPU_MODEL: Tree = {**PADDED, "enable_gradient_checkpointing": False}


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use, without importing torch."""
    there = sum(path.name[6:].isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return there
    return min(there, len([name for name in chosen.split(",") if name.strip() and name.strip() != "-1"]))


@lru_cache(maxsize=4)
def verl_defaults(name: str) -> Tree:
    """One of verl's configurations, with the files that it is put together from; empty if verl is not installed."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0]) / "trainer" / "config"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        return {}
    tree: Tree = yaml.safe_load(path.read_text("utf-8"))
    for part in tree.pop("defaults", []):
        for place, file in part.items() if isinstance(part, Mapping) else ():
            group, _, package = str(place).partition("@")
            tree[package or group] = yaml.safe_load((folder / group / f"{file}.yaml").read_text("utf-8"))
    return tree


def problems(
    given: Mapping[str, Any], known: Mapping[str, Any], ours: Mapping[str, str], fixed: tuple[str, ...]
) -> Iterator[str]:
    """What is wrong with a ``verl:`` block: keys that ``known``, verl's own, has not; those that an option of the
    stage says (``ours``: path -> option), or that how the stage runs verl decides (``fixed``)."""
    if known:
        yield from _unknown(given, known, ours, fixed, ())


def _unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], ours: Mapping[str, str], fixed: tuple[str, ...],
    path: tuple[str, ...],
) -> Iterator[str]:  # fmt: skip
    for name, value in given.items():
        here = (*path, str(name))
        dotted = ".".join(here)
        if dotted in ours:
            yield f"verl.{dotted}: is said by the stage's option `{ours[dotted]}`"
        elif dotted in fixed:
            yield f"verl.{dotted}: is decided by how the stage runs verl"
        elif str(name).startswith("+"):
            continue
        elif name not in known:
            hint = did_you_mean(str(name), [key for key in known if key != "_target_"])
            yield f"verl.{dotted}: verl has no such key; {hint or 'one that its files do not name begins with +'}"
        elif isinstance(known[name], Mapping) and not isinstance(value, Mapping):
            yield f"verl.{dotted}: is a block of keys: {', '.join(list(known[name])[:4])}, ..."
        elif isinstance(value, Mapping) and isinstance(known[name], Mapping) and name not in _FREE and known[name]:
            yield from _unknown(value, known[name], ours, fixed, here)


def tokens_of_context(role: ModelConfig, base: Path) -> int:
    """Tokens that a prompt and its answer may have together."""
    known = json.loads((base / "config.json").read_text("utf-8")).get("max_position_embeddings") or _LONGEST
    return min(role.context or _LONGEST, int(known))


def merge(tree: Tree, given: Mapping[str, Any]) -> None:
    """Put ``given`` over ``tree``."""
    for name, value in given.items():
        name = str(name).lstrip("+")
        if isinstance(value, Mapping) and isinstance(tree.get(name), dict):
            merge(tree[name], value)
        else:
            tree[name] = _plain(value)


def _plain(value: Any) -> Any:
    """Without Hydra's signs for new keys."""
    if isinstance(value, Mapping):
        return {str(name).lstrip("+"): _plain(inner) for name, inner in value.items()}
    return value


def place(tree: Tree, dotted: str, value: Any) -> None:
    """Set ``dotted`` in ``tree``."""
    *path, last = dotted.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
    tree[last] = value
