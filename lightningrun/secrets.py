"""Masking of every value that must not leave: keys held by the environment, and whatever has the shape of a key.

What it covers: the values (8 characters or more) of the environment variables that a recipe names and of those named
like secrets, as they are and as JSON or a URL writes them; and well-known shapes of keys. What it cannot: a secret
that a program has changed (cut, encoded otherwise) before it reaches a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"
MIN_LENGTH = 8
"""A shorter value is as good as a word: masking it would mangle texts and protect nothing."""

_SECRET_NAME = re.compile(r"(KEY(?!BOARD)|TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL)(?!.*_(FILE|PATH|DIR)$)", re.IGNORECASE)

# Each shape: a literal that must be in the text for the expression to be tried at all, and the expression. They begin
# with a literal and repeat only bounded or single character classes, so that a search is linear in the text.
_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("sk-", re.compile(r"sk-(?<![A-Za-z0-9]sk-)(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{16,}")),
    ("earer ", re.compile(r"(?<=[Bb]earer )(?=[A-Za-z._~+/=-]{0,64}[0-9])[A-Za-z0-9._~+/=-]{8,}")),
    ("AKIA", re.compile(r"AKIA[0-9A-Z]{16}")),
    ("gh", re.compile(r"gh[pousr]_[A-Za-z0-9]{20,}")),
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9_]{20,}")),
    ("xox", re.compile(r"xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    ("AIza", re.compile(r"AIza[0-9A-Za-z_-]{30,}")),
    ("hf_", re.compile(r"hf_[A-Za-z0-9]{24,}")),
    ("://", re.compile(r"(?<=://)([^/\s:@\"'\\]{0,128}):(?!\*\*\*@)[^/\s@\"'\\]{1,256}@")),
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a secret."""
    return _SECRET_NAME.search(name) is not None


class Masker:
    """Replaces secrets by ``***``. Time is linear in the text; a text without secrets is returned as it is."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = sorted({v for v in values if len(v) >= MIN_LENGTH}, key=lambda v: (-len(v), v))
        forms = {form for value in self._values for form in _forms(value)}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], names: Iterable[str] = ()) -> Masker:
        """Masks the values of the variables ``names`` and of all variables that are named like secrets."""
        wanted = {*names, *(name for name in environ if is_secret_name(name))}
        return cls(environ[name] for name in wanted if name in environ)

    def mask(self, text: str) -> str:
        """``text`` without secrets. A JSON text stays JSON."""
        masked = self._replace(text)
        if masked == text or text[:1] not in ('{"["'):
            return masked
        try:
            json.loads(masked)
            return masked
        except ValueError:
            pass
        try:
            value = json.loads(text)
        except ValueError:
            return masked
        # The secret looked like part of the JSON itself (a number, half an escape): mask inside the strings instead.
        return json.dumps(self.mask_json(value), separators=(",", ":"), ensure_ascii=False)

    def mask_json(self, value: Any) -> Any:
        """A copy of a JSON value without secrets, keys included; a number that is a secret becomes text."""
        if isinstance(value, str):
            return self._replace(value)
        if isinstance(value, Mapping):
            return {self._replace(str(key)): self.mask_json(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mask_json(inner) for inner in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            text = str(value)
            return value if self._replace(text) == text else MASK
        return value

    def _replace(self, text: str) -> str:
        while True:
            before = text
            for form in self._forms:
                if form in text:
                    text = text.replace(form, MASK)
            for literal, shape in _SHAPES:
                if literal in text:
                    text = shape.sub(_shorten, text)
            if text == before:
                return text


def _shorten(found: re.Match[str]) -> str:
    return f"{found[1]}:{MASK}@" if found.re.groups else MASK


def _forms(value: str) -> Iterable[str]:
    """The value, and how JSON (once and twice, as in a body quoted in a log) and URLs write it."""
    yield value
    for ascii_only in (True, False):
        once = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
    yield quote(value.encode("utf-8", "surrogateescape"), safe="")
