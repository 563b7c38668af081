"""``provider: local`` through the model service: what is recorded is what was sampled, bit for bit."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lightningrun.errors import ModelError, UsageError  # noqa: E402
from lightningrun.models.chunks import Assembler  # noqa: E402
from lightningrun.models.local import checkpoint  # noqa: E402
from lightningrun.models.local.chat import Holder, message_of  # noqa: E402
from lightningrun.models.local.engine import Completion  # noqa: E402
from lightningrun.models.local.provider import LocalProvider  # noqa: E402
from lightningrun.models.local.tokenizer import ChatTokenizer  # noqa: E402
from lightningrun.models.provider import RefusedRequest  # noqa: E402
from lightningrun.models.service import ModelService  # noqa: E402
from lightningrun.models.session import CallSession  # noqa: E402
from lightningrun.recipe.model import ModelConfig  # noqa: E402
from lightningrun.types import LLMCall  # noqa: E402
from tests.models.local_checkpoints import model, saved, tokenizer  # noqa: E402

ASK: dict[str, Any] = {
    "model": "policy",
    "max_tokens": 24,
    "messages": [{"role": "system", "content": "runs"}, {"role": "user", "content": "who scored 12?"}],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def service_for(folder: Path | str, calls: Path, **options: Any) -> ModelService:
    config = ModelConfig(provider="local", name=str(folder), **options)
    return ModelService({"policy": config}, calls, environ={})


def session_of(service: ModelService, sample: int = 0, stage: str = "s") -> CallSession:
    return service.session(stage=stage, owner=f"o{sample}", sample=sample)


def recorded(service: ModelService, session: CallSession) -> LLMCall:
    return service.read(session.refs[-1])


async def streamed(session: CallSession, body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assembled, chunks = Assembler(), []
    async for chunk in session.stream(body):
        chunks.append(chunk)
        assembled.add(chunk)
    return assembled.done(), chunks


async def test_an_answer_and_its_stream_are_what_the_engine_sampled_bit_for_bit(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    whole = service_for(folder, tmp_path / "a.jsonl")
    pieces = service_for(folder, tmp_path / "b.jsonl")
    for body in (ASK, {**ASK, "n": 3, "temperature": 0.7}, {**ASK, "logprobs": True, "top_logprobs": 2, "stop": "an"}):
        first, second = session_of(whole), session_of(pieces)
        answer = await first.chat(body)
        assembled, chunks = await streamed(second, body)
        call, other = recorded(whole, first), recorded(pieces, second)
        assert not any(key.startswith("_") for said in (answer, *chunks) for key in said)
        assert call.sampled == other.sampled
        assert [c["message"]["content"] for c in answer["choices"]] == [
            c["message"]["content"] for c in assembled["choices"]
        ]
        assert [c["finish_reason"] for c in answer["choices"]] == [c["finish_reason"] for c in assembled["choices"]]
        assert [c.get("logprobs") for c in answer["choices"]] == [c.get("logprobs") for c in assembled["choices"]]
        assert answer["usage"] == assembled["usage"]
        assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (
            len(call.sampled["prompt_ids"]),
            sum(len(choice["ids"]) for choice in call.sampled["choices"]),
        )
    provider = whole.roles["policy"].provider
    assert isinstance(provider, LocalProvider)
    engine = await provider.engine()
    from lightningrun.models.local.sampling import Sampling

    last = call.sampled["choices"][0]
    seed = call.request["seed"]
    again = await engine.generate(call.sampled["prompt_ids"], Sampling(max_tokens=24, seed=seed, stop=("an",)))
    assert (again[0].ids, again[0].logprobs) == (last["ids"], last["logprobs"])
    assert [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]] == last["logprobs"]
    assert call.sampled["weights"] == checkpoint.content_digest(folder) == answer["system_fingerprint"]
    assert call.sampled["prompt_ids"] == ChatTokenizer.load(folder).encode_chat(ASK["messages"])
    await whole.aclose()
    await pieces.aclose()


async def test_samples_differ_repeats_come_from_the_log_and_greedy_is_one(tmp_path: Path) -> None:
    service = service_for(saved(tmp_path / "model"), tmp_path / "calls.jsonl")

    async def say(sample: int, **more: Any) -> str:
        answer = await session_of(service, sample).chat({**ASK, **more})
        return str(answer["choices"][0]["message"]["content"])

    answers = await asyncio.gather(*(say(sample) for sample in range(8)))
    assert len(set(answers)) == 8
    assert await say(3) == answers[3]
    assert len({await say(sample, temperature=0) for sample in range(3)}) == 1
    await service.aclose()
    after = service_for(tmp_path / "model", tmp_path / "calls.jsonl")
    session = session_of(after, 3)
    assert (await session.chat(ASK))["choices"][0]["message"]["content"] == answers[3]
    replayed = recorded(after, session)
    assert replayed.sampled is not None and replayed.sampled["choices"][0]["ids"]
    provider = after.roles["policy"].provider
    assert isinstance(provider, LocalProvider) and provider._engine is None, "the log answered: nothing was loaded"
    await after.aclose()


async def test_other_weights_are_never_answered_from_the_cache(tmp_path: Path) -> None:
    folder, trained = saved(tmp_path / "base", seed=1), saved(tmp_path / "trained", seed=2)
    service = service_for(folder, tmp_path / "calls.jsonl")
    provider = service.roles["policy"].provider
    assert isinstance(provider, LocalProvider)

    async def say(stage: str) -> tuple[str, str]:
        session = session_of(service, stage=stage)
        answer = await session.chat(ASK)
        return str(answer["choices"][0]["message"]["content"]), str(recorded(service, session).sampled["weights"])

    base, weights = await say("baseline")
    service.serve("policy", trained)
    better, other = await say("trained")
    assert base != better and weights != other == checkpoint.content_digest(trained)
    service.serve("policy", None)
    assert await say("again") == (base, weights)
    await provider.update_weights(model(seed=2), "grpo/step-1")
    assert await say("inside") == (better, "grpo/step-1")
    service.serve("policy", None)
    assert await say("after") == (base, weights), "weights set in place end with the stage"
    await service.aclose()


async def test_the_model_of_a_stage_is_there_once_it_was_made(tmp_path: Path) -> None:
    service = service_for("sft.model", tmp_path / "calls.jsonl")
    with pytest.raises(ModelError, match=r"sft\.model is not made yet"):
        await session_of(service).chat(ASK)
    service.serve("policy", saved(tmp_path / "made"))
    assert (await session_of(service).chat(ASK))["choices"]
    with pytest.raises(UsageError, match="no checkpoint"):
        service.serve("policy", tmp_path / "nothing")
    await service.aclose()
    remote = ModelService(
        {"policy": ModelConfig(provider="openai", name="x", base_url="http://127.0.0.1:9/v1")},
        tmp_path / "remote.jsonl",
        environ={},
    )
    remote.serve("policy", None)
    with pytest.raises(UsageError, match="cannot answer from the checkpoint"):
        remote.serve("policy", tmp_path / "made")
    await remote.aclose()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "'messages' must be"),
        ({"messages": [{"content": "x"}]}, "no 'role'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
        ({"temperature": -1}, "'temperature' must be"),
        ({"temperature": True}, "'temperature' must be"),
        ({"top_p": 0}, "'top_p' must be"),
        ({"max_tokens": 0}, "'max_tokens' must be"),
        ({"max_tokens": 5000}, "5000 are asked for"),
        ({"n": 0}, "'n' must be"),
        ({"stop": [""]}, "'stop' must be"),
        ({"top_logprobs": 21}, "'top_logprobs' must be"),
        ({"logit_bias": {"5": 1}}, "'logit_bias' is not supported"),
        ({"response_format": {"type": "json_object"}}, "'response_format' is not supported"),
        ({"tool_choice": "required"}, "'tool_choice' other than"),
        ({"tools": "add"}, "'tools' must be"),
    ],
)
async def test_a_bad_request_is_the_callers_fault(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    service = service_for(saved(tmp_path / "model"), tmp_path / "calls.jsonl")
    for ask in (session_of(service).chat, lambda body: streamed(session_of(service), body)):
        with pytest.raises(RefusedRequest, match=said) as caught:
            await ask({**ASK, **change})
        assert caught.value.status == 400 and caught.value.detail["type"] == "invalid_request_error"
    await service.aclose()


def completion_of(words: ChatTokenizer, text: str) -> Completion:
    ids = [*words.encode(text), words.eos_id or 0]
    return Completion(ids, [0.0] * len(ids), "stop", "w")


def test_tool_calls_are_read_from_what_the_model_wrote() -> None:
    words = tokenizer()
    written = 'so: <tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>'
    message, finish = message_of(words, completion_of(words, written), True)
    assert (finish, message["content"]) == ("tool_calls", "so: ")
    call = message["tool_calls"][0]
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"]) == {"a": 1, "b": "é"}
    both, _ = message_of(words, completion_of(words, written + written), True)
    assert len({call["id"] for call in both["tool_calls"]}) == 2
    for odd in ("<tool_call>{broken}</tool_call>", "<tool_call>[1]</tool_call>", written.replace('"add"', "3")):
        message, finish = message_of(words, completion_of(words, odd), True)
        assert (message["content"], finish) == (odd, "stop"), "what is malformed is shown as it is"
    assert message_of(words, completion_of(words, written), False)[0]["content"] == written


def test_nothing_is_streamed_that_may_turn_out_to_be_a_stop_or_a_call() -> None:
    holder = Holder(("<tool_call>", "END"))
    shown = [holder.add(text) for text in ("a <to", "ast> E", "NT and EN", "D more")]
    assert shown == ["a ", "<toast> ", "ENT and ", ""]


async def test_a_dialogue_with_tools_is_rendered_with_them(tmp_path: Path) -> None:
    service = service_for(saved(tmp_path / "model"), tmp_path / "calls.jsonl")
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    session = session_of(service)
    await session.chat({**ASK, "messages": messages, "tools": TOOLS})
    text = tokenizer().decode(recorded(service, session).sampled["prompt_ids"], skip_special=False)
    assert text.startswith("<|im_start|>system\nbe brief\n\nTools") and json.dumps(TOOLS[0]) in text
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>' in text
    assert text.endswith("<tool_response>2</tool_response><|im_end|>\n<|im_start|>assistant\n")
    await session.chat({**ASK, "messages": messages, "tools": TOOLS, "tool_choice": "none"})
    assert "Tools" not in tokenizer().decode(recorded(service, session).sampled["prompt_ids"])
    await service.aclose()


async def test_a_late_answer_is_a_timeout_and_the_next_is_not(tmp_path: Path) -> None:
    service = service_for(
        saved(tmp_path / "model"), tmp_path / "calls.jsonl", timeout_s=0.001, retries=0, deadline_s=0.001
    )
    with pytest.raises(ModelError, match="gave no answer within"):
        await session_of(service).chat({**ASK, "max_tokens": 900})
    await service.aclose()
