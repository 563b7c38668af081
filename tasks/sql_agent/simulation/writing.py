"""How the simulated student turns a meaning into SQL, and what it does where it was not told how.

``able(skill)`` answers, for this one reply, whether the student manages a construction. Each inability has its own
natural mistake: rows instead of a count, an unsorted list, no groups, a boundary year on the wrong side.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tasks.sql_agent.simulation.english import Condition, Meaning

Able = Callable[[str], bool]
_OFF_BY_ONE = {">": ">=", ">=": ">", "<": "<=", "<=": "<"}
_TABLE = re.compile(r"(?:create\s+table\s+)?[\"`]?(\w+)[\"`]?\s*\(([^()]*,[^()]*)\)", re.IGNORECASE)


@dataclass(frozen=True)
class Schema:
    """The table as the messages describe it: which column means what."""

    table: str
    columns: dict[str, str]

    def __getitem__(self, role: str) -> str:
        return self.columns[role]


_GUESSED = Schema(
    "players",
    {
        "player": "name",
        "country": "country",
        "debut": "debut_year",
        "odi_runs": "odi",
        "t20_runs": "t20",
        "test_runs": "test",
    },
)


def read_schema(text: str) -> Schema:
    """Find the table in the conversation. A student who is shown none guesses names, and guesses wrong."""
    for found in _TABLE.finditer(text):
        columns: dict[str, str] = {}
        for declared in found[2].split(","):
            name = declared.split()[0].strip('"`') if declared.split() else ""
            role = _role(name.lower())
            if role:
                columns.setdefault(role, name)
        if len(columns) == len(_GUESSED.columns):
            return Schema(found[1], columns)
    return _GUESSED


def _role(name: str) -> str:
    for role, word in (
        ("debut", "debut"),
        ("country", "country"),
        ("odi_runs", "odi"),
        ("t20_runs", "t20"),
        ("test_runs", "test"),
    ):
        if word in name:
            return role
    return "player" if "name" in name or "player" in name else ""


def write_sql(meaning: Meaning, schema: Schema, able: Able, after_error: bool = False) -> str:
    """One query for the meaning, as good as the abilities allow."""
    where = _where(meaning, schema, able, after_error)
    if meaning.per_country:
        return _by_country(meaning, schema, able, where)
    source = f"FROM {schema.table}{where}"
    if meaning.count:
        return f"SELECT COUNT(*) {source}" if able("count") else f"SELECT {schema['player']} {source}"
    if meaning.aggregate and meaning.metric:
        column = schema[meaning.metric]
        if able(meaning.aggregate):
            return f"SELECT {meaning.aggregate}({column}) {source}"
        return f"SELECT {schema['player']}, {column} {source}" if able("wordy") else f"SELECT {column} {source}"
    return f"SELECT {', '.join(_shown(meaning, schema, able))} {source}{_ranking(meaning, schema, able)}"


def _shown(meaning: Meaning, schema: Schema, able: Able) -> list[str]:
    runs = [schema[column] for column in ("odi_runs", "t20_runs", "test_runs")]
    columns = []
    for what in meaning.show:
        if what == "all_formats":
            columns += [" + ".join(runs)] if able("formats") else runs
        else:
            columns.append(schema[what or "player"])
    if not able("plain_columns" if meaning.simple or meaning.player else "columns"):
        used = [meaning.metric] if meaning.metric else []
        extra = [schema[what] for what in [*used, "country", "player"] if schema[what] not in columns]
        columns += extra[:1]
    return columns


def _ranking(meaning: Meaning, schema: Schema, able: Able) -> str:
    if not meaning.direction or not meaning.metric or not able("order"):
        return ""
    down = " DESC" if meaning.direction == "DESC" else ""
    limit = f" LIMIT {meaning.limit}" if meaning.limit and able("limit") else ""
    return f" ORDER BY {schema[meaning.metric]}{down}{limit}"


def _by_country(meaning: Meaning, schema: Schema, able: Able, where: str) -> str:
    country = schema["country"]
    figure = "COUNT(*)"
    if meaning.metric and not meaning.count:
        function = meaning.aggregate or next((what for what, _, _ in meaning.having if what != "count"), "")
        figure = f"{function}({schema[meaning.metric]})" if function else figure
    managed = able("count" if figure == "COUNT(*)" else figure.split("(")[0])
    if not able("group"):
        return _ungrouped(meaning, schema, able, where, figure if managed else "")
    groups = f"FROM {schema.table}{where} GROUP BY {country}"
    if meaning.having:
        shown = country if able("columns") else f"{country}, {figure}"
        if not (able("having") and managed):
            return f"SELECT {shown} {groups}"
        return f"SELECT {shown} {groups} HAVING " + " AND ".join(f"{figure} {op} {n}" for _, op, n in meaning.having)
    if meaning.direction:
        if not (able("order") and managed):
            return f"SELECT {country}, {figure} {groups}"
        down = " DESC" if meaning.direction == "DESC" else ""
        limit = f" LIMIT {meaning.limit}" if able("limit") else ""
        return (
            f"SELECT {country if able('columns') else f'{country}, {figure}'} {groups} ORDER BY {figure}{down}{limit}"
        )
    return f"SELECT {country}, {figure if managed else schema[meaning.metric or 'player']} {groups}"


def _ungrouped(meaning: Meaning, schema: Schema, able: Able, where: str, figure: str) -> str:
    """Country questions by someone who does not think of grouping."""
    country, metric = schema["country"], schema[meaning.metric or "debut"]
    if meaning.having:
        asked = [(meaning.metric or "odi_runs", op, n) for what, op, n in meaning.having if what != "count"]
        return f"SELECT {country} FROM {schema.table}{_join(where, [_runs(c, schema) for c in asked])}"
    if meaning.direction and able("order"):
        down = " DESC" if meaning.direction == "DESC" else ""
        return f"SELECT {country} FROM {schema.table}{where} ORDER BY {metric}{down} LIMIT {meaning.limit}"
    return f"SELECT {country}{', ' + figure if figure else ''} FROM {schema.table}{where}"


def _where(meaning: Meaning, schema: Schema, able: Able, after_error: bool) -> str:
    parts = []
    if meaning.player:
        name = meaning.player.replace("'", "''")
        parts.append(f"{schema['player']} = '{name}'")
    if len(meaning.countries) == 1:
        parts.append(f"{schema['country']} = '{_spelt(meaning.countries[0], able)}'")
    elif meaning.countries:
        names = ", ".join(f"'{_spelt(name, able)}'" for name in meaning.countries)
        parts.append(f"{schema['country']} IN ({names})")
    parts += [_runs(condition, schema) for condition in meaning.conditions]
    if meaning.years and not (meaning.player and meaning.show == ["debut"]):
        strict = meaning.years[0][1] == "=" or able("year")
        parts += [
            f"{schema['debut']} {op if strict else _OFF_BY_ONE.get(op, op)} {year}" for _, op, year in meaning.years
        ]
    if meaning.above_mean and meaning.metric:
        column = schema[meaning.metric]
        if able("subquery"):
            parts.append(f"{column} > (SELECT AVG({column}) FROM {schema.table})")
        elif not after_error:
            parts.append(f"{column} > AVG({column})")
    return _join("", parts)


def _runs(condition: Condition, schema: Schema) -> str:
    what, op, number = condition
    return f"{schema[what or 'odi_runs']} {op} {number}"


def _join(where: str, parts: list[str]) -> str:
    if not parts:
        return where
    return f"{where} {'AND' if where else 'WHERE'} {' AND '.join(parts)}"


def _spelt(country: str, able: Able) -> str:
    return country if able("spelling") else country.upper()
