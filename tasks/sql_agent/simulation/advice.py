"""What the simulated coach knows about SQL: causes it can suspect, what speaks for each, and how it words the remedy.

It is general knowledge of the kind a language model has, tied to no data set. Some wordings are clear, some vague; and
``FADS`` are things that sound like good advice and are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """One thing that an author of SQL may not have been told."""

    name: str
    asked: re.Pattern[str]
    """Words of a question that make the cause possible."""
    seen: re.Pattern[str]
    """Words of feedback that speak for it."""
    done: re.Pattern[str]
    """SQL that speaks against it: the construction is already there."""
    known_by: re.Pattern[str]
    """Words by which a prompt or a critique shows that it deals with the matter."""
    critique: str
    remedies: tuple[str, ...]
    vague: tuple[str, ...]


def _cause(name: str, asked: str, seen: str, done: str, known_by: str, critique: str, *remedies: str) -> Cause:
    question, feedback, sql, knowing = (re.compile(words, re.IGNORECASE) for words in (asked, seen, done, known_by))
    clear = tuple(text for text in remedies if not text.startswith("~"))
    vague = tuple(text[1:] for text in remedies if text.startswith("~"))
    return Cause(name, question, feedback, sql, knowing, critique, clear, vague)


_WRONG = r"wrong|expected|instead of|incorrect|differ|by chance|not the right|missing|should not"

CAUSES = (
    _cause(
        "count",
        r"how many|count the|number of (?:\w+ )?(?:players|batsmen|batters|people)",
        r"single (?:number|value)|one number|expected 1\b|instead of a (?:number|count)",
        r"count\s*\(",
        r"\bcount\b",
        "Asked how many there are, it lists the rows instead of counting them with COUNT.",
        'When the question asks "how many" rows there are, return COUNT(*) instead of listing them.',
        "For questions that ask for the number of players, select COUNT(*) and nothing else.",
        'Treat "how many" and "count the ..." as a request for a single number: use COUNT(*).',
        "~If the user wants a figure, compute it rather than listing the rows.",
    ),
    _cause(
        "aggregate",
        r"average|\bmean\b|\btotal\b|combined|highest|lowest|largest|smallest",
        r"single (?:number|value)|one number|expected 1\b|rows instead of",
        r"\b(?:avg|sum|max|min)\s*\(",
        r"\bavg\b|\bsum\b|aggregate function",
        "Averages, totals and extremes are not computed; raw values come back where AVG, SUM, MAX or MIN is needed.",
        "For an average, a total, the highest or the lowest value, use AVG, SUM, MAX or MIN in the SELECT.",
        'Use aggregate functions: AVG for "average" or "mean", SUM for "total", MAX for "highest", MIN for "lowest".',
        "If the question asks for a total or an average, calculate it in SQL with SUM(...) or AVG(...); likewise use"
        " MAX and MIN for the highest and lowest figure.",
        "~Perform the calculation that the question describes, so that the answer is a single value.",
    ),
    _cause(
        "order",
        r"\btop \w+|\bmost\b|\bbest\b|\bfewest\b|\bhighest\b|\blowest\b|in order of|\brank",
        r"number of rows|wrong order|returned \d+,? (?:but )?expected \d+|rows instead of|not the right",
        r"order by .*limit \d",
        r"order by.*\blimit\b|\blimit\b.*order by|sort.*\blimit\b",
        "It neither sorts nor cuts off: ORDER BY and LIMIT are missing where the best few are wanted.",
        'For "top N", "most" or "fewest" questions, ORDER BY the column in question (DESC for most) and add LIMIT N.',
        "When the best or the worst are wanted, sort with ORDER BY and keep only as many rows as asked with LIMIT.",
        'If the question ranks ("who has the most ...", "top five ..."), use ORDER BY ... DESC and LIMIT to the number'
        " wanted, LIMIT 1 when it is one.",
        "~For rankings, put the highest first.",
    ),
    _cause(
        "group",
        r"(?:each|per|every) country|(?:which|what) countr|list the countries",
        _WRONG,
        r"group by",
        r"group(?:ed|ing)?[ -]by|\bper country",
        "Countries are to be compared as groups, and it never groups: GROUP BY the country is missing.",
        "When the question is about each country, or asks which country, GROUP BY country_name.",
        'Use GROUP BY country_name for anything "per country" and for comparing countries.',
        "To answer questions about countries rather than players, group the rows with GROUP BY on the country column.",
        "~Give one row for each country when countries are compared.",
    ),
    _cause(
        "having",
        r"(?:which|what|list the|in which) countries\b.*(?:more than|at least|over|above|under|fewer|average)",
        r"number of rows|should not be there|rows instead of|not the right|by chance",
        r"having",
        r"\bhaving\b",
        "A condition on a country's count or average is not applied: it belongs into HAVING, not WHERE.",
        "Put conditions on a group's count or average into HAVING, after GROUP BY, and not into WHERE.",
        "To keep only countries that reach some count or average, filter the groups with HAVING.",
        "~Remember that conditions can also apply to whole groups.",
    ),
    _cause(
        "year",
        r"(?:after|since|before|between|from|in) (?:\w+ )?(?:19|20)\d\d",
        r"wrong value|number of rows|should not be there|missing|by chance|not the right",
        r"(?!)",
        r"\bsince\b|strictly|inclusive",
        "Debut years are cut off at the wrong place: the year named is included or left out by mistake.",
        'odi_debut_year is the year of debut. "After 2010" means > 2010 and "before" means <, both strictly; "since"'
        ' and "or later" include the year: use >=.',
        "For debut questions compare odi_debut_year: after and before are strict (>, <), since is inclusive (>=), and"
        " between includes both years.",
        "Mind the boundary year of a debut: exclude it with after and before, include it with since and between.",
        "~Use the debut year column for questions about debuts.",
    ),
    _cause(
        "columns",
        r".",
        r"wrong columns?|extra column|columns? (?:than|instead)|of [2-9] columns",
        r"(?!)",
        r"only the (?:columns?|fields?)|exactly the columns?",
        "It returns columns that nobody asked for.",
        "Return only the columns that the question asks for, in that order, with nothing added.",
        "Select exactly the columns asked for; do not add the figures used for sorting or filtering.",
        "SELECT just the fields that the question wants: if it asks who, that is player_name alone.",
        "~Keep the output tidy and to the point, only what is asked.",
    ),
    _cause(
        "subquery",
        r"(?:than|above|beat\w*) the (?:\w+ )?(?:average|mean)",
        r"misuse of aggregate|number of rows|not the right|missing|by chance|wrong columns?",
        r"\(\s*select",
        r"sub-?quer|\(\s*select",
        "Comparing with the overall average needs a subquery; an aggregate cannot stand in WHERE.",
        "To compare with the average, use a subquery: column > (SELECT AVG(column) FROM the table).",
        "An aggregate may not stand in WHERE. Compare with an overall average through a sub-query in parentheses.",
        "~Work out the average first, then compare each player with it.",
    ),
    _cause(
        "formats",
        r"(?:all|three) formats|across .{0,12}formats",
        _WRONG + r"|single number",
        r"odi_runs\s*\+",
        r"odi_runs\s*\+|three columns|all (?:three )?formats",
        "Runs over all formats are not added up.",
        "Runs in all formats are odi_runs + t20_runs + test_runs.",
        "For career totals across all formats, add the three run columns of the row together with +.",
        "~Remember that there are three formats to take into account.",
    ),
)  # fmt: skip

FADS = (
    "Always add LIMIT 10 to every query, to keep results readable.",
    "Think step by step and explain your reasoning before the query.",
    "Round averages to whole numbers.",
    "Ignore players with zero runs, they distort the picture.",
    "Select all columns, so that the user has useful context.",
    "Write text values in upper case, as the database compares them exactly.",
    "Double-check the query before you send it.",
    "Be precise and professional.",
    "Use a table alias and qualify each column name.",
    "Prefer simple queries; most questions need no more than one condition.",
    "If necessary, JOIN with a table of countries.",
)
"""Remedies of a coach on the wrong track: some harmful, some merely idle."""

REGRETS = (
    (re.compile(r"limit 10\b", re.IGNORECASE), re.compile(r"returned 10,? |missing", re.IGNORECASE)),
    (re.compile(r"step by step|explain", re.IGNORECASE), re.compile(r"syntax error|no sql", re.IGNORECASE)),
    (re.compile(r"\bround\b|whole number", re.IGNORECASE), re.compile(r"wrong value|not the right", re.IGNORECASE)),
    (re.compile(r"zero runs|with 0 runs", re.IGNORECASE), re.compile(r"wrong value|missing", re.IGNORECASE)),
    (re.compile(r"all columns|useful context", re.IGNORECASE), re.compile(r"wrong columns?", re.IGNORECASE)),
    (re.compile(r"upper case", re.IGNORECASE), re.compile(r"returned 0|missing|single number", re.IGNORECASE)),
    (re.compile(r"\bjoin\b", re.IGNORECASE), re.compile(r"no such table", re.IGNORECASE)),
)
"""(a line of a prompt, feedback that makes one suspect that line)."""

OPENINGS = (
    "Looking at the failures, I see the following:",
    "What went wrong:",
    "The failures have a few things in common.",
    "My reading of these runs:",
)
