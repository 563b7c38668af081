"""Tokenizers and chat templates: the ids that transformers gives, learned tokens, streamed characters."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("torch")

from lightningrun.errors import UsageError
from lightningrun.models.local.tokenizer import ChatTokenizer, TextStream, train_tokenizer
from tests.models.local_checkpoints import TEXTS, saved, tokenizer

ODD = "select a_b 12345 foo_bar's  Sachin Tendulkar don't\n\n x\t漢字 🎉 <|im_end|> Größe"
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds <b>é</b>", "parameters": {"a": 1}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": ODD}],
    [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "me"},
    ],
    [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2"},
        {"role": "user", "content": "thanks"},
    ],
]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_ids_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    theirs = transformers.AutoTokenizer.from_pretrained(saved(tmp_path / "model", family))
    ours = ChatTokenizer.load(tmp_path / "model")
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eos_id, ours.pad_id)
    for chat in CHATS:
        for tools in (None, TOOLS):
            for generate in (True, False):
                expected = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=generate)["input_ids"]
                assert ours.encode_chat(chat, tools, add_generation_prompt=generate) == expected
    assert ours.decode(ours.encode(ODD), skip_special=False) == ODD


def test_a_tokenizer_keeps_whole_words_whole_and_is_decided_by_its_texts(tmp_path: Path) -> None:
    words = tokenizer()
    assert len(words.encode("Sachin Tendulkar")) == 1 and len(words.encode("1234")) == 4
    assert len(words.encode("<tool_call>")) == 1
    assert words.size <= 305
    again = train_tokenizer(iter(TEXTS), vocab_size=300, whole_words=["Sachin Tendulkar"])
    assert again.backend.to_str() == words.backend.to_str()
    with pytest.raises(UsageError, match="259 is the least"):
        train_tokenizer(TEXTS, vocab_size=100)


def test_only_what_the_assistant_says_is_learned() -> None:
    words = tokenizer()
    for chat in CHATS:
        ids, learned = words.encode_assistant_masked(chat, TOOLS)
        assert ids == words.encode_chat(chat, TOOLS, add_generation_prompt=False)
        said = words.decode([token for token, learn in zip(ids, learned, strict=True) if learn], skip_special=False)
        spoken = [
            (m["content"] or "") + ("<tool_call>" + json.dumps({"name": "add", "arguments": {"a": 1, "b": "é"}}, ensure_ascii=False) + "</tool_call>" if "tool_calls" in m else "")  # noqa: E501
            for m in chat
            if m["role"] == "assistant"
        ]  # fmt: skip
        assert said == "".join(f"{text}<|im_end|>" for text in spoken)


def test_a_template_may_not_reach_out_nor_rewrite_what_was_said() -> None:
    words = tokenizer()
    reaching = ChatTokenizer(words.backend, {}, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UsageError, match="refuses this chat"):
        reaching.encode_chat(CHATS[0])
    strict = ChatTokenizer(words.backend, {}, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        strict.encode_chat(CHATS[0])
    last_only = ChatTokenizer(words.backend, {"eos_token": "<|im_end|>"}, "{{ messages[-1].content }}")
    with pytest.raises(UsageError, match="rewrites earlier turns"):
        last_only.encode_assistant_masked(CHATS[2])
    with pytest.raises(UsageError, match="no chat template"):
        ChatTokenizer(words.backend, {}, "").encode_chat(CHATS[0])


def test_streamed_text_breaks_no_character_and_loses_none() -> None:
    words = tokenizer()
    rng = random.Random(0)
    for _ in range(30):
        text = "".join(rng.choice(["a", " ", "é", "漢", "🎉", "👩‍👩‍👧", "\n", "12"]) for _ in range(20))
        stream = TextStream(words)
        said = [stream.add(token) for token in words.encode(text)]
        assert "".join(said) + stream.finish() == text
        assert not any("\ufffd" in piece for piece in said)
    cut = TextStream(words)
    assert [cut.add(token) for token in words.encode("🎉")[:-1]] == [""] * (len(words.encode("🎉")) - 1)
    assert cut.finish() == "\ufffd"


def test_a_damaged_tokenizer_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="tokenizer cannot be read"):
        ChatTokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="no tokenizer"):
        ChatTokenizer.load(folder)
