"""A resolved recipe as YAML that reads back as the same values under the YAML 1.2 core schema."""

from __future__ import annotations

from typing import Any

import yaml

from lightningrun.recipe.interpolate import escape
from lightningrun.recipe.source import core_scalar

_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    text = escape(value)
    style = None
    if "\n" in text and not any(line.endswith((" ", "\t")) for line in text.split("\n")):
        style = "|"
    elif text and not isinstance(core_scalar(text), str):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _float(dumper: Any, value: float) -> Any:
    text = repr(value)
    if "." not in text:
        text = text.replace("e", ".0e")  # the form that the emitter, too, takes for a float, so that it adds no tag
    if value != value or value in (float("inf"), float("-inf")):
        text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[text]
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _float)


def to_yaml(value: dict[str, Any]) -> str:
    """``value`` in its own order of keys; multi-line texts as blocks."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
