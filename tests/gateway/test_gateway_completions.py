"""OpenAI's legacy text completions and embeddings, with OpenAI's own SDK."""

from __future__ import annotations

from typing import Any

import aiohttp
import openai
import pytest

from tests.gateway.conftest import Opens
from tests.gateway.test_gateway_messages import answering


async def test_a_text_is_completed_by_a_chat_model(house: Opens) -> None:
    async with house("ok") as h:
        answer = await h.client.completions.create(
            model="policy", prompt="Once upon", max_tokens=8, stop=["."], n=2, echo=True
        )
        assert [choice.text for choice in answer.choices] == ["Once uponecho: Once upon"] * 2
        assert [choice.index for choice in answer.choices] == [0, 1] and answer.object == "text_completion"
        assert answer.usage is not None and answer.usage.total_tokens == 15
        call = h.service.read(h.session.refs[0])
        assert (call.protocol, call.path) == ("completions", "/v1/completions")
        assert call.request == {
            "model": "real-model",
            "max_tokens": 8,
            "n": 2,
            "stop": ["."],
            "messages": [{"role": "user", "content": "Once upon"}],
        }


async def test_several_prompts_are_several_calls_and_one_answer(house: Opens) -> None:
    async with house("ok") as h:
        whole = await h.client.completions.create(model="policy", prompt=["a", "b"], n=2)
        assert [(choice.index, choice.text) for choice in whole.choices] == [
            (0, "echo: a"),
            (1, "echo: a"),
            (2, "echo: b"),
            (3, "echo: b"),
        ]
        assert whole.usage is not None and whole.usage.total_tokens == 30 and len(h.session.refs) == 2
        stream = await h.client.completions.create(
            model="judge", prompt=["a", "b"], n=2, stream=True, echo=True, stream_options={"include_usage": True}
        )
        texts, chunks = ["", "", "", ""], [chunk async for chunk in stream]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert [text.strip() for text in texts] == ["aecho: a", "aecho: a", "becho: b", "becho: b"]
        assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 30


async def test_log_probabilities_are_in_the_shape_of_text_completions(house: Opens) -> None:
    tops = [{"token": "yes", "logprob": -0.5, "bytes": None}, {"token": "no", "logprob": -1.5, "bytes": None}]
    tokens = [{**tops[0], "top_logprobs": tops}, {"token": "!", "logprob": -0.1, "bytes": None, "top_logprobs": []}]
    async with house("ok", reply=answering({"content": "yes!"}, logprobs={"content": tokens})) as h:
        answer = await h.client.completions.create(model="policy", prompt="?", logprobs=2, echo=True)
        found = answer.choices[0].logprobs
        assert found is not None and found.tokens == ["yes", "!"] and found.token_logprobs == [-0.5, -0.1]
        assert found.top_logprobs == [{"yes": -0.5, "no": -1.5}, {}] and found.text_offset == [1, 4]
        assert h.endpoint.requests[0]["logprobs"] is True and h.endpoint.requests[0]["top_logprobs"] == 2


async def test_a_failure_in_the_middle_raises_in_the_client(house: Opens) -> None:
    async with house("cut") as h:
        stream = await h.client.completions.create(model="policy", prompt="a b c d e f", stream=True)
        with pytest.raises(openai.APIError):
            _ = [chunk async for chunk in stream]


async def test_embeddings_are_handed_on_recorded_and_cached(house: Opens) -> None:
    async with house("ok", temperature=0.3, max_tokens=5) as h:
        answer = await h.client.embeddings.create(model="judge", input=["ab", "abc"], dimensions=2)
        assert [item.embedding for item in answer.data] == [[2.0, 0.5], [3.0, 0.5]]
        assert h.endpoint.requests[0] == {
            "model": "judge-model",
            "input": ["ab", "abc"],
            "dimensions": 2,
            "encoding_format": "base64",
        }, "sampling of the recipe is for chat"
        call = h.service.read(h.session.refs[0])
        assert (call.protocol, call.usage.prompt_tokens, call.usage.completion_tokens) == ("embeddings", 4, 0)
        h.gateway.bind(h.url.split("/")[-2], h.service.session(stage="s", owner="another"))
        again = await h.client.embeddings.create(model="judge", input=["ab", "abc"], dimensions=2)
        assert again.data[1].embedding == [3.0, 0.5] and h.endpoint.calls == 1


async def test_an_endpoint_without_embeddings_is_a_located_400_and_no_fault_of_the_infrastructure(house: Opens) -> None:
    async with house("404") as h:
        with pytest.raises(openai.BadRequestError, match=r"models\.policy: .*no embeddings"):
            await h.client.embeddings.create(model="policy", input="x")
        assert h.session.fatal is None and h.session.infra_error is None and len(h.session.refs) == 1


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("/completions", {}, "prompt"),
        ("/completions", {"prompt": []}, "prompt"),
        ("/completions", {"prompt": [1, 2]}, "prompt"),
        ("/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/completions", {"prompt": "x", "best_of": 3}, "best_of"),
        ("/completions", {"prompt": "x", "n": "two"}, "n"),
        ("/embeddings", {}, "input"),
        ("/embeddings", {"input": ""}, "input"),
        ("/embeddings", {"input": "x", "stream": True}, "stream"),
    ],
)
async def test_a_malformed_body_is_a_400_that_names_what_is_wrong(
    house: Opens, path: str, body: dict[str, Any], names: str
) -> None:
    async with house("ok") as h, aiohttp.ClientSession() as http:
        async with http.post(h.url + path, json=body, headers=h.headers) as answer:
            detail = (await answer.json())["error"]
        assert answer.status == 400 and detail["param"] == names and names in detail["message"]
        assert h.service.read(h.session.refs[0]).path == "/v1" + path and h.endpoint.calls == 0
