"""Small edits instead of whole rewrites: search and replace, applied exactly, one after the other.

The form asked for is the one that coding models know (Aider's edit blocks). JSON and XML-like pairs are taken too, and
a whole prompt where there are no edits at all. An edit whose search text is not there, or there more than once, is
dropped and said to be; if none is left, the proposal has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lightningrun.stages.apo.replies import BadReply, parse_reply, refused

_MARKED = re.compile(
    r"^[ \t]*<{3,9}[ \t]*(?:SEARCH|ORIGINAL|OLD)?[ \t]*\n(?P<search>.*?)"
    r"^[ \t]*={3,9}[ \t]*\n(?P<replace>.*?)^[ \t]*>{3,9}",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_TAGGED = re.compile(
    r"<(search|old|find)>(?P<search>.*?)</\1>\s*<(replace|new)>(?P<replace>.*?)</\3>", re.DOTALL | re.IGNORECASE
)
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FIRST_EDIT = re.compile(
    r"^[ \t]*<{3,9}[ \t]*(SEARCH|ORIGINAL|OLD)|<(search|old|find)>|^```", re.MULTILINE | re.IGNORECASE
)
_KEYS = (("search", "replace"), ("old", "new"), ("find", "replace"), ("before", "after"))

EDIT_FORM = """\
Then give small edits, not the whole prompt. Each is a block like this, whose SEARCH lines are copied exactly from the \
prompt and stand there only once; an empty SEARCH adds the text at the end, an empty REPLACE deletes:
<<<<<<< SEARCH
the words as they stand now
=======
the words that take their place
>>>>>>> REPLACE"""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``search`` by ``replace`` in the prompt ``name``; without a name, in whichever one has it."""

    name: str
    search: str
    replace: str


def edit_form(current: Mapping[str, str]) -> str:
    """How edits are to be given."""
    if len(current) == 1:
        return EDIT_FORM
    return f"{EDIT_FORM}\nAbove each block write a line with nothing but the name of its prompt: {', '.join(current)}"


def parse_edits(
    reply: str, current: Mapping[str, str], *, cut_off: bool = False
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The new texts of the prompts that change, and what was dropped and why. Raises BadReply if nothing is left."""
    reply = reply.replace("\r\n", "\n")
    edits = _edits(reply, current)
    if not edits:
        if reply.strip() and refused(reply):
            raise BadReply("the coach refused")
        if _MARKED.search(reply + "\n>>>"):
            raise BadReply("the coach's edit has no end")
        return parse_reply(reply, current, cut_off=cut_off, bare=False), ()
    texts, dropped = apply(edits, current)
    if not texts:
        raise BadReply("; ".join(dropped) if dropped else "the coach's edits change nothing")
    return texts, dropped


def apply(edits: list[Edit], current: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The texts that differ once all edits that can be applied are, and why the others could not be."""
    texts, dropped = dict(current), list[str]()
    for number, edit in enumerate(edits, 1):
        places = [edit.name] if edit.name else [name for name in texts if edit.search.strip("\n") in texts[name]]
        if not edit.search.strip():
            places = [edit.name] if edit.name else list(texts)
        hits = sum(_count(texts[name], edit.search) for name in places)
        if len(places) == 1 and hits == 1:
            texts[places[0]] = _replaced(texts[places[0]], edit)
        else:
            why = "is not in the prompt" if not hits else f"is there {hits} times"
            dropped.append(f"edit {number} was dropped: {_shown(edit.search)} {why}")
    return {name: text for name, text in texts.items() if text != current[name]}, tuple(dropped)


def _count(text: str, search: str) -> int:
    return text.count(search.strip("\n")) if search.strip() else 1


def _replaced(text: str, edit: Edit) -> str:
    if not edit.search.strip():
        return f"{text.rstrip()}\n{edit.replace.strip(chr(10))}"
    return text.replace(edit.search.strip("\n"), edit.replace.strip("\n"))


def _shown(search: str) -> str:
    words = " ".join(search.split())
    return repr(words if len(words) <= 60 else f"{words[:57]}...")


def _edits(reply: str, current: Mapping[str, str]) -> list[Edit]:
    told = _from_json(reply, current)
    if told:
        return told
    found = list(_MARKED.finditer(reply)) or list(_TAGGED.finditer(reply))
    ends = [0, *(match.end() for match in found)]
    return [
        Edit(_named(reply[ends[i] : match.start()], current), match["search"], match["replace"])
        for i, match in enumerate(found)
    ]


def _named(before: str, current: Mapping[str, str]) -> str:
    """The prompt whose name stands in the last lines above a block; the only one needs no name."""
    if len(current) == 1:
        return next(iter(current))
    for line in reversed([line for line in before.splitlines() if line.strip(" `>#*:_\t")][-2:]):
        named = [name for name in current if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line)]
        if len(named) == 1:
            return named[0]
    return ""


def _from_json(reply: str, current: Mapping[str, str]) -> list[Edit]:
    for text in (*reversed(_FENCED.findall(reply)), reply.strip()):
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue
        told = value.get("edits", [value]) if isinstance(value, dict) else value
        edits = (
            [edit for one in told if isinstance(one, dict) for edit in _edit(one, current)]
            if isinstance(told, list)
            else []
        )
        if edits:
            return edits
    return []


def _edit(one: Mapping[str, object], current: Mapping[str, str]) -> list[Edit]:
    only = next(iter(current)) if len(current) == 1 else ""
    name = str(one.get("prompt") or one.get("name") or "")
    for search, replace in _KEYS:
        old, new = one.get(search), one.get(replace)
        if isinstance(old, str) and isinstance(new, str):
            return [Edit(name if name in current else only, old, new)]
    return []


def prose(reply: str) -> str:
    """What the coach said before its first edit."""
    first = _FIRST_EDIT.search(reply)
    return reply[: first.start()].strip() if first else reply.strip()
