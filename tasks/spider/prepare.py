"""Turn a download of Spider (Yu et al., 2018) into the rows and databases that ``recipes/sql_agent_gpu.yaml`` reads.

    python -m tasks.spider.prepare spider_data.zip          # or the folder that it unpacks to
    python -m tasks.spider.prepare ~/data/spider --out tasks/spider/data --val-share 0.08

The zip is at https://yale-lily.github.io/spider (CC BY-SA 4.0); nothing is downloaded here. Read are ``tables.json``,
``train_spider.json``, ``dev.json`` and ``database/<db>/<db>.sqlite``. Written are ``train.jsonl``, ``val.jsonl`` (whole
databases of the training questions), ``test.jsonl`` (the dev questions: Spider's own test set came later, and published
figures are of dev) and ``database/<db>/{<db>.sqlite, schema.txt}``. No database is in two splits.

Left out, and counted: questions whose reference query does not run under the guard that the agent's queries run under,
and in train and val those with an empty result, which any query that finds nothing would match.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.spider.databases import opened
from tasks.sql_agent.database import Database, QueryError

HERE = Path(__file__).parent
NEEDED = ("tables.json", "train_spider.json", "dev.json")
VAL_SHARE = 0.08
"""Of the training questions; a database goes to val whole."""

_NAME = re.compile(r"\w[\w.-]*")
_FEATURES = {
    "join": r"\bJOIN\b",
    "group": r"\bGROUP\s+BY\b",
    "order": r"\bORDER\s+BY\b",
    "nested": r"\(\s*SELECT\b",
    "set": r"\b(UNION|EXCEPT|INTERSECT)\b",
}
_COMPILED = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _FEATURES.items()}


class Unfit(Exception):
    """What was given is not Spider; says what, where, and what to give."""


def prepare(source: Path, out: Path, val_share: float = VAL_SHARE) -> dict[str, Counter[str]]:
    """Write ``out`` whole or not at all; split -> counts of ``rows``, ``databases`` and what was left out.

    Raises Unfit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = _root(source, Path(scratch))
        tables = {str(entry.get("db_id")): entry for entry in _entries(root / "tables.json", ("db_id",))}
        train = _questions(root / "train_spider.json", tables)
        dev = _questions(root / "dev.json", tables)
        if both := {row["db_id"] for row in train} & {row["db_id"] for row in dev}:
            raise Unfit(f"{root / 'dev.json'}: {', '.join(sorted(both)[:3])} is also in train_spider.json")
        judged = _held_out(train, val_share)
        splits = {
            "train": [row for row in train if row["db_id"] not in judged],
            "val": [row for row in train if row["db_id"] in judged],
            "test": dev,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            building.chmod(0o755)
            counts = {name: _write(building, root, tables, name, rows) for name, rows in splits.items()}
            shutil.rmtree(out, ignore_errors=True)
            os.replace(building, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return counts


def _root(source: Path, scratch: Path) -> Path:
    """The folder that holds ``NEEDED``: the one given, one in it, or what a zip holds."""
    if not source.exists():
        raise Unfit(f"{source}: is not there; download Spider's zip from https://yale-lily.github.io/spider")
    if source.is_file():
        try:
            with zipfile.ZipFile(source) as archive:
                wanted = [name for name in archive.namelist() if _is_wanted(name)]
                archive.extractall(scratch, wanted)  # never outside of it: zipfile cleans the names
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise Unfit(f"{source}: is no zip that can be read: {error}") from error
        where, given = scratch, f"{source}"
    else:
        where, given = source, f"{source}"
    for folder in (where, *sorted(path for path in where.iterdir() if path.is_dir())):
        if all((folder / name).is_file() for name in NEEDED):
            return folder
    there = [name for name in NEEDED if next(where.glob(f"**/{name}"), None)]
    lacks = ", ".join(name for name in NEEDED if name not in there) or "one folder with all three"
    raise Unfit(f"{given}: has no {lacks}; give Spider's zip, or the folder with {', '.join(NEEDED)} and database/")


def _is_wanted(name: str) -> bool:
    path = Path(name)
    return "__MACOSX" not in path.parts and (path.name in NEEDED or path.suffix == ".sqlite")


def _entries(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Unfit(f"{path}: is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise Unfit(f"{path}: holds {type(entries).__name__}, not a list of entries")
    for number, entry in enumerate(entries):
        for field in fields:
            if not isinstance(entry, dict) or not isinstance(entry.get(field), str) or not entry[field].strip():
                raise Unfit(f"{path}: entry {number}: has no text in '{field}'")
        if not _NAME.fullmatch(entry["db_id"]):
            raise Unfit(f"{path}: entry {number}: {entry['db_id']!r} cannot be the name of a database")
    return entries


def _questions(path: Path, tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for number, entry in enumerate(_entries(path, ("db_id", "question", "query"))):
        db, sql = entry["db_id"], " ".join(entry["query"].split()).rstrip("; ")
        if db not in tables:
            raise Unfit(f"{path}: entry {number}: {db} is not in tables.json")
        file = path.parent / "database" / db / f"{db}.sqlite"
        if not file.is_file():
            raise Unfit(f"{path}: entry {number}: its database is not there: {file}")
        tags = [name for name, pattern in _COMPILED.items() if pattern.search(sql)]
        question = " ".join(entry["question"].split())
        name = f"{path.stem.removesuffix('_spider')}-{number}"
        rows.append({"id": name, "db_id": db, "question": question, "sql": sql, "tags": tags or ["plain"]})
    return rows


def _held_out(rows: Sequence[Mapping[str, Any]], share: float) -> set[str]:
    """Databases for val, in an order that only their names decide, until they have their share of the questions."""
    sizes = Counter(str(row["db_id"]) for row in rows)
    chosen: set[str] = set()
    for db in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if sum(sizes[name] for name in chosen) >= share * len(rows) or len(chosen) + 1 == len(sizes):
            break
        chosen.add(db)
    return chosen


def _write(
    out: Path, root: Path, tables: Mapping[str, Any], split: str, rows: Sequence[dict[str, Any]]
) -> Counter[str]:
    counts: Counter[str] = Counter()
    guarded: dict[str, Database] = {}
    kept = []
    for row in rows:
        db = row["db_id"]
        if db not in guarded:
            folder = out / "database" / db
            folder.mkdir(parents=True)
            shutil.copyfile(root / "database" / db / f"{db}.sqlite", folder / f"{db}.sqlite")
            (folder / "schema.txt").write_text("\n".join(described(tables[db])) + "\n", "utf-8")
            guarded[db] = opened(folder.parent, db)
        try:
            result = guarded[db].query(row["sql"])
        except QueryError as error:
            counts["does not run"] += 1
            print(f"{split}: {row['id']} ({db}) is left out: {error}", file=sys.stderr)
            continue
        if not result.rows and split != "test":
            counts["empty result"] += 1
            continue
        kept.append(row)
    for database in guarded.values():
        database.close()
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
    (out / f"{split}.jsonl").write_text("".join(lines), "utf-8")
    counts["rows"], counts["databases"] = len(kept), len({row["db_id"] for row in kept})
    return counts


def described(entry: Mapping[str, Any]) -> Iterator[str]:
    """A database as the model gets to see it: a line for each table, then its foreign keys."""
    try:
        names, types = entry["column_names_original"], entry["column_types"]
        tables, keys = entry["table_names_original"], set(_flat(entry["primary_keys"]))
        for number, table in enumerate(tables):
            mine = [
                f"{name} {types[column]}{' primary key' if column in keys else ''}"
                for column, (of, name) in enumerate(names)
                if of == number
            ]
            yield f"{table}({', '.join(mine)})"
        for one, other in entry["foreign_keys"]:
            ends = [f"{tables[names[column][0]]}.{names[column][1]}" for column in (one, other)]
            yield f"{ends[0]} refers to {ends[1]}"
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unfit(f"tables.json: the entry of {entry.get('db_id')} cannot be read: {error!r}") from error


def _flat(keys: Sequence[Any]) -> Iterator[int]:
    """A key of several columns is a list in later versions of the file."""
    for key in keys:
        yield from key if isinstance(key, list) else [key]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="spider_data.zip, or the folder that it unpacks to")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    parser.add_argument("--val-share", type=float, default=VAL_SHARE)
    options = parser.parse_args(arguments)
    try:
        counts = prepare(options.source, options.out, options.val_share)
    except Unfit as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 74
    for split, count in counts.items():
        left = ", ".join(f"{count[why]} left out ({why})" for why in ("does not run", "empty result") if count[why])
        print(f"{split}: {count['rows']} questions on {count['databases']} databases{'; ' + left if left else ''}")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
