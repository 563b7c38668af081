"""How the simulated student reads its instructions: which skills a prompt teaches, and which bad habits.

Reading is by families of words, sentence by sentence. A skill is taught well where a sentence names the technique
(COUNT, GROUP BY, a sub-query) and when to use it; half as well by one of the two; not at all, or worse, where it is
forbidden. So any wording will do that a person would understand, and a contradiction confuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

_LONG_PROMPT_WORDS = 250
_CONTRADICTED = 0.4


@dataclass(frozen=True)
class Lesson:
    """The words that teach a skill: the technique, the occasion for it, and phrases that only hint at it."""

    technique: re.Pattern[str]
    occasion: re.Pattern[str]
    hint: re.Pattern[str]


def _lesson(technique: str, occasion: str, hint: str = r"(?!)") -> Lesson:
    return Lesson(*(re.compile(words, re.IGNORECASE) for words in (technique, occasion, hint)))


_FUNCTIONS = r"aggregate functions?|aggregation|sql aggregates?"
_COMPUTE = r"single (?:number|value|figure|result)|comput|calculat|aggregat|one number"
LESSONS: dict[str, Lesson] = {
    "count": _lesson(
        rf"\bcount(?:\(|s|ed|ing)?(?!\w)|{_FUNCTIONS}",
        r"how many|number of|\d|quantit|single|instead of list|asks?",
        _COMPUTE,
    ),
    "AVG": _lesson(rf"\bavg\b|{_FUNCTIONS}", r"averag|mean\b|asks?|question", rf"{_COMPUTE}|\baverages?\b"),
    "SUM": _lesson(
        rf"\bsum\b|{_FUNCTIONS}",
        r"total|combined|asks?|question|add",
        rf"{_COMPUTE}|\btotals?\b|\bavg\b|\bcount\(",
    ),
    "MAX": _lesson(
        rf"\bmax\b|{_FUNCTIONS}",
        r"highest|largest|most|maximum|best|asks?|question",
        rf"{_COMPUTE}|\bmaximum|\bavg\b|\bsum\b",
    ),
    "MIN": _lesson(
        rf"\bmin\b|{_FUNCTIONS}",
        r"lowest|smallest|fewest|minimum|asks?|question",
        rf"{_COMPUTE}|\bminimum|\bmax\b|\bavg\b",
    ),
    "order": _lesson(
        r"\border(?:ed|ing|s)?\b[ -]?(?:by)?|\bsort(?:ed|ing|s)?\b",
        r"top|most|highest|fewest|lowest|best|largest|rank|superlative|first|desc",
        r"rank(?:ed|ing|s)?\b|best ones? first|highest first",
    ),
    "limit": _lesson(
        r"\blimit\b",
        r"top|most|highest|fewest|lowest|best|single|one|number of rows|as many|\bn\b",
        r"only (?:the )?(?:first|top|best)",
    ),
    "group": _lesson(
        r"\bgroup(?:s|ed|ing)?\b(?:[ -]by)?",
        r"countr|each|per\b|every|team|nation|categor",
        r"(?:per|for each|for every|by|each) (?:country|team|nation|group)|one row (?:per|for each)|compare countries",
    ),
    "having": _lesson(
        r"\bhaving\b",
        r"group|countr|aggregat|condition|filter|count|averag",
        r"filter(?:ing|s|ed)? (?:the |whole |on )?(?:groups?|aggregate)|condition(?:s)? on (?:the |a |an |each )?"
        r"(?:groups?|aggregate|count|average)|after grouping|groups that",
    ),
    "year": _lesson(
        r"debut|\byears?\b|\b(?:19|20)\d\d\b",
        r"strict|inclusi|exclusi|\bafter\b|\bsince\b|\bbefore\b|>|<|boundary|\bbetween\b",
        r"'?\bsince\b'? (?:includes|means|is)|\bafter\b'? (?:means|excludes|is)|strictly|off[- ]by[- ]one",
    ),
    "columns": _lesson(
        r"\b(?:only|exactly|just|nothing but|no (?:extra|additional|other)|extra|not add)\b.{0,70}(?:columns?|fields?)"
        r"|columns? (?:that )?(?:the question|the user|it|is|are|was)? ?(?:asks?|asked|requested|wanted)",
        r"select|return|ask|question|request|want|add",
        r"(?:only|exactly|just) what (?:is|was|the question|the user)"
        r"|nothing (?:else|more) than (?:what )?(?:is |was )?asked",
    ),
    "subquery": _lesson(
        r"\bsub-?\s?quer|nested (?:select|quer)|inner (?:select|quer)|\(\s*select\b|\bcte\b|\bwith clause",
        r"averag|mean|compar|overall|aggregate",
        r"(?:comput|calculat|find)\w* the (?:overall )?(?:average|mean) (?:first|separately)"
        r"|compar\w* .{0,40}(?:average|mean)",
    ),
    "formats": _lesson(
        r"odi_runs ?\+|\+ ?(?:t20|test)_runs|add(?:ing|ed)? (?:up |together )?(?:the |all )?(?:three|odi|runs|columns)"
        r"|sum of (?:the |all )?(?:three|3|odi|columns)|plus t20",
        r"format|career|combined|total|overall|across",
        r"(?:all|three|across) (?:the )?(?:three )?formats|combined runs|career total",
    ),
}  # fmt: skip

HABITS: dict[str, re.Pattern[str]] = {
    name: re.compile(words, re.IGNORECASE)
    for name, words in {
        "always_limit": r"(?:always|every|each|all|default|any)\b.{0,50}\blimit (?P<rows>\d+)"
        r"|\blimit (?P<more>\d+)\b.{0,40}\b(?:always|every|each|all quer|by default)",
        "explain": r"\bexplain|\bexplanation|reasoning|think (?:aloud|step)|step[- ]by[- ]step|describe (?:your|how)",
        "star": r"select \*|\ball (?:the |available )?columns|every column|full rows?|(?:useful|more|helpful) context",
        "round": r"\bround(?:ed|ing)?\b|whole numbers?|nearest integer",
        "skip_zero": r"(?:ignor|exclud|skip|leave out|filter out)\w*.{0,40}(?:zero|\b0\b|\bnull|no runs)",
        "upper": r"(?:upper|capital)[- ]?(?:case|letters)",
        "join": r"\bjoins?\b",
    }.items()
}

_SCHEMA = re.compile(r"create table.*?\n?\)", re.IGNORECASE | re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+\s*(?=[-*#\d])|\n\s*\n")
_FORBIDS = re.compile(
    r"\b(?:never|don't|avoid|without|no need (?:to|for)|not|no|instead of|rather than)\b", re.IGNORECASE
)
_CLAUSE = re.compile(r"[,;:()]|\bbut\b|\binstead,")


@dataclass(frozen=True)
class Teaching:
    """What a prompt does to its reader."""

    skills: dict[str, float] = field(default_factory=dict)
    """Skill -> how well it is taught, 0 to 1; below 0 where it is forbidden."""
    habits: frozenset[str] = frozenset()
    limit: int = 10
    """What the habit of always limiting limits to."""
    dilution: float = 0.0
    """0 for a short prompt, growing to 0.35 with length."""


@lru_cache(maxsize=512)
def read_instructions(prompt: str) -> Teaching:
    """What a system prompt teaches. The schema in it is not an instruction."""
    text = _SCHEMA.sub(" ", prompt)
    sentences = [part.strip() for part in _SENTENCES.split(text) if part.strip()]
    skills = {name: _taught(lesson, sentences, name) for name, lesson in LESSONS.items()}
    habits, limit = _habits(sentences)
    words = len(text.split())
    dilution = min(0.35, max(0, words - _LONG_PROMPT_WORDS) / 1500)
    return Teaching(skills, habits, limit, dilution)


def _taught(lesson: Lesson, sentences: list[str], name: str) -> float:
    best, forbidden = 0.0, False
    for sentence in sentences:
        technique = lesson.technique.search(sentence)
        if technique and name not in ("columns", "year") and _is_forbidden(sentence, technique.start()):
            forbidden = True
        elif technique and not (name == "limit" and HABITS["always_limit"].search(sentence)):
            best = max(best, 1.0 if lesson.occasion.search(sentence) else 0.8)
        elif lesson.hint.search(sentence):
            best = max(best, 0.5)
    if forbidden:
        return best * _CONTRADICTED if best else -1.0
    return best


def _habits(sentences: list[str]) -> tuple[frozenset[str], int]:
    habits, limit = set(), 10
    for sentence in sentences:
        for name, words in HABITS.items():
            found = words.search(sentence)
            if found and not _is_forbidden(sentence, found.start()):
                habits.add(name)
                if name == "always_limit":
                    limit = int(found["rows"] or found["more"])
    return frozenset(habits), limit


def _is_forbidden(sentence: str, position: int) -> bool:
    """Whether a "never" or "do not" stands before the position in the same clause."""
    before = _CLAUSE.split(sentence[:position])[-1]
    return bool(_FORBIDS.search(before))
