"""What an agent with the real OpenAI SDK sees, and what is captured of it."""

from __future__ import annotations

import asyncio

import aiohttp
import openai
import pytest

from lightningrun.models.ledger import Limits
from tests.gateway.conftest import KEY, Opens

HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "run_sql", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


async def test_a_completion_is_answered_and_captured_whole(house: Opens) -> None:
    async with house("ok") as h:
        answer = await h.client.chat.completions.create(
            model="policy", messages=HI, temperature=0.3, extra_headers={"X-Agent-Name": "planner"}
        )
        assert answer.choices[0].message.content == "echo: hi"
        assert answer.usage is not None and answer.usage.total_tokens == 15
        call = h.service.read(h.session.refs[0])
        assert call.request == {"messages": HI, "model": "real-model", "temperature": 0.3}
        assert call.response is not None and call.response["choices"][0]["message"]["content"] == "echo: hi"
        assert (call.agent, call.role, call.stage, call.owner) == ("planner", "policy", "s", "o")
        assert (call.protocol, call.path) == ("chat", "/v1/chat/completions")
        assert call.duration_s > 0 and call.usage.total_tokens == 15


async def test_the_model_asked_for_picks_the_role_and_any_other_name_the_default(house: Opens) -> None:
    async with house("ok") as h:
        for asked in ("judge", "judge-model", "gpt-4o"):
            await h.client.chat.completions.create(model=asked, messages=HI)
        assert [h.service.read(ref).role for ref in h.session.refs] == ["judge", "judge", "policy"]
        assert [request["model"] for request in h.endpoint.requests] == ["judge-model", "judge-model", "real-model"]
        listed = [model.id async for model in h.client.models.list()]
        assert listed == ["policy", "judge", "real-model", "judge-model"]


async def test_tools_n_logprobs_response_format_and_unknown_fields_pass_through(house: Opens) -> None:
    async with house("tools") as h:
        answer = await h.client.chat.completions.create(
            model="policy",
            messages=HI,
            tools=[TOOL],  # type: ignore[list-item]
            n=2,
            logprobs=True,
            response_format={"type": "json_object"},
            extra_body={"home_made": {"deep": [1]}},
        )
        assert len(answer.choices) == 2 and answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        assert calls and calls[0].function.name == "run_sql"  # type: ignore[union-attr]
        sent = h.endpoint.requests[0]
        assert sent["tools"] == [TOOL] and sent["n"] == 2 and sent["logprobs"] is True
        assert sent["response_format"] == {"type": "json_object"} and sent["home_made"] == {"deep": [1]}


@pytest.mark.parametrize(
    ("mode", "error", "kind"),
    [("503", openai.InternalServerError, "http_503"), ("html", openai.InternalServerError, "html")],
)
async def test_a_failing_model_is_an_error_that_the_sdk_does_not_retry(
    house: Opens, mode: str, error: type[openai.APIStatusError], kind: str
) -> None:
    async with house(mode, retries=1) as h:
        with pytest.raises(error) as caught:
            await h.client.chat.completions.create(model="policy", messages=HI)
        assert caught.value.status_code == 503 and caught.value.code == kind
        assert h.endpoint.calls == 2 and len(h.session.refs) == 1
        assert h.session.infra_error is not None


async def test_the_agents_own_bad_request_comes_back_as_the_provider_said_it(house: Opens) -> None:
    async with house("400") as h:
        with pytest.raises(openai.BadRequestError, match="scripted 400"):
            await h.client.chat.completions.create(model="policy", messages=HI)
        assert h.session.infra_error is None and h.endpoint.calls == 1


async def test_a_spent_budget_is_a_429_of_its_own_type(house: Opens) -> None:
    async with house("ok", limits=Limits(max_llm_calls=1)) as h:
        await h.client.chat.completions.create(model="policy", messages=HI)
        with pytest.raises(openai.RateLimitError) as caught:
            await h.client.chat.completions.create(model="policy", messages=HI)
        assert caught.value.type == "budget_reached"
        assert h.session.budget is not None and h.endpoint.calls == 1


async def test_a_url_follows_its_binding(house: Opens) -> None:
    async with house("ok") as h:
        url_id = h.gateway.new_url_id()
        client = h.client.with_options(base_url=h.gateway.url(url_id))
        with pytest.raises(openai.ConflictError, match="no rollout"):
            await client.chat.completions.create(model="policy", messages=HI)
        for owner in ("first", "second"):
            session = h.service.session(stage="s", owner=owner)
            h.gateway.bind(url_id, session)
            await client.chat.completions.create(model="policy", messages=HI)
            assert h.service.read(session.refs[0]).owner == owner
            h.gateway.release(url_id)
        with pytest.raises(openai.ConflictError):
            await client.chat.completions.create(model="policy", messages=HI)


@pytest.mark.parametrize(
    ("method", "path", "body", "token", "status"),
    [
        ("POST", "/chat/completions", b"{", True, 400),
        ("POST", "/chat/completions", b"\xff\xfe", True, 400),
        ("POST", "/chat/completions", b"", True, 400),
        ("POST", "/chat/completions", b"[1]", True, 400),
        ("POST", "/chat/completions", b"{}", True, 400),
        ("POST", "/chat/completions", b'{"messages": []}', True, 400),
        ("POST", "/chat/completions", b'{"messages": "hi"}', True, 400),
        ("POST", "/chat/completions", b'{"messages": [1]}', True, 400),
        ("POST", "/chat/completions", b'{"messages": [{"content": NaN}]}', True, 400),
        ("POST", "/chat/completions", b"[" * 200_000, True, 400),
        ("POST", "/chat/completions", b" " * ((16 << 20) + 1), True, 413),
        ("GET", "/chat/completions", b"", True, 405),
        ("POST", "/models", b"", True, 405),
        ("POST", "/audio/speech", b"{}", True, 404),
        ("GET", "/../../etc/passwd", b"", True, 404),
        ("POST", "/chat/completions", b"{}", False, 401),
        ("GET", "/models", b"", False, 401),
    ],
)
async def test_a_malformed_request_gets_an_openai_shaped_error(
    house: Opens, method: str, path: str, body: bytes, token: bool, status: int
) -> None:
    async with house("ok") as h, aiohttp.ClientSession() as http:
        headers = h.headers if token else {"Authorization": "Bearer wrong"}
        async with http.request(method, h.url + path, data=body, headers=headers) as answer:
            assert answer.status == status
            detail = (await answer.json())["error"]
        assert detail["message"] and detail["type"] == "invalid_request_error" and detail["code"]
        assert "Traceback" not in detail["message"] and answer.headers["x-should-retry"] == "false"
        assert h.endpoint.calls == 0
        calls = [h.service.read(ref) for ref in h.session.refs]
        at_a_rollout = token and path not in ("/models", "/../../etc/passwd")
        assert [(call.path, call.response, call.attempts) for call in calls] == [("/v1" + path, None, 0)] * at_a_rollout
        assert not calls or detail["message"] in calls[0].error


async def test_other_paths_of_the_port_are_404_and_no_token_is_401(house: Opens) -> None:
    async with house("ok") as h, aiohttp.ClientSession() as http:
        root = h.url.split("/r/")[0]
        async with http.get(root + "/", headers=h.headers) as answer:
            assert answer.status == 404
        async with http.get(root + "/r//v1/models", headers=h.headers) as answer:
            assert answer.status == 404
        async with http.get(h.url + "/models") as answer:
            assert answer.status == 401


async def test_the_providers_key_cannot_be_reached_through_the_gateway(house: Opens) -> None:
    async with house("echo_headers", "401", retries=0) as h:
        seen = str(await h.client.chat.completions.create(model="policy", messages=HI))
        with pytest.raises(openai.APIStatusError) as caught:
            await h.client.chat.completions.create(model="policy", messages=HI)
        seen += str(caught.value) + str(caught.value.response.headers) + h.log.read_text()
        assert h.endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
        assert KEY not in seen and h.gateway.token not in h.log.read_text()
        assert h.gateway.token not in str(h.endpoint.headers)


async def test_a_client_that_hangs_up_frees_its_slot(house: Opens) -> None:
    async with house("hang", "ok", concurrency=1) as h:
        with pytest.raises(openai.APITimeoutError):
            await h.client.with_options(timeout=0.2, max_retries=0).chat.completions.create(model="policy", messages=HI)
        answer = await asyncio.wait_for(h.client.chat.completions.create(model="policy", messages=HI), 5)
        assert answer.choices[0].message.content == "echo: hi"
        assert h.service.read(h.session.refs[0]).error == "client disconnected"
        assert h.endpoint.disconnected == 1


async def test_a_client_that_leaves_the_queue_is_accounted_for(house: Opens) -> None:
    async with house("hang", "ok", concurrency=1) as h:
        hasty = h.client.with_options(max_retries=0)
        asked = [
            hasty.chat.completions.create(model="policy", messages=HI, timeout=timeout)  # type: ignore[list-item]
            for timeout in (1.0, 0.5)
        ]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(end, openai.APITimeoutError) for end in ends)
        await asyncio.wait_for(h.client.chat.completions.create(model="policy", messages=HI), 5)
        calls = [h.service.read(ref) for ref in h.session.refs]
        assert [call.error for call in calls] == ["client disconnected"] * 2 + [""]
        assert sorted(call.attempts for call in calls[:2]) == [0, 1], "one of them was never sent"


async def test_eight_gateways_at_once_each_have_a_port(house: Opens) -> None:
    from lightningrun.gateway.server import Gateway

    async with house("ok") as h:
        gateways = [Gateway(h.service) for _ in range(8)]
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        assert len({gateway.url("x") for gateway in gateways}) == 8
        assert len({gateway.token for gateway in gateways}) == 8
        await asyncio.gather(*(gateway.stop() for gateway in gateways))
