"""``calls.jsonl``: every LLM call of a run, whole, in the order of their ends; read back, it is the cache.

Only places are kept in memory, about 200 bytes a call; answers are read from the file when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from lightningrun.files import Journal, read_journal
from lightningrun.types import LLMCall


class CallLog:
    """Append and look up. ``damaged`` is where a damaged file was set aside, or None."""

    def __init__(self, path: Path, secrets: Iterable[str], mask: Callable[[str], str] | None) -> None:
        self._hidden = [form for secret in secrets if secret for form in {secret, json.dumps(secret)[1:-1]}]
        self._mask = mask
        self._journal = Journal(path, self.masked)
        self._path = path
        self._answers: dict[str, int] = {}
        self._copies: dict[int, int] = {}
        self.damaged = self._journal.damaged

    def masked(self, text: str) -> str:
        """``text`` without any provider's key, and without what the run's masker hides."""
        for secret in self._hidden:
            if secret in text:
                text = text.replace(secret, "[masked]")
        return self._mask(text) if self._mask else text

    def restore(self, paid: Callable[[LLMCall], None]) -> None:
        """Read the calls of earlier processes; ``paid`` is told of each that was sent to a provider."""
        for offset, record in read_journal(self._path):
            call = LLMCall.from_json(record)
            self._index(call, offset)
            if not call.cached and call.attempts:
                paid(call)

    def append(self, call: LLMCall) -> int:
        """Write one call and return its offset. Raises DiskFull."""
        offset = self._journal.append(call.to_json())
        self._index(call, offset)
        return offset

    def _index(self, call: LLMCall, offset: int) -> None:
        if call.cached:
            self._copies.setdefault(_claim(call.stage, call.owner, call.cache_key), offset)
        elif call.response is not None and call.cache_key:
            self._answers.setdefault(call.cache_key, offset)

    def has(self, key: str) -> bool:
        return key in self._answers

    def answer(self, key: str) -> tuple[int, LLMCall] | None:
        """Where the first answer to ``key`` is, and the call; failed calls do not count."""
        offset = self._answers.get(key)
        return None if offset is None else (offset, self.read(offset))

    def copy(self, stage: str, owner: str, key: str) -> int | None:
        """Where this owner's own record of another's answer to ``key`` is."""
        return self._copies.get(_claim(stage, owner, key))

    def read(self, offset: int) -> LLMCall:
        """The call at ``offset``. Raises ValueError if none is there."""
        return LLMCall.from_json(self._journal.read(offset))

    def close(self) -> None:
        self._journal.close()


def _claim(stage: str, owner: str, key: str) -> int:
    text = f"{stage}\0{owner}\0{key}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")
