"""YAML text to plain values, with the place of every key and value.

The C parser's events are read one at a time, so that whatever makes a document hostile (a bomb of aliases, a document
nested without end, a tag that would run code) is refused as soon as it is seen, before anything large is built.
Scalars follow the core schema of YAML 1.2: ``yes``, ``on`` and ``12:30`` are text, ``010`` is ten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


def parse(text: str, file: str, problems: list[Problem]) -> Node:
    """The one document of ``text``.

    What can be passed over (a duplicate key, a tag) is added to ``problems``; raises ``Refused`` for the rest. ``file``
    is what messages call the text.
    """
    loader = None
    try:
        loader = _Loader(text)
        return _Builder(file, problems).build(loader)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        message = f"not YAML: {error.problem or error.context}"
        if error.problem and error.context:
            message += f" ({error.context})"
        raise Refused(Problem(message, file, at.line + 1 if at else 0, at.column + 1 if at else 0)) from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise Refused(_unreadable(text, file, error)) from None
    finally:
        if loader is not None:
            loader.dispose()


def _unreadable(text: str, file: str, error: Exception) -> Problem:
    found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", text)
    if found is None:
        return Problem(f"not YAML: {str(error).splitlines()[0]}", file)
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    return Problem(f"not YAML: the character {found.group()!r} is not allowed", file, line, column)


class _Open:
    """A mapping or sequence whose end has not been seen."""

    def __init__(self, mark: Mark, anchor: str | None, mapping: bool) -> None:
        self.node = Node({} if mapping else [], mark)
        self.anchor = anchor
        self.mapping = mapping
        self.key: Node | None = None


class _Builder:
    """Nodes from events, with an explicit stack: a deep document cannot exhaust the interpreter's."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.anchors: dict[str, Node] = {}
        self.stack: list[_Open] = []
        self.nodes = 0
        self.root: Node | None = None

    def build(self, loader: Any) -> Node:
        while True:
            event = loader.get_event()
            mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event, mark)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._start(event, mark)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event.anchor, mark)
            elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
                self._refuse("a second YAML document", mark, "a recipe is one document: take the '---' out")
            elif isinstance(event, yaml.StreamEndEvent):
                return self.root or Node(None, Mark(1, 1))

    def _refuse(self, message: str, mark: Mark, hint: str = "") -> None:
        raise Refused(Problem(message, self.file, mark.line, mark.column, hint))

    def _note(self, message: str, mark: Mark, hint: str = "") -> None:
        self.problems.append(Problem(message, self.file, mark.line, mark.column, hint))

    def _tag(self, tag: str | None, mark: Mark) -> None:
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")[:80]
            self._note(f"tag '{shown}' is not allowed", mark, "write a plain value; quote it to make it text")

    def _scalar(self, event: Any, mark: Mark) -> None:
        self._tag(event.tag, mark)
        plain = not event.style
        is_key = bool(self.stack) and self.stack[-1].mapping and self.stack[-1].key is None
        node = Node(event.value if is_key or not plain else core_scalar(event.value), mark)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self._place(node)

    def _start(self, event: Any, mark: Mark) -> None:
        self._tag(event.tag, mark)
        if len(self.stack) >= MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", mark)
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        self.stack.append(_Open(mark, event.anchor, isinstance(event, yaml.MappingStartEvent)))

    def _end(self) -> None:
        done = self.stack.pop()
        if done.anchor is not None:
            self.anchors[done.anchor] = done.node
        self._place(done.node)

    def _alias(self, anchor: str | None, mark: Mark) -> None:
        target = self.anchors.get(anchor or "")
        if target is None:
            if any(frame.anchor == anchor for frame in self.stack):
                self._refuse(f"'*{anchor}' stands inside itself", mark)
            self._refuse(f"'*{anchor}' has no '&{anchor}' before it", mark)
        else:
            self._place(Node(target.value, mark, target.size, target.depth))

    def _place(self, node: Node) -> None:
        self.nodes += 1
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        if frame.mapping and frame.key is None:
            frame.key = node
            return
        if frame.mapping:
            assert frame.key is not None
            self._put(frame, frame.key, node)
            frame.key = None
        else:
            frame.node.value.append(node)
        self._grow(frame.node, node)

    def _put(self, frame: _Open, key: Node, node: Node) -> None:
        if isinstance(key.value, (dict, list)) or key.value in (None, ""):
            self._note("a key must be a plain word", key.mark)
            return
        name = str(key.value)
        if name in frame.node.value:
            first = frame.node.value[name][0]
            self._note(f"duplicate key '{name}'", key.mark, f"the first is on line {first.line}")
            return
        frame.node.value[name] = (key.mark, node)

    def _grow(self, parent: Node, child: Node) -> None:
        parent.size += child.size + 1
        parent.depth = max(parent.depth, child.depth + 1)
        if parent.size > MAX_NODES or self.nodes > MAX_NODES:
            self._refuse(f"more than {MAX_NODES} values, aliases included", child.mark)
        if parent.depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH} levels", child.mark)
