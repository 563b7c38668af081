"""No secret survives masking, and what is not secret does."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lightningrun.files import Journal, read_journal
from lightningrun.secrets import Masker, is_secret_name

printable = st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=24)
tricky = st.text(st.sampled_from('a1"\\/n\n\tué:{}[],-. 0\U0001f600'), min_size=8, max_size=16)
secrets = st.lists(printable | tricky, min_size=1, max_size=3)
around = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(
    st.sampled_from('a1"\\n{}:, '), max_size=20
)


def unmaskable(secret: str) -> bool:
    """A secret that is itself part of the mask's or JSON's own writing cannot be told from it."""
    return "*" in secret


@settings(max_examples=300, deadline=None)
@given(secrets, st.lists(around, min_size=2, max_size=4))
def test_a_secret_never_survives_in_text_json_or_url(values: list[str], words: list[str]) -> None:
    assume(not any(map(unmaskable, values)))
    masker = Masker(values)
    for value in values:
        text = value.join(words)
        assert value not in masker.mask(text)
        assert value not in masker.mask_json([text])[0]
        assert value not in masker.mask_json({text: 1})
        quoted = quote(value, safe="")
        assert quoted not in masker.mask(f"https://host/?q={quoted}")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for pair in value.items() for part in pair for s in strings(part)]
    return [s for inner in value for s in strings(inner)] if isinstance(value, list) else []


@settings(max_examples=300, deadline=None)
@given(secrets, st.lists(around, min_size=2, max_size=4), st.booleans())
def test_a_masked_json_text_is_json_without_the_secret(values: list[str], words: list[str], ascii_only: bool) -> None:
    assume(not any(map(unmaskable, values)))
    masker = Masker(values)
    text = values[0].join(words)
    record = {"text": text, text: [text, 1, None], "inner": json.dumps({"again": text}, ensure_ascii=ascii_only)}
    masked = masker.mask(json.dumps(record, ensure_ascii=ascii_only, separators=(",", ":")))
    read = json.loads(masked)
    for value in values[:1]:
        assert not [s for s in strings(read) if value in s]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk-proj-abcDEF123456ghijkl rest", "key *** rest"),
        ("Authorization: Bearer abcdef.ghij-k12", "Authorization: Bearer ***"),
        ('{"authorization":"bearer abcdefghijk1"}', '{"authorization":"bearer ***"}'),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("ghp_0123456789abcdefghij0123456789abcdef", "***"),
        ("github_pat_11ABCDEFG0123456789_abcdefghij", "***"),
        ("xoxb-123456789012-abcdef", "***"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "***"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "***"),
        ("postgres://me:hunter2@db/x", "postgres://me:***@db/x"),
        ("https://:tok@host", "https://:***@host"),
        ("redis://u:p@a http://v:q@b", "redis://u:***@a http://v:***@b"),
    ],
)
def test_well_known_shapes_are_masked(text: str, masked: str) -> None:
    assert Masker().mask(text) == masked
    assert Masker().mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "task-decomposition-with-20-long-names",
        "the bearer of this letter",
        "Authorization: Bearer YOUR_API_KEY",
        "sk-learn is a package",
        "risk-adjusted-return-2024-q1-report",
        "http://127.0.0.1:8080/v1/chat",
        "see https://a.b/c: user@host",
        "right, enough",
        '{"a":[1,2.5,null,true]}',
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert Masker(["hunter2hunter2"]).mask(text) == text


def test_values_come_from_the_environment_by_name() -> None:
    environ = {
        "OPENAI_API_KEY": "value-of-openai",
        "DB_PASSWORD": "value-of-password",
        "MY_ENDPOINT": "value-of-endpoint",
        "AWS_SESSION_TOKEN": "value-of-token",
        "google_application_credentials": "value-of-credentials",
        "TOKENIZERS_PARALLELISM": "value-for-tokenizers",
        "SHORT_KEY": "short",
        "HOME": "value-of-home",
    }
    masker = Masker.from_environ(environ, ["MY_ENDPOINT", "ABSENT"])
    for name, value in environ.items():
        kept = name in ("TOKENIZERS_PARALLELISM", "SHORT_KEY", "HOME")
        assert masker.mask(f"<{value}>") == (f"<{value}>" if kept else "<***>"), name
    assert is_secret_name("CANARY_SECRETKEY")
    assert not is_secret_name("KEYBOARD_LAYOUT")
    assert not is_secret_name("SSH_KEY_FILE")


def test_the_longest_secret_wins() -> None:
    assert Masker(["abcdefgh", "abcdefgh-ijkl"]).mask("abcdefgh-ijkl abcdefgh") == "*** ***"


def test_secrets_that_look_like_json_leave_json_behind(tmp_path: Any) -> None:
    masker = Masker(["12345678", "n9876543", '","b":"c'])
    path = tmp_path / "j.jsonl"
    journal = Journal(path, mask=masker.mask)
    journal.append({"number": 12345678, "text": "\n9876543", "n": [912345678], "a": "x", "b": "c"})
    journal.close()
    ((_, record),) = read_journal(path)
    assert record["number"] == "***"
    assert record["text"] == "\n9876543"
    assert record["n"] == ["***"]


@pytest.mark.parametrize(
    "text",
    [
        "sk-" * 300_000,
        "://" * 300_000,
        "://a:" * 200_000,
        "Bearer " * 150_000,
        "sk-" + "a" * 900_000,
        "://" + "a" * 900_000,
    ],
)
def test_time_is_linear_on_hostile_text(text: str) -> None:
    masker = Masker([f"secret-number-{i}" for i in range(20)])
    started = time.process_time()
    masker.mask(text)
    assert time.process_time() - started < 1.0


def test_a_record_without_secrets_costs_little() -> None:
    masker = Masker([f"secret-number-{i}" for i in range(20)])
    text = json.dumps({"messages": [{"role": "user", "content": "Which country has the most debutants? " * 250}]})
    started = time.process_time()
    for _ in range(200):
        assert masker.mask(text) is text
    assert (time.process_time() - started) / 200 < 0.002
