"""What answers a chat request: one room per provider, and the service that captures, caches, limits and retries."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from lightningrun.models.provider import Provider
    from lightningrun.recipe.model import ModelConfig

PROVIDERS: dict[str, str] = {
    "openai": "lightningrun.models.openai_http:OpenAIHttp",
    "litellm": "lightningrun.models.litellm_sdk:LiteLLM",
    "python": "lightningrun.models.python_function:PythonFunction",
    "local": "lightningrun.models.local.provider:LocalProvider",
    "vllm": "lightningrun.models.vllm.provider:VllmProvider",
}
"""Provider -> where its class is; each is imported only when a recipe uses it."""


def build(config: ModelConfig, environ: Mapping[str, str], role: str = "model") -> Provider:
    """The provider that a recipe's model asks for. Raises Missing (key, extra) and UsageError (bad name or URL)."""
    module, _, name = PROVIDERS[config.provider].partition(":")
    return cast("Provider", getattr(importlib.import_module(module), name)(config, environ, role))
