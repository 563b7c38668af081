"""What a model's tokens cost. The recipe's price wins; else LiteLLM's bundled table, without importing it."""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.types import Usage

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig

_TABLE = "model_prices_and_context_window_backup.json"
_ASSUMED_MAX_TOKENS = 4096
"""Longest answer that a dollar bound allows for where neither request, recipe nor table gives one."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per token, and the longest answer in tokens. Discounts for cached prompt tokens are not taken off."""

    prompt: float
    completion: float
    max_completion_tokens: int = _ASSUMED_MAX_TOKENS

    def of(self, usage: Usage) -> float:
        return self.prompt * usage.prompt_tokens + self.completion * usage.completion_tokens

    def bound(self, request_bytes: int, max_tokens: int | None) -> float:
        """The most that a request can cost in USD: a token is at least a byte of the request (images excepted)."""
        return self.prompt * request_bytes + self.completion * (max_tokens or self.max_completion_tokens)


def price_of(config: ModelConfig) -> Price | None:
    """The price of a model, or None where it is not known. What runs on the user's own machines is free: functions,
    weights in this process, a vLLM server.
    """
    own = config.provider in ("python", "local", "vllm")
    entry = {} if own else _entry(config)
    longest = entry.get("max_output_tokens") or _ASSUMED_MAX_TOKENS
    if config.price is not None:
        return Price(config.price.input_per_mtok / 1e6, config.price.output_per_mtok / 1e6, longest)
    if own:
        return Price(0.0, 0.0)
    if "input_cost_per_token" not in entry:
        return None
    return Price(entry["input_cost_per_token"], entry.get("output_cost_per_token", 0.0), longest)


def _entry(config: ModelConfig) -> dict[str, Any]:
    if config.base_url and "api.openai.com" not in config.base_url:
        return {}
    names = [config.name]
    if config.provider == "litellm" and "/" in config.name:
        names.append(config.name.split("/", 1)[1])
    return next((_table()[name] for name in names if name in _table()), {})


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    spec = importlib.util.find_spec("litellm")
    for folder in spec.submodule_search_locations or () if spec else ():
        try:
            return dict(json.loads((Path(folder) / _TABLE).read_text("utf-8")))
        except (OSError, ValueError):
            continue
    return {}
