"""What is imitated: which calls, which of their tokens, and what is refused as a demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import UsageError
from lightningrun.models.local.template import WITHOUT_INSTRUCTIONS
from lightningrun.models.local.tokenizer import ChatTokenizer, train_tokenizer
from lightningrun.stages.sft.examples import Chat, chats_of, encode, read_chats, rewritten, texts_of
from lightningrun.types import LLMCall, Rollout, RolloutStatus

SYSTEM = {"role": "system", "content": "You add."}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def call(messages: list[dict[str, Any]], answer: str, role: str = "policy", agent: str = "") -> LLMCall:
    response = {"choices": [{"message": {**said(answer), "refusal": None}, "finish_reason": "stop"}]}
    return LLMCall("c", role, role, "s", "o", {"messages": messages}, response, agent=agent)


def rollout(score: float | None, *refs: int, status: RolloutStatus = RolloutStatus.SUCCEEDED) -> Rollout:
    return Rollout(f"k{refs}", "s", "t", "train", 0, status, score, call_refs=refs)


def chats(calls: list[LLMCall], rollouts: list[Rollout], **options: Any) -> list[Chat]:
    return list(chats_of(rollouts, calls.__getitem__, options.pop("min_reward", 1.0), {"policy"}, **options))


def test_only_what_earned_its_reward_is_imitated() -> None:
    calls = [call([user("1+1")], "2"), call([user("1+2")], "4"), call([user("1+3")], "4")]
    failed = rollout(None, 2, status=RolloutStatus.REWARD_ERROR)
    assert [chat.messages[-1]["content"] for chat in chats(calls, [rollout(1.0, 0), rollout(0.0, 1), failed])] == ["2"]


def test_the_calls_of_a_conversation_are_one_chat_and_other_models_and_agents_are_left_out() -> None:
    first = [SYSTEM, user("1+1")]
    calls = [
        call(first, "SELECT"),
        call([*first, said("SELECT"), user("again")], "2", agent="writer"),
        call([user("is it right?")], "yes", role="judge"),
        call([user("check")], "fine", agent="checker"),
    ]
    whole = chats(calls, [rollout(1.0, 0, 1, 2, 3)])
    assert [len(chat.messages) for chat in whole] == [5, 2]
    assert [len(chat.messages) for chat in chats(calls, [rollout(1.0, 0, 1, 2, 3)], agents=["writer"])] == [5]


def test_the_policys_own_words_are_learned_and_examples_in_the_prompt_are_not() -> None:
    shown = [SYSTEM, user("2+2"), said("example"), user("1+1")]
    (chat,) = chats([call(shown, "own")], [rollout(1.0, 0)])
    tokenizer = train_tokenizer(texts_of([chat]), vocab_size=300)
    (example,), too_long = encode([chat], tokenizer, context=500)
    learned = [token for token, learn in zip(example.ids, example.learn, strict=True) if learn]
    assert tokenizer.decode(learned, skip_special=False) == "own<|im_end|>" and too_long == 0
    assert encode([chat], tokenizer, context=8) == ([], 1)


def test_the_policys_words_are_rewritten_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("def plain(text): return text.strip('`')\n\n\ndef gone(text): return None\n")
    shown = [user("`2+2`"), said("`example`"), user("1+1"), {**said(""), "tool_calls": []}, said("`2`")]
    first, other = Chat(shown, own=frozenset({3, 4})), Chat([user("1"), said("2")])
    assert [
        [message["content"] for message in chat.messages] for chat in rewritten([first, other], plain(tmp_path))
    ] == [
        ["`2+2`", "`example`", "1+1", "", "2"],
        ["1", "2"],
    ]
    for bad in ("gone", "missing"):
        with pytest.raises(UsageError, match=f"{bad} (made None of the answer '2'|cannot be loaded)"):
            list(rewritten([other], plain(tmp_path, bad)))


def plain(folder: Path, name: str = "plain") -> str:
    return f"{folder / 'plain.py'}:{name}"


def test_a_model_without_instructions_reads_neither_them_nor_its_tools(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    chat = Chat([SYSTEM, user("1+1"), said("2")], tools)
    assert "You add." in list(texts_of([chat])) and "You add." not in list(texts_of([chat], instructions=False))
    tokenizer = train_tokenizer(texts_of([chat], instructions=False), vocab_size=300)
    bare = tokenizer.encode_chat([user("1+1")])
    tokenizer.template = WITHOUT_INSTRUCTIONS + tokenizer.template
    tokenizer.save(tmp_path)
    again = ChatTokenizer.load(tmp_path)
    assert again.encode_chat([SYSTEM, user("1+1")], tools) == bare
    assert again.encode_assistant_masked(chat.messages, tools)[0][: len(bare)] == bare


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "not a chat"), ('{"messages": []}', "without a message of the assistant"), ("[1]", "not a chat")],
)
def test_a_line_that_is_no_chat_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' + line)
    with pytest.raises(UsageError, match=problem) as refused:
        list(read_chats(path))
    assert str(refused.value).find(f"{path}:2") >= 0
