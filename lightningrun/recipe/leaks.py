"""No secret stands in a recipe: a key is named (``api_key_env: NAME``), never written out and never interpolated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lightningrun.recipe.trees import KeyPath, dotted, leaves
from lightningrun.secrets import Masker, is_secret_name

_KEY_LIKE = re.compile(r"(?:^|[_-]|(?<=[a-z]))(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_ENV_REFERENCE = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)")
_NAMED = "name its environment variable instead, as in api_key_env: NAME"

Note = Callable[[KeyPath, str, str], None]


def is_key_like(name: str) -> bool:
    """Whether a key of this name is taken to hold a secret (``api_key``, ``token``; not ``max_tokens``)."""
    return _KEY_LIKE.search(name) is not None


def looks_secret(value: str) -> bool:
    """Whether a text could be a key rather than a word: long, no spaces, letters and digits mixed."""
    mixed = re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)
    return len(value) >= 12 and not re.search(r"[\s$]", value) and bool(mixed)


def find(tree: dict[str, Any], note: Note, masker: Masker) -> set[KeyPath]:
    """Note every secret in the composed tree, without its value; returns their paths."""
    found: set[KeyPath] = set()
    for path, value in leaves(tree):
        if not isinstance(value, str):
            continue
        names = [part for part in path if isinstance(part, str)]
        key_like = bool(names) and is_key_like(names[-1])
        message = ""
        if "${" in value:
            variables = _ENV_REFERENCE.findall(value)
            if variables and (key_like or any(map(is_secret_name, variables))):
                message = "a secret is never interpolated into a recipe"
        elif (key_like and looks_secret(value)) or masker.mask(value) != value:
            message = "a secret must not stand in a recipe"
        if message:
            found.add(path)
            note(path, f"{dotted(path)}: {message}", _NAMED)
    return found


def find_leaked(before: dict[str, Any], after: dict[str, Any], note: Note, masker: Masker) -> set[KeyPath]:
    """Note every secret that filling in ``${...}`` brought into the tree."""
    found: set[KeyPath] = set()
    written = dict(leaves(before))
    for path, value in leaves(after):
        if isinstance(value, str) and written.get(path) != value and masker.mask(value) != value:
            found.add(path)
            note(path, f"{dotted(path)}: a secret is never interpolated into a recipe", _NAMED)
    return found
