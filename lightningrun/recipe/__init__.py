"""The recipe language: one YAML file (and what it extends) in, one frozen and checked ``Recipe`` out.

    loaded = load("recipes/sql_agent.yaml", ["stages.apo.budget.max_rollouts=200"], specs=specs())

source.py reads YAML with places, compose.py lays files and overrides over one another, interpolate.py fills in
``${...}``, model.py says what is allowed, validate.py and checks.py find what is wrong, load.py puts them in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightningrun.recipe.checks import Report, StageType, check
from lightningrun.recipe.compose import Setting
from lightningrun.recipe.load import LoadedRecipe, load, load_text
from lightningrun.recipe.model import Config, Recipe, StageConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Config",
    "LoadedRecipe",
    "Recipe",
    "Report",
    "Setting",
    "StageConfig",
    "StageType",
    "check",
    "json_schema",
    "load",
    "load_text",
]


def json_schema(specs: Mapping[str, StageType]) -> dict[str, Any]:
    """The JSON Schema of recipes with these stage types, for editors."""
    from lightningrun.recipe import schema

    return schema.json_schema(specs)
