"""What a proposed prompt must satisfy before one rollout is spent on it. A prompt is rejected, never repaired."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from lightningrun.files import digest
from lightningrun.stages.apo.config import GuardsConfig
from lightningrun.types import Json, Task

PLACEHOLDER = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_.]*)\}(?!\})")
_WORD = re.compile(r"\w+")


def placeholders(text: str) -> frozenset[str]:
    """Names of the ``{fields}`` that the agent fills in; doubled braces are literal ones."""
    return frozenset(PLACEHOLDER.findall(text))


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is: four characters each, or one a word. No tokenizer fits every model."""
    return max((len(text) + 3) // 4, len(text.split()))


class Guards:
    """The guards of one search: they know the seed's placeholders, the gold answers and all earlier candidates."""

    def __init__(self, config: GuardsConfig, seed: Mapping[str, str], tasks: Iterable[Task]) -> None:
        self._config = config
        self._seed = seed
        self._golds = _gold_ngrams(tasks, config.leak_fields, config.leak_ngram)
        for gram in [gram for text in seed.values() for gram in _ngrams(text, config.leak_ngram)]:
            self._golds.pop(gram, None)
        self._seen = {digest(dict(seed)): 0}

    def objection(self, prompts: Mapping[str, str], changed: Collection[str], quotable: Collection[str] = ()) -> str:
        """Why these prompts may not be tried, or ''.

        ``quotable``: splits whose gold answers may be quoted unless another split has the same: demonstrations of
        training rows do it on purpose.
        """
        for name in sorted(changed):
            text = prompts[name]
            if not text.strip():
                return f"prompt {name!r} is empty"
            tokens = estimate_tokens(text)
            if tokens > self._config.max_prompt_tokens:
                return f"prompt {name!r} is about {tokens} tokens long, over {self._config.max_prompt_tokens}"
            lost = placeholders(self._seed[name]) - placeholders(text)
            if lost and self._config.placeholders == "reject":
                fields = ", ".join(f"{{{field}}}" for field in sorted(lost))
                return f"prompt {name!r} lost the placeholder {fields}"
            quoted = self.quoted_gold(text, quotable)
            if quoted:
                return f"prompt {name!r} quotes a gold answer: {quoted!r}"
        return ""

    def duplicate_of(self, prompts: Mapping[str, str]) -> int | None:
        """The id of the earlier candidate with the same texts, if duplicates are looked for."""
        return self._seen.get(digest(dict(prompts))) if self._config.dedupe else None

    def remember(self, prompts: Mapping[str, str], candidate: int) -> None:
        """Note a candidate that was tried."""
        self._seen.setdefault(digest(dict(prompts)), candidate)

    def quoted_gold(self, text: str, quotable: Collection[str] = ()) -> str:
        """The first words quoted from a gold answer of a split that is not ``quotable``, or ''."""
        for gram in _ngrams(text, self._config.leak_ngram) if self._golds else ():
            if not self._golds.get(gram, frozenset()) <= set(quotable):
                return " ".join(gram)
        return ""


def _ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if size else []


def _gold_ngrams(tasks: Iterable[Task], fields: Sequence[str], size: int) -> dict[tuple[str, ...], set[str]]:
    """Words in a row of the gold answers -> the splits that have them."""
    found: dict[tuple[str, ...], set[str]] = {}
    for task in tasks:
        for text in [text for field in fields for text in _strings(task.fields.get(field))]:
            for gram in _ngrams(text, size):
                found.setdefault(gram, set()).add(task.split)
    return found


def _strings(value: Json) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _strings(inner)]
    if isinstance(value, Sequence):
        return [text for inner in value for text in _strings(inner)]
    return []
