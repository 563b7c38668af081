"""What the simulated student understands of English: one question in, its meaning out.

A small hand-written reader for questions about players, countries, runs and debut years. It has no list of questions;
what it cannot place it ignores, and then misunderstands, as a small model would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Condition = tuple[str, str, int]
"""(what, comparison, number), as in ("odi_runs", ">", 5000)."""

COUNTRIES = {
    "India": "indian|india",
    "Australia": "australian|australia|aussie",
    "Sri Lanka": "sri lankan|sri lanka",
    "Pakistan": "pakistani|pakistan",
    "South Africa": "south african|south africa|proteas?",
    "West Indies": "west indian|west indies|caribbean",
    "New Zealand": "new zealander|new zealand|kiwi",
    "England": "english|england",
    "Bangladesh": "bangladeshi|bangladesh",
    "Zimbabwe": "zimbabwean|zimbabwe",
    "Afghanistan": "afghan|afghanistan",
    "Ireland": "irish|ireland",
}
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS, start=2)}
_PEOPLE = r"(?:batsm[ae]n|batters?|players?|cricketers?|debutants?|people|men)"
_ODI = r"(?:odi|one[- ]day(?: international)?|50[- ]over)s?"
_T20 = r"(?:t20i?|t20 international|twenty20)s?"
_TEST = r"tests?(?: match(?:es)?| cricket)?"
_RUNS = r"(?:runs|tally|total|tallies|aggregate)"
_METRICS = {
    name: re.compile(
        rf"runs (?:scored |made )?in {form}(?: cricket| matches)?\b|\b{form}(?: career)? {_RUNS}\b|\b{form}\b(?! debut)"
    )
    for name, form in (("odi_runs", _ODI), ("t20_runs", _T20), ("test_runs", _TEST))
}
_ALL_FORMATS = re.compile(
    r"(?:(?:across|in|over|from) )?(?:all|the) (?:of )?(?:the )?(?:3 )?formats(?: combined| together)?|career runs"
)
_COMPARISONS = (
    (">=", r"(?:at least|no fewer than|no less than|a minimum of) (\d+)|(\d+)(?: or more| or above|\+)"),
    ("<=", r"(?:at most|no more than|up to) (\d+)|(\d+) or (?:fewer|less)"),
    (">", r"(?:more than|over|above|greater than|higher than|exceed(?:s|ing)?|better than) (\d+)"),
    ("<", r"(?:fewer than|less than|under|below|lower than) (\d+)"),
)
_YEAR = r"((?:19|20)\d\d)(?!\s*(?:odi_|t20_|test_|runs|or more))"
_YEARS = (
    (">=", rf"(?:since|from|starting in) {_YEAR}(?: on(?:wards?)?)?|(?:in )?{_YEAR} (?:or (?:later|after)|onwards?)"),
    ("<=", rf"(?:until|up to|by) {_YEAR}|(?:in )?{_YEAR} or (?:earlier|before)"),
    (">", rf"(?:after|later than|following|past) {_YEAR}"),
    ("<", rf"(?:before|earlier than|prior to|ahead of) {_YEAR}"),
    ("=", rf"(?:in|during|of) (?:the year )?{_YEAR}"),
)
_SPAN = re.compile(rf"(?:between|from) {_YEAR} (?:and|to|until|through) {_YEAR}")
_PER_COUNTRY = re.compile(r"\b(?:each|every|per|by) (?:country|nation|team)|country by country|broken down by country")
_ASKS_COUNTRY = re.compile(r"\b(?:which|what|name the|list the|find the) (?:countr(?:y|ies)|nations?|teams?)\b")
_ABOVE_MEAN = re.compile(r"(?:than|above|exceeds?|beats?|over)[- ](?:the )?(?:overall |general )?(?:average|mean)\b")
_MOST = r"(?:most|highest|largest|greatest|biggest|maximum|leading|top|best)"
_FEWEST = r"(?:fewest|lowest|least|smallest|minimum)"
_RANKED = re.compile(
    r"\bin order of\b|\brank(?:ed|ing)?\b|\bsort(?:ed)?\b|\border(?:ed)? by\b|from (?:most|highest|fewest|lowest) to"
)
_CAPITALS = re.compile(r"\b[A-Z][\w'-]*(?: (?:(?:de|du|al|van|der|ul) )?[A-Z][\w'-]*)*")
_NOT_NAMES = frozenset(
    re.split(
        r"\s+",
        "a among all also and are at average by calculate compute count do find for from give has how i in is list"
        " mean name of on one-day odi odis rank show t20 t20s tell test tests the to total twenty20 what when where"
        " which who whose with",
    )
)


@dataclass
class Meaning:
    """What a question asks for, before any thought of SQL."""

    show: list[str] = field(default_factory=list)
    """What an answer row holds: "player", "country", "debut", a metric, or "all_formats"."""
    metric: str = ""
    countries: list[str] = field(default_factory=list)
    player: str = ""
    conditions: list[Condition] = field(default_factory=list)
    years: list[Condition] = field(default_factory=list)
    count: bool = False
    aggregate: str = ""
    """AVG, SUM, MAX or MIN of ``metric``."""
    per_country: bool = False
    """One answer row for each country."""
    having: list[Condition] = field(default_factory=list)
    """Conditions on a country's count ("count", ...) or aggregate ("AVG", ...)."""
    direction: str = ""
    """"DESC" or "ASC" where the question ranks."""
    limit: int = 0
    above_mean: bool = False

    @property
    def simple(self) -> bool:
        """A plain lookup or filter: nothing is counted, computed, ranked or grouped."""
        worked = self.count or self.aggregate or self.per_country or self.direction or self.above_mean
        return not worked and "all_formats" not in self.show


def understand(question: str) -> Meaning:
    """Read one question."""
    meaning = Meaning(player=_player(question))
    text = _normalise(question)
    if meaning.player:
        text = text.replace(meaning.player.lower(), "person")
    text = _read_countries(text, meaning)
    text = _read_years(text, meaning)
    text = _read_metrics(text, meaning)
    text = _read_conditions(text, meaning)
    _read_computation(text, meaning)
    _read_ranking(text, meaning)
    _read_shown(text, meaning)
    return meaning


def _normalise(question: str) -> str:
    text = question.lower().replace("’", "'").replace("people whose", "players whose")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"\b[a-z]+\b", lambda word: _DIGITS.get(word.group(), word.group()), text)
    return re.sub(r"[?.!;]+(?=\s|$)", "", text).strip()


def _player(question: str) -> str:
    """The longest capitalised name that is no country, format or opening word."""
    nations = re.compile("|".join(COUNTRIES.values()), re.IGNORECASE)
    best = ""
    for found in _CAPITALS.finditer(question):
        words = found.group().removesuffix("'s").split()
        if found.start() == 0 and len(words) == 1 and not found.group().endswith("'s"):
            continue
        while words and words[0].lower() in _NOT_NAMES:
            words = words[1:]
        while words and words[-1].lower() in _NOT_NAMES:
            words = words[:-1]
        name = " ".join(words)
        if name and not nations.search(name) and len(name) > len(best):
            best = name
    return best.removesuffix("'s")


def _read_countries(text: str, meaning: Meaning) -> str:
    for country, forms in sorted(COUNTRIES.items(), key=lambda item: -len(item[0])):
        text, found = re.subn(rf"\b(?:the )?(?:{forms})s?\b(?:'s)?", "homeland", text)
        if found:
            meaning.countries.append(country)
    return text


def _read_years(text: str, meaning: Meaning) -> str:
    span = _SPAN.search(text)
    if span:
        meaning.years = [("span", ">=", int(span[1])), ("span", "<=", int(span[2]))]
        return _SPAN.sub(" ", text)
    for comparison, pattern in _YEARS:
        found = re.search(rf"\b(?:{pattern})", text)
        if found:
            meaning.years = [("debut", comparison, int(next(g for g in found.groups() if g)))]
            return text.replace(found.group(), " ")
    return text


def _read_metrics(text: str, meaning: Meaning) -> str:
    """Put column-like words in the place of phrases about runs."""
    text = re.sub(rf"\b{_ODI} debut", "debut", text)
    text = _ALL_FORMATS.sub("all_formats", text)
    spots = {}
    for name, pattern in _METRICS.items():
        text = pattern.sub(name, text)
        if name in text:
            spots[text.index(name)] = name
    if spots:
        meaning.metric = spots[min(spots)]
    return text


def _read_conditions(text: str, meaning: Meaning) -> str:
    rest = text
    for comparison, pattern in _COMPARISONS:
        for found in re.finditer(rf"(?:{pattern})(?: {_PEOPLE}\b| \w+_runs)?", text):
            number = int(next(g for g in found.groups() if g))
            rest = rest.replace(found.group(), " ")
            last = found.group().rsplit(" ", 1)[-1]
            if re.fullmatch(_PEOPLE, last):
                meaning.having.append(("count", comparison, number))
            elif re.search(r"\b(?:average|mean)", text) and not meaning.player:
                meaning.metric = last if last.endswith("_runs") else meaning.metric
                meaning.having.append(("AVG", comparison, number))
            else:
                meaning.conditions.append((last if last.endswith("_runs") else meaning.metric, comparison, number))
    meaning.conditions = list(dict.fromkeys(meaning.conditions))
    if meaning.having and any(what != "count" for what, _, _ in meaning.having) and not _ASKS_COUNTRY.search(text):
        meaning.conditions += [(meaning.metric, op, number) for _, op, number in meaning.having]
        meaning.having = []
    return rest


def _read_computation(text: str, meaning: Meaning) -> None:
    meaning.per_country = bool(_PER_COUNTRY.search(text) or (_ASKS_COUNTRY.search(text) and not meaning.player))
    meaning.above_mean = bool(_ABOVE_MEAN.search(text)) and not meaning.having
    counted = (
        rf"how many (?:of the )?(?:homeland )?(?:\w+ )?{_PEOPLE}|(?:number|count) of (?:homeland )?{_PEOPLE}|\bcount\b"
    )
    if meaning.above_mean or meaning.having:
        return
    if re.search(r"\b(?:average|mean)\b", text):
        meaning.aggregate = "AVG"
    elif re.search(r"\b(?:total|combined|sum|altogether)\b", text) and "all_formats" not in text:
        meaning.aggregate = "SUM"
    elif re.search(counted, text):
        meaning.count = True
    elif not re.search(
        rf"\bwho\b|\bwhich\b|{_PEOPLE} (?:\w+ )*with|\d {_PEOPLE}|\btop \d", text
    ) and not _RANKED.search(text):
        if re.search(rf"\b{_MOST}\b", text):
            meaning.aggregate = "MAX"
        elif re.search(rf"\b{_FEWEST}\b", text):
            meaning.aggregate = "MIN"


def _read_ranking(text: str, meaning: Meaning) -> None:
    if meaning.having or meaning.above_mean or meaning.aggregate in ("MAX", "MIN"):
        return
    down, up = re.search(rf"\b{_MOST}\b", text), re.search(rf"\b{_FEWEST}\b", text)
    if _RANKED.search(text):
        ascending = re.search(rf"{_FEWEST} (?:\w+ )?(?:first|to)|ascending", text)
        meaning.direction = "ASC" if ascending else "DESC"
        return
    if not (down or up):
        return
    if re.search(rf"^(?:what|give|find)\b.*\b(?:{_MOST}|{_FEWEST})\b", text) and not meaning.per_country:
        return
    meaning.direction = "DESC" if down else "ASC"
    number = re.search(
        rf"\b(?:{_MOST} )?(\d{{1,2}})(?: {_MOST}| homeland)? {_PEOPLE}|{_MOST} (\d{{1,2}})\b|\b(\d{{1,2}}) {_MOST}",
        text,
    )
    meaning.limit = int(next(g for g in number.groups() if g)) if number else 1
    if meaning.per_country and not meaning.aggregate:
        meaning.count = bool(re.search(rf"{_MOST} {_PEOPLE}|{_FEWEST} {_PEOPLE}", text)) or not meaning.metric


def _read_shown(text: str, meaning: Meaning) -> None:
    if meaning.per_country:
        meaning.show = ["country"]
        return
    if meaning.player:
        asks_debut = re.search(r"\bwhen\b|debut|\byear\b", text)
        asks_country = re.search(r"\b(?:country|nation|team)\b", text)
        meaning.show = ["all_formats"] if "all_formats" in text else ["debut"] if asks_debut else [meaning.metric]
        if asks_country and not meaning.metric:
            meaning.show = ["country"]
        meaning.aggregate = "" if "all_formats" in text else meaning.aggregate
        return
    meaning.show = ["player"]
    shown = re.search(r"(?:with|and) (?:their|his|the) (\w+_runs)\b|names and (?:their )?(\w+_runs)", text)
    if shown:
        meaning.show.append(next(g for g in shown.groups() if g))
