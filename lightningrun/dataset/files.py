"""Rows of files: JSON Lines, JSON, CSV and Parquet, each with its line (in Parquet: its number)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lightningrun.dataset.plain import MAX_ROW_BYTES, TOO_LONG, Note, plain_rows

MAX_FILE_BYTES = 256 << 20
"""Of a .json or .csv file, which is read whole. Files of other kinds may be larger."""


def rows(path: Path, note: Note) -> Iterator[tuple[int, Any]]:
    """(line, row) of each row that can be read; the others go to ``note``. Raises OSError."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from plain_rows(_parquet(path, note), note)
    elif kind in (".json", ".csv"):
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            note(0, f"larger than {MAX_FILE_BYTES >> 20} MiB; use .jsonl")
            return
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            note(data.count(b"\n", 0, error.start) + 1, "not UTF-8")
            return
        yield from (_json_list if kind == ".json" else _csv)(text, note)
    else:
        with open(path, "rb") as stream:
            yield from json_lines(stream, note)


def _parquet(path: Path, note: Note) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        note(0, f"broken Parquet: {error}")


def json_lines(stream: IO[bytes], note: Note) -> Iterator[tuple[int, Any]]:
    """Rows of a stream with one JSON value in each line that is not blank."""
    line = 0
    while data := stream.readline(MAX_ROW_BYTES + 2):
        line += 1
        if len(data) > MAX_ROW_BYTES + 1:
            note(line, TOO_LONG)
            while data and not data.endswith(b"\n"):
                data = stream.readline(1 << 20)
            continue
        try:
            text = data.decode("utf-8-sig" if line == 1 else "utf-8")
            if text.strip():
                yield line, _DECODER.decode(text)
        except UnicodeDecodeError:
            note(line, "not UTF-8")
        except (ValueError, RecursionError) as error:
            note(line, f"broken JSON: {_reason(error)}")


def _json_list(text: str, note: Note) -> Iterator[tuple[int, Any]]:
    """Rows one at a time, because only so the line of each is known."""
    position, line, counted = _skip(text, 0), 1, 0
    if text[position : position + 1] != "[":
        note(1, "a .json dataset is one list of objects; one object a line is .jsonl")
        return
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            row, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            note(line, f"broken JSON: {_reason(error)}")
            return
        if end - position > MAX_ROW_BYTES:
            note(line, TOO_LONG)
        else:
            yield line, row
        position = _skip(text, end)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            note(line + text.count("\n", counted, position), "broken JSON: expected ',' or ']' after a row")
            return
    if _skip(text, position + 1) != len(text):
        note(line + text.count("\n", counted, position), "broken JSON: text after the list")


def _csv(text: str, note: Note) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif not header:
                header = cells
                if len(set(cells)) < len(cells) or "" in cells:
                    note(line, "the header has an empty or a repeated name")
                    return
            elif len(cells) != len(header):
                note(line, f"{len(cells)} cells, and the header names {len(header)}")
            elif sum(map(len, cells)) > MAX_ROW_BYTES:
                note(line, TOO_LONG)
            else:
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        note(line, f"broken CSV: {error}")


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_constant)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
