"""The JSON Schema of recipes, for editors: completion, descriptions and red lines while a recipe is written.

    lightningrun schema -o lightningrun.schema.json

It is looser than the loader in two ways, because an editor sees one file before composition: no key is required (a
recipe may extend another that has it), and ``${...}`` may stand wherever a value does.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lightningrun.recipe.checks import StageType
from lightningrun.recipe.model import Config, Recipe

INTERPOLATION = {"type": "string", "pattern": r"\$\{.+\}"}


def json_schema(specs: Mapping[str, StageType]) -> dict[str, Any]:
    """The schema, with the stage types in ``specs`` told apart by their ``type``."""
    models: list[type[BaseModel]] = [Recipe, *(spec.config for spec in specs.values())]
    references, whole = models_json_schema([(model, "validation") for model in models], title="lightningrun recipe")
    definitions = whole["$defs"]
    rooms = {model.__module__ for model in models}
    described = {model.__name__: _descriptions(model) for model in _below(Config) if model.__module__ in rooms}
    for name, definition in definitions.items():
        _describe(definition, described.get(definition.get("title", name), {}))
    root = definitions.pop(references[(Recipe, "validation")]["$ref"].rsplit("/", 1)[-1])
    stages = {spec.type: references[(spec.config, "validation")] for spec in specs.values()}
    root["properties"]["stages"] = {
        "type": "object",
        "description": "Run top to bottom; ids are names for overrides.",
        "additionalProperties": {
            "anyOf": list(stages.values()),
            "discriminator": {"propertyName": "type", "mapping": {t: ref["$ref"] for t, ref in stages.items()}},
        },
    }
    root["properties"]["extends"] = {
        "description": "Recipes to build on, merged left to right; paths relative to this file.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for name in ("PromptConfig", "SplitConfig"):  # or its bare text, or its path
        definitions[name] = {"anyOf": [{"type": "string"}, definitions[name]]}
    definitions.pop("StageConfig", None)
    for definition in (root, *definitions.values()):
        _loosen(definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _loosen(schema: Any) -> None:
    if isinstance(schema, list):
        for entry in schema:
            _loosen(entry)
    if not isinstance(schema, dict):
        return
    schema.pop("required", None)
    if "const" in schema:
        schema.pop("enum", None)  # some versions of pydantic write both
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]  # and some do not write what goes without saying
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")
    for key, inner in list(schema.items()):
        if key == "properties":
            for name, value in inner.items():
                _loosen(value)
                inner[name] = value if name in ("type", "version", "extends") else _or_interpolation(value)
        elif key in ("additionalProperties", "items") and isinstance(inner, dict):
            _loosen(inner)
            schema[key] = _or_interpolation(inner)
        elif key in ("anyOf", "prefixItems", "$defs"):
            _loosen(inner)


def _or_interpolation(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, or an interpolation where it does not take any text already."""
    if not schema or _takes_text(schema) or any(_takes_text(branch) for branch in schema.get("anyOf", ())):
        return schema
    outer: dict[str, Any] = {key: schema.pop(key) for key in ("title", "description", "default") if key in schema}
    branches = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    return {**outer, "anyOf": [*branches, INTERPOLATION]}


def _takes_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()


def _below(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *(inner for child in model.__subclasses__() for inner in _below(child))]


def _describe(definition: dict[str, Any], words: Mapping[str, str]) -> None:
    for name, schema in definition.get("properties", {}).items():
        schema.pop("title", None)
        if name in words:
            schema["description"] = words[name]


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field -> the string literal written below it, its bases' included.

    pydantic can do this too, at class creation, which would make every start of the program read its own source.
    """
    words: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            text = below.value if isinstance(below, ast.Expr) else None
            target = field.target if isinstance(field, ast.AnnAssign) else None
            if isinstance(text, ast.Constant) and isinstance(target, ast.Name):
                words[target.id] = " ".join(str(text.value).split()).replace("``", "`")
    return words
