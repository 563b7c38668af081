"""First uses, made once in the fork server instead of once in each slot. No network is touched."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def warm() -> None:
    """Have the packages that are loaded do what they put off until their first call."""
    if "openai" in sys.modules:
        with contextlib.suppress(Exception):  # a release that works otherwise: its slots warm up by themselves
            _openai()


def _openai() -> None:
    """One chat call to a transport that answers by itself: validators are built, the platform's name is found out."""
    import httpx
    import openai

    message = {"role": "assistant", "content": "warm"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    answer = {"id": "warm", "object": "chat.completion", "created": 0, "model": "warm", "choices": [choice]}
    transport: Any = httpx.MockTransport(lambda request: httpx.Response(200, json={**answer, "usage": usage}))
    with httpx.Client(transport=transport) as http:
        client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)
        client.chat.completions.create(model="warm", messages=[{"role": "user", "content": "warm"}])
