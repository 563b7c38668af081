"""Taking prompts out of a coach's answer, in whatever form it came.

Tried in this order, for each prompt by name: a field of a JSON object, an XML-like tag around everything, the last
fenced block, an XML-like tag, the bare text. Prose around a marked prompt is dropped. No usable prompt is a
``BadReply``: a failed proposal, never a candidate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_REPLY_CHARS = 200_000
"""Longer answers are not read: no prompt is that long, and reading must stay quick."""
_NAMES = ("new_prompt", "prompt", "improved_prompt", "revised_prompt", "updated_prompt", "new_instructions",
          "instructions", "instruction", "system_prompt", "rewritten_prompt", "text")  # fmt: skip
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (really |very |so )?(sorry|afraid|unable)|sorry\b|i (can(no|['’])t|cannot|won['’]t|will not"
    r"|am unable|am not able|apologi[sz]e|must decline)|as an ai\b|unfortunately,? i\b|my apologies)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(sure|certainly|of course|okay|ok|here\b|below\b|(the )?(new|revised|improved|updated)"
    r"|this is)[^\n]{0,200}:$",
    re.IGNORECASE,
)


class BadReply(Exception):
    """The coach's answer holds no usable prompt; the message says why."""


@dataclass(frozen=True, slots=True)
class _Block:
    label: str
    """The fence's language tag and the last line before it."""
    text: str
    start: int
    end: int
    closed: bool


def parse_reply(reply: str, current: Mapping[str, str], *, cut_off: bool = False, bare: bool = True) -> dict[str, str]:
    """The new texts by prompt name: at least one of ``current``'s names, more if the coach gave more.

    ``bare``: an answer in which nothing is marked may be a prompt itself.
    ``cut_off``: the model stopped at its token limit, so that an unfinished block must not be taken for a prompt.
    Raises BadReply.
    """
    if not reply.strip():
        raise BadReply("the coach's answer is empty")
    if len(reply) > MAX_REPLY_CHARS:
        raise BadReply(f"the coach's answer is {len(reply)} characters long")
    reply = reply.replace("\r\n", "\n")
    names = list(current)
    found = _marked(reply, names, cut_off, " ".join(current.values()))
    if not found and bare and len(names) == 1:
        found = {names[0]: _bare(reply, cut_off)}
    texts = {name: text.strip("\n").rstrip() for name, text in found.items() if text.strip()}
    if not texts:
        raise BadReply("the coach's answer holds no prompt")
    return texts


def refused(reply: str) -> bool:
    """Whether an answer declines to do what was asked, or says nothing at all."""
    return not reply.strip() or _REFUSAL.match(reply.strip()) is not None


def _marked(reply: str, names: Sequence[str], cut_off: bool, current: str) -> dict[str, str]:
    whole = _from_json(reply, names)
    if whole:
        return whole
    blocks = _blocks(reply)
    if cut_off and blocks and not blocks[-1].closed:
        raise BadReply("the coach's answer was cut off at its token limit")
    tagged = _from_tags(reply, names, blocks, current)
    if tagged:
        return tagged
    if blocks:
        return _from_blocks(blocks, names)
    return _from_json(reply[reply.find("{") : reply.rfind("}") + 1], names)


def _from_json(text: str, names: Sequence[str]) -> dict[str, str]:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    for holder in (value, value.get("prompts")):
        if isinstance(holder, dict):
            texts = {name: holder[name] for name in names if isinstance(holder.get(name), str)}
            if texts:
                return texts
    if len(names) == 1:
        for key in _NAMES:
            if isinstance(value.get(key), str):
                return {names[0]: value[key]}
    return {}


def _blocks(reply: str) -> list[_Block]:
    """Top-level fenced blocks. A fence with a language tag inside a block opens a nested one, part of the text."""
    blocks: list[_Block] = []
    open_fences: list[str] = []
    label, before, start, body = "", "", 0, 0
    position = 0
    for line in reply.splitlines(keepends=True):
        match = _FENCE.match(line.rstrip("\n"))
        if match:
            fence, info = match.group(1), match.group(2).strip()
            if not open_fences:
                open_fences, label, start, body = [fence], f"{before}\n{info}", position, position + len(line)
            elif info:
                open_fences.append(fence)
            elif fence[0] == open_fences[-1][0] and len(fence) >= len(open_fences[-1]):
                open_fences.pop()
                if not open_fences:
                    blocks.append(_Block(label, reply[body:position], start, position + len(line), True))
                    before = ""
        elif not open_fences and line.strip():
            before = line.strip()
        position += len(line)
    if open_fences:
        text = reply[body:]
        shut = text.rstrip().rfind("\n" + open_fences[0])
        blocks.append(_Block(label, text[:shut] if shut >= 0 else text, start, len(reply), shut >= 0))
    return blocks


def _from_blocks(blocks: Sequence[_Block], names: Sequence[str]) -> dict[str, str]:
    for block in reversed(blocks):
        texts = _from_json(block.text, names)
        if texts:
            return texts
    if len(names) == 1:
        return {names[0]: _unwrapped(blocks[-1].text, names)}
    found: dict[str, str] = {}
    for block in blocks:
        name = _named(block.label, names)
        if name:
            found[name] = block.text
    if not found and len(blocks) == len(names):
        found = {name: block.text for name, block in zip(names, blocks, strict=True)}
    return found


def _named(label: str, names: Sequence[str]) -> str:
    """The prompt that a block's label names; the longest name wins, for names that contain each other."""
    hits = [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", label, re.IGNORECASE)]
    return max(hits, key=len, default="")


def _from_tags(reply: str, names: Sequence[str], blocks: Sequence[_Block], current: str) -> dict[str, str]:
    """Texts in tags that are not inside a fenced block. A tag that the current prompt itself uses is its own markup."""
    tags = [tag for tag in _NAMES if len(names) == 1 and f"<{tag}" not in current]
    found: dict[str, str] = {}
    for name in names:
        for tag in (name, *tags):
            span = _tag_span(reply, tag, blocks)
            if span:
                found[name] = _unfenced(reply[span[0] : span[1]])
                break
    return found


def _tag_span(reply: str, tag: str, blocks: Sequence[_Block]) -> tuple[int, int] | None:
    """Where the text of the last ``<tag ...>...</tag>`` stands, or None; ``<prompt name="tag">`` will do as well."""
    escaped = re.escape(tag)
    openings = list(
        re.finditer(rf"<{escaped}(?:\s[^<>]{{0,100}})?>|<prompt\s+name=[\"']?{escaped}[\"']?\s*>", reply, re.I)
    )
    for opening in reversed(openings):
        if any(block.start <= opening.start() < block.end for block in blocks):
            continue
        word = "prompt" if opening.group(0)[1:7].lower() == "prompt" and " " in opening.group(0) else tag
        end = reply.lower().find(f"</{word.lower()}>", opening.end())
        if end >= 0:
            return opening.end(), end
    return None


def _unfenced(text: str) -> str:
    """The inside of a text that is one fenced block and nothing else."""
    blocks = _blocks(text.strip())
    alone = len(blocks) == 1 and blocks[0].start == 0 and blocks[0].end >= len(text.strip())
    return blocks[0].text if alone else text


def _unwrapped(text: str, names: Sequence[str]) -> str:
    """The inside of a fenced text that is one ``<prompt>`` tag and nothing else."""
    stripped = text.strip()
    for tag in (*names, *_NAMES):
        if stripped.startswith(f"<{tag}>") and stripped.endswith(f"</{tag}>") and stripped.count(f"<{tag}>") == 1:
            return stripped[len(tag) + 2 : -len(tag) - 3]
    return text


def _bare(reply: str, cut_off: bool) -> str:
    """The answer itself, when nothing in it is marked as the prompt."""
    text = reply.strip()
    if _REFUSAL.match(text):
        raise BadReply("the coach refused")
    if cut_off:
        raise BadReply("the coach's answer was cut off at its token limit")
    if text[0] in "{[" and _is_json(text):
        raise BadReply("the coach's answer is JSON without a prompt")
    first, _, rest = text.partition("\n")
    if rest.strip() and _LEAD.match(first.strip().strip("*#").strip()):
        text = rest.strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1]
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
