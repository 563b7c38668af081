"""The simulated student: reads its instructions and the question, and writes SQL as well as it was taught to."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any

from tasks.sql_agent.simulation.english import Meaning, understand
from tasks.sql_agent.simulation.reading import Teaching, read_instructions
from tasks.sql_agent.simulation.writing import Able, Schema, read_schema, write_sql

_UNTAUGHT = {
    "count": 0.30, "AVG": 0.25, "SUM": 0.25, "MAX": 0.25, "MIN": 0.25, "order": 0.45, "limit": 0.65, "group": 0.12,
    "having": 0.12, "year": 0.40, "columns": 0.55, "subquery": 0.12, "formats": 0.20,
}  # fmt: skip
"""How often each construction comes by itself."""
_TAUGHT = 0.99
_FORBIDDEN = 0.02
_ALWAYS = {"plain_columns": 0.985, "spelling": 0.995, "wordy": 0.5}
_SLIPS = 0.045
"""How often a reply is spoilt by a slip that no instruction prevents; a plain lookup or filter has a third of that."""
_BROKEN_BY_EXPLAINING = 0.5
_LUCK_OF_THE_QUESTION = 0.5
"""How much of its luck is the question's: what it finds hard under one prompt it tends to find hard under another."""


def reply(request: dict[str, Any]) -> str:
    """Answer a chat request: SQL in a fence, mostly."""
    messages = [(message.get("role", ""), _text(message)) for message in request.get("messages", [])]
    rng = _dice(request, messages)
    system = "\n\n".join(text for role, text in messages if role in ("system", "developer"))
    asked = [text for role, text in messages if role == "user"]
    if not asked:
        return "What would you like to know?"
    system, question = (system, asked[0]) if system else _split(asked[0])
    teaching = read_instructions(system)
    schema = read_schema("\n".join(text for role, text in messages if role != "assistant"))
    meaning = understand(question)
    sql = write_sql(
        meaning, schema, _abilities(teaching, rng, [request.get("seed"), asked]), after_error=len(asked) > 1
    )
    sql = _act_on_habits(sql, meaning, teaching, schema, rng)
    temperature = float(request.get("temperature") or 0.0)
    slips = _SLIPS * (1 + 0.3 * temperature + 2 * teaching.dilution) / (3 if meaning.simple else 1)
    if rng.random() < slips:
        sql = _slip(sql, schema, rng)
    return _worded(sql, teaching, rng)


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def _dice(request: dict[str, Any], messages: list[tuple[str, str]]) -> random.Random:
    """One generator for each (seed, conversation): the same request always gets the same reply."""
    return _seeded([request.get("seed"), messages])


def _seeded(material: list[Any]) -> random.Random:
    digest = hashlib.sha256(json.dumps(material).encode("utf-8", "replace")).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _split(text: str) -> tuple[str, str]:
    """Instructions and question of a conversation without a system message: the question comes last."""
    head, _, last = text.strip().rpartition("\n")
    return head, last


def _abilities(teaching: Teaching, rng: random.Random, question: list[Any]) -> Able:
    drawn: dict[str, bool] = {}

    def able(skill: str) -> bool:
        if skill not in drawn:
            luck = rng if rng.random() > _LUCK_OF_THE_QUESTION else _seeded([skill, *question])
            drawn[skill] = luck.random() < _chance(skill, teaching)
        return drawn[skill]

    return able


def _chance(skill: str, teaching: Teaching) -> float:
    if skill in _ALWAYS:
        return _ALWAYS[skill]
    untaught, taught = _UNTAUGHT[skill], teaching.skills[skill]
    if taught < 0:
        return _FORBIDDEN
    return untaught + (_TAUGHT - untaught) * taught * (1 - teaching.dilution)


def _act_on_habits(sql: str, meaning: Meaning, teaching: Teaching, schema: Schema, rng: random.Random) -> str:
    habits = teaching.habits
    if "star" in habits and rng.random() < 0.6:
        sql = re.sub(rf"^SELECT {schema['player']}\b(?:, \w+)*", "SELECT *", sql)
    if "round" in habits:
        sql = re.sub(r"\b(AVG\(\w+\))", r"ROUND(\1)", sql, count=1)
    if "skip_zero" in habits and meaning.metric and "LIMIT" not in sql:
        sql = _also(sql, f"{schema[meaning.metric]} > 0")
    if "upper" in habits:
        sql = re.sub(r"'([\w ]+)'", lambda name: name.group().upper(), sql)
    if "join" in habits and rng.random() < 0.15:
        sql = sql.replace(f"FROM {schema.table}", f"FROM {schema.table} JOIN countries USING ({schema['country']})", 1)
    if "always_limit" in habits and "LIMIT" not in sql:
        sql += f" LIMIT {teaching.limit}"
    return sql


def _also(sql: str, condition: str) -> str:
    head, tail = re.match(r"(.*?)((?: GROUP BY| ORDER BY| LIMIT).*)?$", sql, re.DOTALL).groups("")  # type: ignore[union-attr]
    return f"{head} {'AND' if ' WHERE ' in head else 'WHERE'} {condition}{tail}"


def _slip(sql: str, schema: Schema, rng: random.Random) -> str:
    """A careless mistake: a wrong column, a lost condition, a wrong sign, a typing error."""
    kinds = [_other_column, _lost_condition, _wrong_sign, _typing_error]
    rng.shuffle(kinds)
    for kind in kinds:
        spoilt = kind(sql, schema, rng)
        if spoilt != sql:
            return spoilt
    return sql


def _other_column(sql: str, schema: Schema, rng: random.Random) -> str:
    runs = [schema[name] for name in ("odi_runs", "t20_runs", "test_runs")]
    used = [column for column in runs if re.search(rf"\b{column}\b", sql)]
    if not used:
        return sql
    return re.sub(rf"\b{used[0]}\b", rng.choice([column for column in runs if column != used[0]]), sql)


def _lost_condition(sql: str, schema: Schema, rng: random.Random) -> str:
    return re.sub(r" WHERE (?:(?! AND | GROUP| ORDER).)+ AND ", " WHERE ", sql, count=1)


def _wrong_sign(sql: str, schema: Schema, rng: random.Random) -> str:
    return re.sub(
        r" (>=?|<=?) ", lambda sign: {">": " >= ", ">=": " > ", "<": " <= ", "<=": " < "}[sign[1]], sql, count=1
    )


def _typing_error(sql: str, schema: Schema, rng: random.Random) -> str:
    return (
        sql.replace(schema["player"], schema["player"] + "s", 1)
        if rng.random() < 0.5
        else sql.replace("FROM", "FORM", 1)
    )


def _worded(sql: str, teaching: Teaching, rng: random.Random) -> str:
    if "explain" in teaching.habits:
        thought = "First I look at which rows are meant, then at which columns to show."
        if rng.random() < _BROKEN_BY_EXPLAINING:
            return f"{thought} I would write {sql} and that gives what was asked for, because it reads the right table."
        return f"{thought}\n\n```sql\n{sql}\n```"
    return f"```sql\n{sql}\n```" if rng.random() < 0.5 else f"{sql};"
