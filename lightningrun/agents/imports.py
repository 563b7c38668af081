"""Which packages a module imports, read from its syntax tree without running any of it.

Walks through the user's own modules and lists the installed packages that they import, so that the fork server can load
those once for all slots. The user's modules are never imported by the server: they may build clients while importing.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator

_INSTALLED = tuple(
    os.path.realpath(folder) + os.sep
    for folder in {
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)

_LOADS_LATER = {
    "openai": ("openai.resources.chat.completions", "httpcore", "h11", "certifi", "encodings.idna"),
}
"""Packages that put off imports of their own until first use: 0.3 s of CPU that each slot would pay for itself."""


def packages_of(entrypoints: Iterable[str]) -> list[str]:
    """Dotted names of installed modules that the entrypoints' modules import, directly or through local modules."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    queue = [entrypoint.rpartition(":")[0] for entrypoint in entrypoints]
    while queue:
        where = queue.pop(0)
        if where in seen:
            continue
        seen.add(where)
        path = where if where.endswith(".py") else _source(where)
        folders = [os.path.dirname(os.path.abspath(path)), *sys.path] if path else sys.path
        for name in _imports(path, "" if where.endswith(".py") else where) if path else ():
            top = name.partition(".")[0]
            spec = importlib.machinery.PathFinder.find_spec(top, folders) if top != "lightningrun" else None
            if top in sys.builtin_module_names or top == "lightningrun" or spec is None:
                continue
            if _installed(spec):
                found[name] = None
            elif where.endswith(".py") and spec.origin and name == top:
                queue.append(spec.origin)
            else:
                queue += _with_parents(name)
    tops = {name.partition(".")[0] for name in found}
    return [*found, *(later for top in tops for later in _LOADS_LATER.get(top, ()))]


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _installed(spec: importlib.machinery.ModuleSpec) -> bool:
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    return spec.origin == "frozen" or any(os.path.realpath(place).startswith(_INSTALLED) for place in places if place)


def _source(name: str) -> str | None:
    """The file of a local module, found without importing its parents; None if it is not a local source file."""
    folders: list[str] | None = None
    spec = None
    for part in name.split("."):  # one part at a time: a dotted name would ask for its parent in sys.modules
        spec = importlib.machinery.PathFinder.find_spec(part, folders)
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or [])
    return spec.origin if spec and spec.origin and spec.origin.endswith(".py") and not _installed(spec) else None


def _imports(path: str, module: str) -> Iterator[str]:
    try:
        with open(path, "rb") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return  # the slot's own import will say what is wrong
    package = module if os.path.basename(path) == "__init__.py" else module.rpartition(".")[0]
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            if stem:
                yield stem
            yield from (f"{stem}.{alias.name}" if stem else alias.name for alias in node.names)
        else:
            todo += ast.iter_child_nodes(node)
