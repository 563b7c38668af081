"""Filling in ``${...}`` with OmegaConf, with every failure located and nothing that can run away.

OmegaConf resolves an interpolation anew each time it is read. So what an interpolation would expand to is weighed
before it is resolved: doubling ``${a}${a}`` thirty times over, or a circle, is refused instead of computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from lightningrun.recipe.suggest import did_you_mean
from lightningrun.recipe.trees import KeyPath, dotted, get, leaves, replaced, resolved_path

_MAX_WEIGHT = 1 << 20
_EVALUATION = 1000
"""Weight of resolving one text, in characters: its time (about 0.3 ms), put as a length."""
_MAX_CHAIN = 20
_WORD = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?")
_RELATIVE = re.compile(r"\$\{\s*(\.+)([\w.-]*)")
_PLAIN_REFERENCE = re.compile(r"\$\{\s*([A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}")
_OPENED = re.compile(r"(\\*)\$\{")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")

Note = Callable[[KeyPath, str, str], None]


def escape(text: str) -> str:
    """``text`` written so that interpolation gives it back as it is."""
    return _OPENED.sub(lambda found: found[1] * 2 + "\\${", text)


def resolve(tree: dict[str, Any], note: Note) -> tuple[dict[str, Any], set[KeyPath]]:
    """``tree`` with every interpolation filled in, and the paths where that failed (their text is left as it is)."""
    texts = {path: text for path, text in leaves(tree) if isinstance(text, str) and "${" in text}
    if not texts:
        return tree, set()
    weigher = _Weigher(tree, texts, note)
    if weigher.too_heavy():
        return tree, set(texts)
    failed = weigher.bad
    copied = {path: _copied(text, tree) for path, text in texts.items()}
    if all(value is not None for value in copied.values()):
        return replaced(tree, copied), set()
    readable = replaced(tree, dict.fromkeys(failed, ""))
    config = _config(readable, texts, failed, note)
    noted: list[KeyPath] = [*failed]

    def note_once(path: KeyPath, message: str, hint: str) -> None:
        noted.append(path)
        note(path, message, hint)

    values = {}
    for path, text in texts.items():
        values[path] = text if path in failed else _value(config, path, text, tree, failed, note_once)
    for path in failed if not noted else ():
        note(path, f"{dotted(path)}: its ${{...}} cannot be filled in", "")
    return replaced(tree, values), failed


def _copied(text: str, tree: dict[str, Any]) -> Any:
    """What a text that is one plain reference to a finished value becomes, else None.

    Most recipes interpolate nothing else, and importing OmegaConf would double the time they take to load.
    """
    found = _PLAIN_REFERENCE.fullmatch(text)
    if found is None or not _exists(tree, found[1]):
        return None
    value = get(tree, found[1].split("."))
    return None if any(isinstance(leaf, str) and "${" in leaf for _, leaf in leaves(value)) else replaced(value, {})


def _config(tree: dict[str, Any], texts: dict[KeyPath, str], failed: set[KeyPath], note: Note) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.create(tree)
    except OmegaConfBaseException:
        for path, text in texts.items():
            try:
                OmegaConf.create({"text": text if path not in failed else ""})
            except OmegaConfBaseException:
                failed.add(path)
                note(path, f"{dotted(path)}: '{_short(text)}' is not a complete ${{...}}", "write \\${ for a plain ${")
        return OmegaConf.create(replaced(tree, dict.fromkeys(failed, "")))


def _value(config: Any, path: KeyPath, text: str, tree: Any, failed: set[KeyPath], note: Note) -> Any:
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = config
        for key in path:
            node = node[key]
        return OmegaConf.to_container(node, resolve=True) if isinstance(node, Container) else node
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        failed.add(path)
        missing = [name for name in _PLAIN_REFERENCE.findall(text) if not _exists(tree, name)]
        for name in missing:
            known = [dotted(other) for other in _all_paths(tree)]
            note(path, f"${{{name}}}: no such key", did_you_mean(name, known) if len(known) > 8 else "")
        if not missing and not _blames_another(text, tree):
            found = _INTERPOLATION.search(text)
            note(path, f"{found.group() if found else dotted(path)}: {_reason(error)}", "")
        return text


def _reason(error: Exception) -> str:
    reason = str(error).splitlines()[0].strip() if str(error) else type(error).__name__
    unknown = re.fullmatch(r"Unsupported interpolation type (\S+)", reason)
    variable = re.search(r"Environment variable '([^']*)' not found", reason)
    if variable:
        return f"the environment has no '{variable[1]}'"
    return f"no resolver {unknown[1]}" if unknown else reason[:200]


def _blames_another(text: str, tree: Any) -> bool:
    """Whether ``text`` fails only because a text that it reads fails, which is reported there."""
    references = _PLAIN_REFERENCE.findall(text)
    texts = [value for name in references for _, value in leaves(get(tree, tuple(name.split("."))))]
    return len(references) == text.count("${") and any(isinstance(t, str) and "${" in t for t in texts)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _exists(tree: Any, name: str) -> bool:
    return resolved_path(tree, name.split(".")) is not None


def _all_paths(tree: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield (*path, key)
            yield from _all_paths(inner, (*path, key))


class _Weigher:
    """What each text would expand to, at most, from what it names."""

    def __init__(self, tree: dict[str, Any], texts: dict[KeyPath, str], note: Note) -> None:
        self.tree = tree
        self.texts = texts
        self.note = note
        self.weights: dict[KeyPath, float] = {}
        self.open: set[KeyPath] = set()
        self.bad: set[KeyPath] = set()
        """Texts that lead back to themselves."""

    def too_heavy(self) -> bool:
        """Whether nothing should be resolved at all."""
        total = 0.0
        for path in self.texts:
            total += self._weigh(path)
            if total > _MAX_WEIGHT:
                self.note(path, f"{dotted(path)}: its ${{...}} expand to too much", "")
                return True
        return False

    def _weigh(self, path: KeyPath) -> float:
        text = self.texts.get(path)
        if text is None:
            return float(len(str(get(self.tree, path))))
        if path in self.open:
            if path not in self.bad:
                self.bad.add(path)
                self.note(path, f"{dotted(path)}: its ${{...}} leads back to itself", "")
            return 0.0
        if len(self.open) >= _MAX_CHAIN:
            return float("inf")
        if path not in self.weights:
            self.open.add(path)
            below = [leaf for named in self._named(path, text) for leaf, _ in leaves(get(self.tree, named), named)]
            self.weights[path] = _EVALUATION + len(text) + sum(self._weigh(leaf) for leaf in below)
            self.open.discard(path)
        return self.weights[path]

    def _named(self, path: KeyPath, text: str) -> Iterator[KeyPath]:
        """Every path of the tree that something inside ``${...}`` may name; an escaped one names nothing."""
        text = _OPENED.sub(lambda found: "" if len(found[1]) % 2 else found[0], text)
        if re.search(r"\$\{\s*\$\{", text):
            yield ()
        relative = [(*path[: -len(dots)], *rest.split(".")) for dots, rest in _RELATIVE.findall(text)]
        absolute = [word.split(".") for inside in _insides(text) for word in _WORD.findall(inside)]
        for wanted in (*relative, *absolute):
            found = resolved_path(self.tree, [key for key in wanted if key != ""])
            if found is not None:
                yield found


def _insides(text: str) -> Iterator[str]:
    """The stretches of ``text`` inside braces, outermost ones whole."""
    depth, start, position = 0, 0, 0
    while position < len(text):
        if text.startswith("${", position):
            if depth == 0:
                start = position + 2
            depth += 1
            position += 2
            continue
        if text[position] == "}" and depth:
            depth -= 1
            if depth == 0:
                yield text[start:position]
        position += 1
    if depth:
        yield text[start:]
