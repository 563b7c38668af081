"""The JSON Schema of recipes, for editors: completion, descriptions and red lines while a recipe is written.

    python -m lightningrun.recipe.schema -o lightningrun.schema.json

It is looser than the loader in two ways, because an editor sees one file before composition: no key is required (a
recipe may extend another that has it), and ``${...}`` may stand wherever a value does.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lightningrun.recipe.checks import StageType
from lightningrun.recipe.model import Recipe

INTERPOLATION = {"type": "string", "pattern": r"\$\{.+\}"}


def json_schema(specs: Mapping[str, StageType]) -> dict[str, Any]:
    """The schema, with the stage types in ``specs`` told apart by their ``type``."""
    models: list[type[BaseModel]] = [Recipe, *(spec.config for spec in specs.values())]
    references, whole = models_json_schema([(model, "validation") for model in models], title="lightningrun recipe")
    definitions = whole["$defs"]
    described = {model.__name__: _descriptions(model) for model in _all_models(models)}
    for name, definition in definitions.items():
        _describe(definition, described.get(definition.get("title", name), {}))
    root = definitions.pop(_name(references[(Recipe, "validation")]))
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
    _accept_text(definitions.get("PromptConfig"), definitions)
    definitions.pop("StageConfig", None)
    for definition in (root, *definitions.values()):
        _loosen(definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rsplit("/", 1)[-1]


def _accept_text(prompt: dict[str, Any] | None, definitions: dict[str, Any]) -> None:
    """A prompt may be written as its bare text."""
    if prompt is not None:
        definitions["PromptConfig"] = {"anyOf": [{"type": "string"}, prompt]}


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
    if not schema or (schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()):
        return schema
    if any(_takes_text(branch) for branch in schema.get("anyOf", ())):
        return schema
    outer: dict[str, Any] = {key: schema.pop(key) for key in ("title", "description", "default") if key in schema}
    branches = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
    return {**outer, "anyOf": [*branches, INTERPOLATION]}


def _takes_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "string" and not {"enum", "const", "pattern"} & schema.keys()


def _all_models(roots: list[type[BaseModel]]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    queue: list[type[BaseModel]] = list(roots)
    modules = {inspect.getmodule(root) for root in roots}
    for module in modules:
        queue += [m for _, m in inspect.getmembers(module, inspect.isclass) if issubclass(m, BaseModel)]
    for model in queue:
        if model not in found:
            found.append(model)
    return found


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


def main(argv: list[str] | None = None) -> None:
    """Write the schema of all known stage types."""
    parser = argparse.ArgumentParser(description="Write the JSON Schema of recipes.")
    parser.add_argument("-o", "--output", type=Path, help="file to write; default: standard output")
    arguments = parser.parse_args(argv)
    stages = importlib.import_module("lightningrun.stages")
    text = json.dumps(json_schema(stages.specs()), indent=2) + "\n"
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        arguments.output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
