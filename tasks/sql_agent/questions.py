"""The questions: templates in three difficulties, each with several wordings and one reference query.

A *combination* is a template with its values (a country, a column, a year, ...). It gives exactly one reference query;
only its wording is drawn at random. Splits are cut by combination, so a query is asked about in one split only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tasks.sql_agent.players import COUNTRIES, PLAYERS

Values = dict[str, Any]
COLUMNS = ("odi_runs", "t20_runs", "test_runs")

_ALL_RUNS = "odi_runs + t20_runs + test_runs"
_BARS = {"odi_runs": range(4000, 12001, 1000), "t20_runs": range(500, 3001, 250), "test_runs": range(3000, 12001, 1000)}
_HIGH_MEANS = {
    "odi_runs": range(5000, 8001, 500),
    "t20_runs": range(750, 1751, 125),
    "test_runs": range(3500, 7001, 500),
}
_YEARS = range(1990, 2016)

# How a value may be said. One of the wordings is drawn for each question.
METRIC = {
    "odi_runs": ("ODI runs", "runs in ODIs", "one-day runs"),
    "t20_runs": ("T20 runs", "runs in T20s", "T20 international runs"),
    "test_runs": ("Test runs", "runs in Tests", "Test match runs"),
}
COMPARISON = {
    ">": ("more than {}", "over {}", "above {}"),
    ">=": ("at least {}", "{} or more"),
    "<": ("fewer than {}", "under {}"),
}
WHEN = {">": ("after {}",), ">=": ("since {}", "in {} or later"), "<": ("before {}",)}
AGGREGATE = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "combined"),
    "MAX": ("highest", "largest"),
    "MIN": ("lowest", "smallest"),
}
PEOPLE = ("batsmen", "batters", "players")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
PEOPLE_OF = {
    "India": "Indian",
    "Australia": "Australian",
    "Sri Lanka": "Sri Lankan",
    "Pakistan": "Pakistani",
    "South Africa": "South African",
    "West Indies": "West Indian",
    "New Zealand": "New Zealand",
    "England": "English",
    "Bangladesh": "Bangladeshi",
}


@dataclass(frozen=True)
class Template:
    """One kind of question. ``wordings`` and ``sql`` are format strings over the values and their spoken forms."""

    name: str
    difficulty: str
    tags: tuple[str, ...]
    sql: str
    wordings: tuple[str, ...]
    values: Callable[[], Iterator[Values]]

    def query(self, values: Values) -> str:
        return self.sql.format(**values)

    def ask(self, values: Values, rng: random.Random, words: Words | None = None) -> str:
        return rng.choice(self.wordings).format(**_spoken(values, rng, words or PLAIN))


@dataclass(frozen=True)
class Words:
    """How values are said: each has several forms, one of which is drawn for each question."""

    metric: Mapping[str, tuple[str, ...]]
    comparison: Mapping[str, tuple[str, ...]]
    when: Mapping[str, tuple[str, ...]]
    aggregate: Mapping[str, tuple[str, ...]]
    people: tuple[str, ...]


PLAIN = Words(METRIC, COMPARISON, WHEN, AGGREGATE, PEOPLE)


def _spoken(values: Mapping[str, Any], rng: random.Random, words: Words) -> Values:
    said: Values = {**values, "people": rng.choice(words.people)}
    for key, value in values.items():
        if key.startswith("column"):
            said[key.replace("column", "metric")] = rng.choice(words.metric[value])
        elif key.startswith("op"):
            bar = key.replace("op", "bar")
            said[bar] = rng.choice(words.comparison[value]).format(values[key.replace("op", "runs")])
    if "year_op" in values:
        said["when"] = rng.choice(words.when[values["year_op"]]).format(values["year"])
    if "fn" in values:
        said["aggregate"] = rng.choice(words.aggregate[values["fn"]])
    if "n" in values:
        said["n"] = rng.choice((str(values["n"]), NUMBERS[values["n"]]))
    if "country" in values:
        said["demonym"] = PEOPLE_OF[values["country"]]
    return said


def each(**choices: Any) -> Callable[[], Iterator[Values]]:
    """All combinations of the given values."""

    def values() -> Iterator[Values]:
        for picked in product(*choices.values()):
            yield dict(zip(choices, picked, strict=True))

    return values


def bars(
    of: Mapping[str, range] = _BARS, ops: Sequence[str] = (">", ">=", "<"), **more: Any
) -> Callable[[], Iterator[Values]]:
    """All (column, comparison, number) that make sense for the column, times ``more``."""

    def values() -> Iterator[Values]:
        for rest in each(**more)():
            for column, op in product(of, ops):
                for runs in of[column]:
                    yield {"column": column, "op": op, "runs": runs, **rest}

    return values


def _two_countries() -> Iterator[Values]:
    for i, country in enumerate(COUNTRIES):
        for other in COUNTRIES[i + 1 :]:
            yield {"country": country, "other": other}


def _two_bars() -> Iterator[Values]:
    for first, second in (("odi_runs", "test_runs"), ("test_runs", "t20_runs"), ("odi_runs", "t20_runs")):
        for runs, runs_2 in product(_BARS[first], _BARS[second]):
            yield {"column": first, "op": ">", "runs": runs, "column_2": second, "op_2": ">", "runs_2": runs_2}


def _spans() -> Iterator[Values]:
    for first, last in product(range(1990, 2008), range(1998, 2018)):
        if 3 <= last - first <= 10:
            yield {"first": first, "last": last}


_names = tuple(player[0] for player in PLAYERS)
_after = {"year_op": (">", ">=", "<"), "year": _YEARS}

EASY = (
    Template("from_country", "easy", ("filter",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}'",
        ("List all {people} from {country}", "Which {people} play for {country}?", "Show me every {demonym} player."),
        each(country=COUNTRIES)),
    Template("two_countries", "easy", ("filter",),
        "SELECT player_name FROM top_batsmen WHERE country_name IN ('{country}', '{other}')",
        ("List the {people} from {country} and {other}.", "Which {people} are from {country} or {other}?"),
        _two_countries),
    Template("bar", "easy", ("filter",),
        "SELECT player_name FROM top_batsmen WHERE {column} {op} {runs}",
        ("Which {people} have {bar} {metric}?", "List the {people} with {bar} {metric}.",
         "Who has scored {bar} {metric}?", "Show everybody who made {bar} {metric}."),
        bars()),
    Template("country_bar", "easy", ("filter",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' AND {column} {op} {runs}",
        ("Which {demonym} {people} have {bar} {metric}?", "List {people} from {country} with {bar} {metric}.",
         "Who has scored {bar} {metric} for {country}?"),
        bars(country=COUNTRIES)),
    Template("two_bars", "easy", ("filter",),
        "SELECT player_name FROM top_batsmen WHERE {column} > {runs} AND {column_2} > {runs_2}",
        ("Which {people} have {bar} {metric} and {bar_2} {metric_2}?",
         "Who made {bar} {metric} and also {bar_2} {metric_2}?"),
        _two_bars),
    Template("player_runs", "easy", ("lookup",),
        "SELECT {column} FROM top_batsmen WHERE player_name = '{player}'",
        ("How many {metric} does {player} have?", "How many {metric} has {player} scored?", "Give {player}'s {metric}.",
         "What are the {metric} of {player}?"),
        each(column=COLUMNS, player=_names)),
    Template("player_country", "easy", ("lookup",),
        "SELECT country_name FROM top_batsmen WHERE player_name = '{player}'",
        ("Which country does {player} play for?", "What is {player}'s country?", "What country is {player} from?"),
        each(player=_names)),
    Template("player_debut", "easy", ("lookup",),
        "SELECT odi_debut_year FROM top_batsmen WHERE player_name = '{player}'",
        ("When did {player} make his ODI debut?", "In which year did {player} make his debut?",
         "What is the ODI debut year of {player}?"),
        each(player=_names)),
    Template("debut_in", "easy", ("filter", "debut_year"),
        "SELECT player_name FROM top_batsmen WHERE odi_debut_year = {year}",
        ("Which {people} made their ODI debut in {year}?", "List the {people} who debuted in {year}.",
         "Who debuted in {year}?"),
        each(year=range(1986, 2022))),
)  # fmt: skip

MEDIUM = (
    Template("count_country", "medium", ("aggregate",),
        "SELECT COUNT(*) FROM top_batsmen WHERE country_name = '{country}'",
        ("How many {people} are from {country}?", "Count the {demonym} {people}.",
         "What is the number of {people} from {country}?"),
        each(country=COUNTRIES)),
    Template("count_bar", "medium", ("aggregate",),
        "SELECT COUNT(*) FROM top_batsmen WHERE {column} {op} {runs}",
        ("How many {people} have {bar} {metric}?", "Count the {people} with {bar} {metric}.",
         "What is the number of {people} with {bar} {metric}?"),
        bars()),
    Template("count_country_bar", "medium", ("aggregate",),
        "SELECT COUNT(*) FROM top_batsmen WHERE country_name = '{country}' AND {column} {op} {runs}",
        ("How many {demonym} {people} have {bar} {metric}?",
         "How many {people} from {country} have scored {bar} {metric}?"),
        bars(country=COUNTRIES)),
    Template("aggregate", "medium", ("aggregate",),
        "SELECT {fn}({column}) FROM top_batsmen",
        ("What is the {aggregate} number of {metric} among all {people}?",
         "Give the {aggregate} {metric} of all {people}."),
        each(fn=AGGREGATE, column=COLUMNS)),
    Template("aggregate_country", "medium", ("aggregate",),
        "SELECT {fn}({column}) FROM top_batsmen WHERE country_name = '{country}'",
        ("What is the {aggregate} number of {metric} among {demonym} {people}?",
         "What are the {aggregate} {metric} of {people} from {country}?",
         "Give the {aggregate} number of {metric} for {country}."),
        each(fn=AGGREGATE, column=COLUMNS, country=COUNTRIES)),
    Template("top_n", "medium", ("order_limit",),
        "SELECT player_name FROM top_batsmen ORDER BY {column} DESC LIMIT {n}",
        ("Who are the top {n} {people} by {metric}?", "List the {n} {people} with the most {metric}.",
         "Name the best {n} {people} in terms of {metric}."),
        each(column=COLUMNS, n=NUMBERS)),
    Template("top_n_country", "medium", ("order_limit",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' ORDER BY {column} DESC LIMIT {n}",
        ("Who are the top {n} {demonym} {people} by {metric}?",
         "List the {n} {people} from {country} with the most {metric}."),
        each(column=COLUMNS, n=(2, 3, 4, 5), country=COUNTRIES)),
    Template("top_n_with", "medium", ("order_limit",),
        "SELECT player_name, {column} FROM top_batsmen ORDER BY {column} DESC LIMIT {n}",
        ("Show the top {n} {people} by {metric}, together with their {metric}.",
         "List the names and {metric} of the {n} {people} with the most {metric}."),
        each(column=COLUMNS, n=NUMBERS)),
    Template("most_country", "medium", ("order_limit",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' ORDER BY {column} DESC LIMIT 1",
        ("Who has the most {metric} for {country}?", "Which {demonym} player has scored the most {metric}?",
         "Name the player from {country} with the highest number of {metric}."),
        each(column=COLUMNS, country=COUNTRIES)),
    Template("fewest_country", "medium", ("order_limit",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' ORDER BY {column} LIMIT 1",
        ("Who has the fewest {metric} for {country}?", "Which {demonym} player has the lowest number of {metric}?"),
        each(column=COLUMNS, country=COUNTRIES)),
    Template("ranked", "medium", ("order_limit",),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' ORDER BY {column} DESC",
        ("List the {people} from {country} in order of {metric}, highest first.",
         "Rank the {demonym} {people} by {metric}, from most to fewest."),
        each(column=COLUMNS, country=COUNTRIES)),
    Template("all_formats", "medium", ("aggregate", "multi_step"),
        f"SELECT {_ALL_RUNS} FROM top_batsmen WHERE player_name = '{{player}}'",
        ("How many runs has {player} made across all three formats?",
         "What is {player}'s combined total of runs in all formats?"),
        each(player=_names)),
)  # fmt: skip

HARD = (
    Template("most_debuts", "hard", ("group", "order_limit", "debut_year"),
        "SELECT country_name FROM top_batsmen WHERE odi_debut_year {year_op} {year}"
        " GROUP BY country_name ORDER BY COUNT(*) DESC LIMIT 1",
        ("Which country has the most debutants {when}?",
         "Which country had the most players making their ODI debut {when}?"),
        each(**_after)),
    Template("count_per_country", "hard", ("group", "aggregate"),
        "SELECT country_name, COUNT(*) FROM top_batsmen WHERE {column} {op} {runs} GROUP BY country_name",
        ("For each country, how many {people} have {bar} {metric}?",
         "How many {people} with {bar} {metric} does each country have?"),
        bars()),
    Template("aggregate_per_country", "hard", ("group", "aggregate"),
        "SELECT country_name, {fn}({column}) FROM top_batsmen GROUP BY country_name",
        ("What is the {aggregate} number of {metric} for each country?", "Give the {aggregate} {metric} per country."),
        each(fn=AGGREGATE, column=COLUMNS)),
    Template("best_country", "hard", ("group", "order_limit", "aggregate"),
        "SELECT country_name FROM top_batsmen GROUP BY country_name ORDER BY {fn}({column}) DESC LIMIT 1",
        ("Which country has the highest {aggregate} number of {metric}?",
         "Which country's {people} have the highest {aggregate} {metric}?"),
        each(fn=("AVG", "SUM"), column=COLUMNS)),
    Template("having_count", "hard", ("group", "having"),
        "SELECT country_name FROM top_batsmen WHERE {column} {op} {runs} GROUP BY country_name HAVING COUNT(*) > {n}",
        ("Which countries have more than {n} {people} with {bar} {metric}?",
         "List the countries that have more than {n} {people} with {bar} {metric}."),
        bars(ops=(">", ">="), n=(2, 3, 4))),
    Template("having_mean", "hard", ("group", "having", "aggregate"),
        "SELECT country_name FROM top_batsmen GROUP BY country_name HAVING AVG({column}) {op} {runs}",
        ("Which countries have an average of {bar} {metric}?",
         "In which countries do {people} average {bar} {metric}?"),
        bars(_HIGH_MEANS)),
    Template("count_debut", "hard", ("aggregate", "debut_year"),
        "SELECT COUNT(*) FROM top_batsmen WHERE odi_debut_year {year_op} {year}",
        ("How many {people} made their ODI debut {when}?", "Count the {people} who debuted {when}."),
        each(**_after)),
    Template("count_span", "hard", ("aggregate", "debut_year"),
        "SELECT COUNT(*) FROM top_batsmen WHERE odi_debut_year BETWEEN {first} AND {last}",
        ("How many {people} debuted between {first} and {last}, both years included?",
         "What is the number of {people} whose ODI debut was from {first} to {last}?"),
        _spans),
    Template("list_debut", "hard", ("filter", "debut_year"),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}' AND odi_debut_year {year_op} {year}",
        ("Which {demonym} {people} made their ODI debut {when}?",
         "List the {people} from {country} who debuted {when}."),
        each(country=COUNTRIES, **_after)),
    Template("best_debut", "hard", ("order_limit", "debut_year", "multi_step"),
        "SELECT player_name FROM top_batsmen WHERE odi_debut_year {year_op} {year} ORDER BY {column} DESC LIMIT 1",
        ("Among the {people} who debuted {when}, who has the most {metric}?",
         "Who has scored the most {metric} of all {people} whose ODI debut came {when}?"),
        each(column=COLUMNS, **_after)),
    Template("mean_debut", "hard", ("aggregate", "debut_year", "multi_step"),
        "SELECT AVG({column}) FROM top_batsmen WHERE odi_debut_year {year_op} {year}",
        ("What is the average number of {metric} among {people} who debuted {when}?",
         "On average, how many {metric} do {people} have whose ODI debut came {when}?"),
        each(column=COLUMNS, **_after)),
    Template("above_mean", "hard", ("multi_step", "aggregate"),
        "SELECT player_name FROM top_batsmen WHERE country_name = '{country}'"
        " AND {column} > (SELECT AVG({column}) FROM top_batsmen)",
        ("Which {demonym} {people} have more {metric} than the overall average?",
         "List the {people} from {country} whose {metric} are above the average of all {people}."),
        each(column=COLUMNS, country=COUNTRIES)),
)  # fmt: skip

TEMPLATES = EASY + MEDIUM + HARD
