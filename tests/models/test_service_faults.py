"""Every way in which an endpoint misbehaves ends in time, as one typed error or a good answer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from lightningrun.errors import Missing, ModelError, UsageError
from lightningrun.files import read_journal
from lightningrun.models.provider import RefusedRequest
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import Endpoint

KEY = "sk-canary-4242424242"
ASK = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


def service_at(tmp_path: Path, endpoint: Endpoint, **options: Any) -> ModelService:
    config = ModelConfig(provider="openai", name="m", base_url=endpoint.base_url, api_key_env="THE_KEY", **options)
    return ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={"THE_KEY": KEY})


@pytest.mark.parametrize("mode", ["429:0.05", "500", "503", "html", "empty", "null", "broken", "drop", "refuse"])
async def test_a_passing_fault_is_retried_until_it_answers(tmp_path: Path, mode: str) -> None:
    async with Endpoint(mode, mode, "ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        completion = await session.chat(ASK)
        assert completion["choices"][0]["message"]["content"] == "echo: hi"
        assert endpoint.calls == 3
        assert service.read(session.refs[0]).attempts == 3
        assert session.infra_error is None and session.llm_calls == 1
        await service.aclose()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("429", "http_429"),
        ("500", "http_500"),
        ("503", "http_503"),
        ("hang", "timeout"),
        ("trickle", "timeout"),
        ("html", "html"),
        ("empty", "no_choices"),
        ("null", "no_choices"),
        ("broken", "broken_json"),
        ("drop", "connection"),
        ("refuse", "connection"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
async def test_a_lasting_fault_ends_within_the_deadline_and_is_recorded(
    tmp_path: Path, mode: str, kind: str, streaming: bool
) -> None:
    async with Endpoint(mode) as endpoint:
        service = service_at(tmp_path, endpoint, timeout_s=0.3, deadline_s=0.8, retries=2)
        session = service.session(stage="s", owner="o")
        begun = time.monotonic()
        with pytest.raises(ModelError) as caught:
            if streaming:
                _ = [chunk async for chunk in session.stream(ASK)]
            else:
                await session.chat(ASK)
        assert time.monotonic() - begun < 2.0
        assert caught.value.kind == kind
        assert "models.policy" in str(caught.value) and "attempt" in str(caught.value)
        call = service.read(session.refs[0])
        assert call.response is None and call.error and call.attempts == endpoint.calls
        assert session.infra_error is not None and session.fatal is None
        assert service.totals()["policy"]["usd"] == 0
        await service.aclose()


@pytest.mark.parametrize("how", ["seconds", "date"])
async def test_retry_after_is_honoured(tmp_path: Path, how: str) -> None:
    asked = "1" if how == "seconds" else formatdate(time.time() + 2, usegmt=True)
    async with Endpoint(f"429:{asked}", "ok") as endpoint:
        service = service_at(tmp_path, endpoint)
        begun = time.monotonic()
        await service.session(stage="s", owner="o").chat(ASK)
        assert 0.9 < time.monotonic() - begun < 4
        await service.aclose()


async def test_a_retry_after_beyond_the_deadline_is_not_waited_for(tmp_path: Path) -> None:
    async with Endpoint("429:3600") as endpoint:
        service = service_at(tmp_path, endpoint, deadline_s=30)
        begun = time.monotonic()
        with pytest.raises(ModelError, match="deadline of 30 s"):
            await service.session(stage="s", owner="o").chat(ASK)
        assert time.monotonic() - begun < 2 and endpoint.calls == 1
        await service.aclose()


@pytest.mark.parametrize(("mode", "kind"), [("401", "auth"), ("403", "auth"), ("404", "not_found"), ("402", "quota")])
async def test_what_no_retry_can_mend_is_fatal_at_once(tmp_path: Path, mode: str, kind: str) -> None:
    async with Endpoint(mode) as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        with pytest.raises(ModelError) as caught:
            await session.chat(ASK)
        assert endpoint.calls == 1
        assert session.fatal is caught.value and session.fatal.kind == kind
        if kind == "auth":
            assert "THE_KEY" in str(caught.value)
        await service.aclose()


@pytest.mark.parametrize("mode", ["400", "413", "422"])
async def test_a_request_that_is_wrong_is_the_callers_fault(tmp_path: Path, mode: str) -> None:
    async with Endpoint(mode) as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        with pytest.raises(RefusedRequest) as caught:
            await session.chat(ASK)
        assert endpoint.calls == 1 and caught.value.status == int(mode)
        assert caught.value.detail["message"] == f"scripted {mode}"
        assert session.infra_error is None and session.fatal is None
        await service.aclose()


async def test_an_infra_error_is_cleared_when_the_same_question_is_answered(tmp_path: Path) -> None:
    async with Endpoint("503*2,ok") as endpoint:
        service = service_at(tmp_path, endpoint, retries=0)
        session = service.session(stage="s", owner="o")
        for _ in range(2):
            with pytest.raises(ModelError):
                await session.chat(ASK)
        assert session.infra_error is not None
        await session.chat(ASK)
        assert session.infra_error is None
        assert [service.read(ref).occurrence for ref in session.refs] == [0, 0, 0]
        await service.aclose()


@pytest.mark.parametrize("mode", ["cut", "error_chunk"])
async def test_a_stream_that_breaks_is_an_error_and_not_a_short_answer(tmp_path: Path, mode: str) -> None:
    async with Endpoint(mode) as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        with pytest.raises(ModelError):
            _ = [chunk async for chunk in session.stream(ASK)]
        assert endpoint.calls == 1, "chunks were handed on, so nothing may be repeated"
        assert service.read(session.refs[0]).response is None
        await service.aclose()


async def test_the_key_reaches_the_endpoint_and_nothing_else(tmp_path: Path) -> None:
    async with Endpoint("echo_headers", "401", "echo_headers") as endpoint:
        service = service_at(tmp_path, endpoint)
        session = service.session(stage="s", owner="o")
        completion = await session.chat(ASK)
        assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
        with pytest.raises(ModelError) as caught:
            await session.chat({**ASK, "messages": [{"role": "user", "content": f"the key is {KEY}"}]})
        other = {**ASK, "messages": [{"role": "user", "content": "stream"}]}
        chunks = [chunk async for chunk in session.stream(other)]
        log = (tmp_path / "calls.jsonl").read_text()
        for text in (str(completion), str(caught.value), str(chunks), log, str(service.read(session.refs[0]))):
            assert KEY not in text
        assert "[masked]" in log
        await service.aclose()


async def test_a_placeholder_key_is_sent_and_not_cut_out_of_answers(tmp_path: Path) -> None:
    async with Endpoint("ok") as endpoint:
        config = ModelConfig(provider="openai", name="m", base_url=endpoint.base_url, api_key_env="THE_KEY")
        service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={"THE_KEY": "1"})
        session = service.session(stage="s", owner="o")
        messages = [{"role": "user", "content": "is 1 EMPTY?"}]
        completion = await session.chat({"messages": messages})
        assert completion["choices"][0]["message"]["content"] == "echo: is 1 EMPTY?"
        assert service.read(session.refs[0]).request["messages"] == messages
        assert endpoint.headers[0]["authorization"] == "Bearer 1"
        await service.aclose()


async def test_nobody_listening_is_a_connection_error_that_names_the_endpoint(tmp_path: Path) -> None:
    config = ModelConfig(provider="openai", name="m", base_url="http://127.0.0.1:9/v1", retries=1)
    service = ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9"):
        await service.session(stage="s", owner="o").chat(ASK)
    await service.aclose()


def test_an_absent_key_is_missing(tmp_path: Path) -> None:
    config = ModelConfig(provider="openai", name="m", api_key_env="NOT_SET_ANYWHERE")
    with pytest.raises(Missing, match="NOT_SET_ANYWHERE"):
        ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})


@pytest.mark.parametrize(
    "name", ["nothing", "no_such_module_x:f", "json:nothing", "json:__doc__", "/tmp/no/such.py:f", ":f"]
)
def test_a_python_model_that_cannot_be_loaded_is_a_usage_error(tmp_path: Path, name: str) -> None:
    config = ModelConfig(provider="python", name=name)
    with pytest.raises(UsageError, match=r"models\.policy\.name"):
        ModelService({"policy": config}, tmp_path / "calls.jsonl", environ={})


@pytest.mark.parametrize("reply", [{"parts": []}, ["a", "b"], 7, None], ids=["object", "list", "number", "null"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_odd_message_is_passed_on_or_a_typed_error_never_a_crash(
    tmp_path: Path, reply: Any, streaming: bool
) -> None:
    async with Endpoint("odd", reply=lambda request: reply) as endpoint:
        service = service_at(tmp_path, endpoint, retries=0)
        session = service.session(stage="s", owner="o")
        try:
            if streaming:
                _ = [chunk async for chunk in session.stream(ASK)]
            else:
                await session.chat(ASK)
        except ModelError as error:
            assert error.kind == "malformed" and session.infra_error is error
        assert len(session.refs) == 1
        await service.aclose()


FULL = """
import asyncio, pathlib, resource, sys
from lightningrun.errors import DiskFull
from lightningrun.models.service import ModelService
from lightningrun.recipe.model import ModelConfig
async def main():
    config = ModelConfig(provider="python", name="tests.models.scripted_models:shout")
    service = ModelService({"policy": config}, pathlib.Path(sys.argv[1]), environ={})
    session = service.session(stage="s", owner="o")
    ask = {"messages": [{"role": "user", "content": "hi"}]}
    await session.chat(ask)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    try:
        await session.chat(ask)
        await session.chat(ask)
    except DiskFull as error:
        assert session.fatal is error, session.fatal
        print(error)
    await service.aclose()
asyncio.run(main())
"""


async def test_a_full_disk_ends_the_call_and_is_fatal(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FULL, str(log), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert b"cannot write" in out, err
    assert log.stat().st_size <= 1500 and len(list(read_journal(log))) >= 1
