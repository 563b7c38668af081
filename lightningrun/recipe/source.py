"""YAML text to plain values, with the place of every key and value.

The C parser's events are read one at a time, so that whatever makes a document hostile (a bomb of aliases, a document
nested without end, a tag that would run code) is refused as soon as it is seen, before anything large is built.
Scalars follow the core schema of YAML 1.2: ``yes``, ``on`` and ``12:30`` are text, ``010`` is ten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from lightningrun.errors import Problem

MAX_BYTES = 1 << 20
MAX_NODES = 5_000
"""Keys and values of one document, those repeated by aliases counted each time."""
MAX_DEPTH = 50

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
_NANS = frozenset((".nan", ".NaN", ".NAN"))


def core_scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar under the YAML 1.2 core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if not (text[0].isdecimal() or text[0] in "+-.") or len(text) > 300:
        return text
    if _INT.fullmatch(text):
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return float("-inf") if text.startswith("-") else float("inf")
    return float("nan") if text in _NANS else text


class Mark(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


_NOWHERE = Mark(0, 0)


@dataclass(slots=True)
class Node:
    """A value and its place. ``value`` is a scalar, a list of nodes, or a dict of key -> (mark of the key, node)."""

    value: Any
    mark: Mark
    size: int = 1
    depth: int = 1

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, (_, node) in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class Refused(Exception):
    """The text cannot be read any further; holds the one problem that ends it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_text(path: Path, file: str, limit: int = MAX_BYTES, what: str = "recipe") -> str:
    """The UTF-8 text of ``path``. Raises ``Refused``: absent, unreadable, over ``limit`` bytes, not UTF-8."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise Refused(Problem(f"cannot read this {what}: {error.strerror}", file)) from None
    if len(data) > limit:
        raise Refused(Problem(f"this {what} is larger than {limit >> 10} KiB", file))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise Refused(Problem("not UTF-8", file, line, column, "save it as UTF-8")) from None


def parse(text: str, file: str, problems: list[Problem], *, located: bool = True) -> Node:
    """The one document of ``text``.

    What can be passed over (a duplicate key, a tag) is added to ``problems``; raises ``Refused`` for the rest. ``file``
    is what messages call the text; ``located``: whether places in it mean anything to a person.
    """
    loader = None
    try:
        loader = _Loader(text)
        return _Builder(loader, file, problems, located).document()
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        message = f"not YAML: {error.problem or error.context}"
        if error.problem and error.context:
            message += f" ({error.context})"
        mark = (at.line + 1, at.column + 1) if at and located else _NOWHERE
        raise Refused(Problem(message, file, *mark)) from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", text)
        if found is None:
            raise Refused(Problem(f"not YAML: {str(error).splitlines()[0]}", file)) from None
        line = text.count("\n", 0, found.start()) + 1
        column = found.start() - text.rfind("\n", 0, found.start())
        mark = (line, column) if located else _NOWHERE
        raise Refused(Problem(f"not YAML: the character {found.group()!r} is not allowed", file, *mark)) from None
    finally:
        if loader is not None:
            loader.dispose()


class _Builder:
    """Nodes from events. It recurses no deeper than ``MAX_DEPTH``, which is checked on the way down."""

    def __init__(self, loader: Any, file: str, problems: list[Problem], located: bool) -> None:
        self.loader = loader
        self.located = located
        self.file = file
        self.problems = problems
        self.anchors: dict[str, Node | None] = {}
        """None for a value whose end has not been seen."""
        self.nodes = 0

    def document(self) -> Node:
        root = None
        while not isinstance(event := self.loader.get_event(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self._refuse(
                    "a second YAML document", self._mark(event), "a recipe is one document: take the '---' out"
                )
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 1)
        return root or Node(None, Mark(1, 1) if self.located else _NOWHERE)

    def _node(self, event: Any, level: int, *, is_key: bool = False) -> Node:
        mark = self._mark(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), mark, level)
        self._count(1, mark)
        if event.tag is not None:
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")[:80]
            self._note(f"tag '{shown}' is not allowed", mark, "write a plain value; quote it to make it text")
        if isinstance(event, yaml.ScalarEvent):
            node = Node(event.value if is_key or event.style else core_scalar(event.value), mark)
        else:
            node = self._collection(event, mark, level)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _collection(self, event: Any, mark: Mark, level: int) -> Node:
        if level > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", mark)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        mapping = isinstance(event, yaml.MappingStartEvent)
        node = Node({} if mapping else [], mark)
        while not isinstance(event := self.loader.get_event(), yaml.CollectionEndEvent):
            inner = self._node(event, level + 1, is_key=mapping)
            if mapping:
                key, inner = inner, self._node(self.loader.get_event(), level + 1)
                self._put(node.value, key, inner)
                node.size += key.size
            else:
                node.value.append(inner)
            node.size += inner.size
            node.depth = max(node.depth, inner.depth + 1)
        return node

    def _alias(self, anchor: str, mark: Mark, level: int) -> Node:
        target = self.anchors.get(anchor)
        if target is None:
            why = "stands inside itself" if anchor in self.anchors else f"has no '&{anchor}' before it"
            self._refuse(f"'*{anchor}' {why}", mark)
        self._count(target.size, mark)
        if level + target.depth - 1 > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", mark)
        return Node(target.value, mark, target.size, target.depth)

    def _put(self, mapping: dict[str, tuple[Mark, Node]], key: Node, node: Node) -> None:
        name = str(key.value)
        if isinstance(key.value, (dict, list)) or key.value in (None, ""):
            self._note("a key must be a plain word", key.mark)
        elif name in mapping:
            self._note(f"duplicate key '{name}'", key.mark, f"the first is on line {mapping[name][0].line}")
        else:
            mapping[name] = (key.mark, node)

    def _count(self, nodes: int, mark: Mark) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self._refuse(f"more than {MAX_NODES} values, aliases included", mark)

    def _note(self, message: str, mark: Mark, hint: str = "") -> None:
        self.problems.append(Problem(message, self.file, *mark, hint))

    def _refuse(self, message: str, mark: Mark, hint: str = "") -> NoReturn:
        raise Refused(Problem(message, self.file, *mark, hint))

    def _mark(self, event: Any) -> Mark:
        return Mark(event.start_mark.line + 1, event.start_mark.column + 1) if self.located else _NOWHERE
