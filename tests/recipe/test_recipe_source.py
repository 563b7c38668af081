"""YAML in: YAML 1.2 scalars, places, and hostile documents refused at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lightningrun.recipe.source import Refused, parse, read_text


def value(text: str) -> object:
    problems: list[object] = []
    node = parse(f"- {text}", "f.yaml", problems)  # type: ignore[arg-type]
    assert not problems
    return node.plain()[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("n", "n"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b1", "0b1"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1", 1),
        ("-.inf", float("-inf")),
        ("1.2.3", "1.2.3"),
        ("null", None),
        ("~", None),
        ("nUll", "nUll"),
        ("True", True),
        ("tRUE", "tRUE"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("<<", "<<"),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: object) -> None:
    got = value(text)
    assert got == expected
    assert type(got) is type(expected)


def bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "aliases included"),
        ("a: &a [*a]", "stands inside itself"),
        ("a: &a {b: {c: *a}}", "stands inside itself"),
        ("a: *b", "has no '&b' before it"),
        ("[" * 500_000, "nested deeper"),
        ("{a: " * 200_000, "nested deeper"),
        ("- " * 300_000, "nested deeper"),
        ("? " * 300_000, "nested deeper"),
        ("".join(" " * i + "a:\n" for i in range(1200)), "nested deeper"),
        ("".join(f"k{i}: 1\n" for i in range(100_000)), "more than 5000 values"),
        ("a: &a {b: 1}\n" + "".join(f"k{i}: &k{i} 1\n" for i in range(50_000)), "more than 5000 values"),
        ("a: 1\n---\nb: 2", "second YAML document"),
        ("a: \x07", "the character '\\x07' is not allowed"),
        ("a: \ud800", "is not allowed"),
        ("a:\n\tb: 1", "not YAML"),
        ("a: [1, 2", "not YAML"),
        ('"' + '\\"' * 500_000, "not YAML"),
        ("a" * 900_000 + ": 1", "not YAML"),
    ],
)
def test_hostile_and_broken_documents_are_refused_at_once_and_located(text: str, message: str) -> None:
    spent: list[float] = []
    for _ in range(3):  # the least of three: a busy machine is not what is measured
        started = time.process_time()
        with pytest.raises(Refused) as caught:
            parse(text, "f.yaml", [])
        spent.append(time.process_time() - started)
    assert min(spent) < 0.1
    assert message in str(caught.value)
    assert caught.value.problem.line > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: duplicate key 'a'; the first is on line 1"),
        ("x: {a: 1, 'a': 2}", "f.yaml:1:11: duplicate key 'a'; the first is on line 1"),
        ("a: !!python/object/apply:os.system [ls]", "f.yaml:1:4: tag '!!python/object/apply:os.system' is not allowed"),
        ("a: !secret x", "f.yaml:1:4: tag '!secret' is not allowed"),
        ("a: !!binary aGk=", "f.yaml:1:4: tag '!!binary' is not allowed"),
        ("[a, b]: 1", "f.yaml:1:1: a key must be a plain word"),
    ],
)
def test_what_can_be_passed_over_is_noted_with_its_place(text: str, expected: str) -> None:
    problems: list[object] = []
    parse(text, "f.yaml", problems)  # type: ignore[arg-type]
    assert [str(p).startswith(expected) for p in problems] == [True], problems


def test_an_alias_repeats_its_anchor() -> None:
    node = parse("a: &x {b: [1, 2]}\nc: *x", "f.yaml", [])
    assert node.plain() == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
    assert (node.value["c"][1].mark.line, node.value["c"][1].mark.column) == (2, 4)


def test_a_file_is_refused_if_too_large_or_not_utf_8(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"a: " + b"x" * (1 << 20))
    with pytest.raises(Refused, match="larger than 1024 KiB"):
        read_text(big, "big.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nname: caf\xe9\n".encode("latin-1"))
    with pytest.raises(Refused, match=r"latin.yaml:2:10: not UTF-8"):
        read_text(latin, "latin.yaml")
    marked = tmp_path / "bom.yaml"
    marked.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_text(marked, "bom.yaml") == "a: 1\n"
    with pytest.raises(Refused, match="No such file"):
        read_text(tmp_path / "none.yaml", "none.yaml")
    with pytest.raises(Refused, match="Is a directory"):
        read_text(tmp_path, "folder")
