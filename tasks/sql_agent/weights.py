"""The splits that weights are trained and tested on: ``sft``, ``rl``, ``rl_val`` and ``weights_test``.

The prompt's splits (``questions``) are few. A model that learns from nothing needs more: here numbers are finer, and
new kinds of questions combine two conditions. ``sft`` comes with gold answers to imitate; those of ``rl`` only the
reward sees. All splits are drawn from the same kinds and wordings, ``rl`` with more of the hard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tasks.sql_agent.players import COUNTRIES
from tasks.sql_agent.questions import (
    AGGREGATE,
    COLUMNS,
    EASY,
    HARD,
    MEDIUM,
    NUMBERS,
    Template,
    Values,
    Words,
    bars,
    each,
)

SIZES = {
    "weights_test": (150, 200, 250),
    "rl_val": (35, 50, 65),
    "sft": (110, 140, 150),
    "rl": (250, 500, 750),
}
"""Split -> rows of (easy, medium, hard). Kinds with few combinations go to the earlier splits first."""

WORDS = Words(
    metric={
        "odi_runs": ("ODI runs", "runs in ODIs"),
        "t20_runs": ("T20 runs", "runs in T20s"),
        "test_runs": ("Test runs", "runs in Tests"),
    },
    comparison={
        ">": ("more than {}", "over {}"),
        ">=": ("at least {}", "{} or more"),
        "<": ("fewer than {}", "under {}"),
    },
    when={
        ">": ("after {}", "later than {}"),
        ">=": ("since {}", "in {} or later"),
        "<": ("before {}", "earlier than {}"),
    },
    aggregate={
        "AVG": ("average", "mean"),
        "SUM": ("total", "combined"),
        "MAX": ("highest", "largest"),
        "MIN": ("lowest", "smallest"),
    },
    people=("batsmen", "batters"),
)

_FINE = {"odi_runs": range(2000, 12001, 500), "t20_runs": range(200, 3101, 200), "test_runs": range(2000, 12001, 500)}
_ROUND = {
    "odi_runs": range(4000, 10001, 1000),
    "t20_runs": range(400, 2401, 400),
    "test_runs": range(4000, 10001, 1000),
}
_FINE_MEANS = {
    "odi_runs": range(4500, 9001, 100),
    "t20_runs": range(500, 2001, 50),
    "test_runs": range(3000, 8501, 100),
}
_YEARS = range(1986, 2017)
_SOME_YEARS = range(1988, 2016, 2)
_NUMBERS = tuple(NUMBERS)
_when = {"year_op": (">", ">=", "<"), "year": _YEARS}
_sometimes = {"year_op": (">", ">=", "<"), "year": _SOME_YEARS}
_PLAYED = "FROM top_batsmen WHERE country_name = '{country}'"
_DEBUTED = "FROM top_batsmen WHERE odi_debut_year {year_op} {year}"
_ALL_RUNS = "odi_runs + t20_runs + test_runs"


def _spans() -> Iterator[Values]:
    for first in range(1986, 2014):
        for last in range(first + 2, min(first + 13, 2020)):
            yield {"first": first, "last": last}


_FINER: dict[str, Callable[[], Iterator[Values]]] = {
    "bar": bars(_FINE),
    "country_bar": bars(_FINE, country=COUNTRIES),
    "count_bar": bars(_FINE),
    "count_country_bar": bars(_FINE, country=COUNTRIES),
    "top_n_country": each(column=COLUMNS, n=_NUMBERS, country=COUNTRIES),
    "most_debuts": each(**_when),
    "count_per_country": bars(_FINE),
    "having_count": bars(_FINE, ops=(">", ">="), n=(2, 3, 4)),
    "having_mean": bars(_FINE_MEANS),
    "count_debut": each(**_when),
    "count_span": _spans,
    "list_debut": each(country=COUNTRIES, **_when),
    "best_debut": each(column=COLUMNS, **_when),
    "mean_debut": each(column=COLUMNS, **_when),
}
"""Template of the prompt's questions -> more values than there."""

_COMBINED_MEDIUM = (
    Template("count_country_debut", "medium", ("aggregate", "debut_year"),
        f"SELECT COUNT(*) {_PLAYED} AND odi_debut_year {{year_op}} {{year}}",
        ("How many {demonym} {people} debuted {when}?", "Count the {people} from {country} with a debut {when}."),
        each(country=COUNTRIES, **_when)),
    Template("aggregate_debut", "medium", ("aggregate", "debut_year"),
        f"SELECT {{fn}}({{column}}) {_DEBUTED}",
        ("What is the {aggregate} number of {metric} for {people} who debuted {when}?",
         "Give the {aggregate} {metric} of {people} with a debut {when}."),
        each(fn=("SUM", "MAX", "MIN"), column=COLUMNS, **_sometimes)),
    Template("list_debut_bar", "medium", ("filter", "debut_year"),
        f"SELECT player_name {_DEBUTED} AND {{column}} {{op}} {{runs}}",
        ("Which {people} who debuted {when} have {bar} {metric}?",
         "List {people} with a debut {when} and {bar} {metric}."),
        bars(_ROUND, year_op=(">", ">=", "<"), year=_SOME_YEARS)),
    Template("top_n_debut", "medium", ("order_limit", "debut_year"),
        f"SELECT player_name {_DEBUTED} ORDER BY {{column}} DESC LIMIT {{n}}",
        ("Who are the top {n} {people} by {metric} with a debut {when}?",
         "Of all {people} who debuted {when}, list the {n} with the most {metric}."),
        each(column=COLUMNS, n=_NUMBERS, **_sometimes)),
)  # fmt: skip

_COMBINED_HARD = (
    Template("best_country_debut", "hard", ("group", "order_limit", "aggregate", "debut_year"),
        f"SELECT country_name {_DEBUTED} GROUP BY country_name ORDER BY {{fn}}({{column}}) DESC LIMIT 1",
        ("Which country has the highest {aggregate} {metric}, counting only {people} who debuted {when}?",
         "Among {people} with a debut {when}, which country has the best {aggregate} {metric}?"),
        each(fn=("AVG", "SUM"), column=COLUMNS, **_sometimes)),
    Template("most_country_debut", "hard", ("order_limit", "debut_year", "multi_step"),
        f"SELECT player_name {_PLAYED} AND odi_debut_year {{year_op}} {{year}} ORDER BY {{column}} DESC LIMIT 1",
        ("Which {demonym} player who debuted {when} has the most {metric}?",
         "Among {people} from {country} with a debut {when}, who has the most {metric}?"),
        each(column=COLUMNS, country=COUNTRIES, **_sometimes)),
    Template("fewest_country_debut", "hard", ("order_limit", "debut_year", "multi_step"),
        f"SELECT player_name {_PLAYED} AND odi_debut_year {{year_op}} {{year}} ORDER BY {{column}} LIMIT 1",
        ("Which {demonym} player who debuted {when} has the fewest {metric}?",
         "Among {people} from {country} with a debut {when}, who has the least {metric}?"),
        each(column=COLUMNS, country=COUNTRIES, **_sometimes)),
    Template("count_per_country_debut", "hard", ("group", "aggregate", "debut_year"),
        f"SELECT country_name, COUNT(*) {_DEBUTED} GROUP BY country_name",
        ("How many {people} per country debuted {when}?", "For each country, count the {people} who debuted {when}."),
        each(**_when)),
    Template("aggregate_per_country_debut", "hard", ("group", "aggregate", "debut_year"),
        f"SELECT country_name, {{fn}}({{column}}) {_DEBUTED} GROUP BY country_name",
        ("What is the {aggregate} number of {metric} for each country, among {people} who debuted {when}?",
         "Give the {aggregate} {metric} per country of {people} with a debut {when}."),
        each(fn=AGGREGATE, column=COLUMNS, **_sometimes)),
    Template("above_country_mean", "hard", ("multi_step", "aggregate"),
        f"SELECT player_name FROM top_batsmen WHERE {{column}} > (SELECT AVG({{column}}) {_PLAYED})",
        ("Which {people} have more {metric} than the average of {country}?",
         "List all {people} whose {metric} are above the {demonym} average."),
        each(column=COLUMNS, country=COUNTRIES)),
    Template("above_debut_mean", "hard", ("multi_step", "aggregate", "debut_year"),
        f"SELECT player_name {_DEBUTED} AND {{column}} > (SELECT AVG({{column}}) FROM top_batsmen)",
        ("Which {people} who debuted {when} have more {metric} than the overall average?",
         "List {people} with a debut {when} whose {metric} are above the average of all {people}."),
        each(column=COLUMNS, **_when)),
    Template("top_all_formats", "hard", ("order_limit", "multi_step"),
        f"SELECT player_name {_PLAYED} ORDER BY {_ALL_RUNS} DESC LIMIT {{n}}",
        ("Who are the top {n} {demonym} {people} by runs in all formats?",
         "List the {n} {people} from {country} with the most runs across all formats."),
        each(n=_NUMBERS, country=COUNTRIES)),
    Template("top_all_formats_debut", "hard", ("order_limit", "multi_step", "debut_year"),
        f"SELECT player_name {_DEBUTED} ORDER BY {_ALL_RUNS} DESC LIMIT {{n}}",
        ("Who are the top {n} {people} by runs in all formats with a debut {when}?",
         "List the {n} {people} who debuted {when} with the most runs across all formats."),
        each(n=_NUMBERS, **_sometimes)),
)  # fmt: skip


def _finer(templates: tuple[Template, ...]) -> tuple[Template, ...]:
    return tuple(replace(template, values=_FINER.get(template.name, template.values)) for template in templates)


LEVELS = (_finer(EASY), _finer(MEDIUM) + _COMBINED_MEDIUM, _finer(HARD) + _COMBINED_HARD)
"""Templates by difficulty: easy, medium, hard."""
