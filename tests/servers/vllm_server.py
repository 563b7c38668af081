"""Speaks vLLM's OpenAI protocol with a checkpoint that lightningrun saved, answered by the embedded engine.

    python tests/servers/vllm_server.py CHECKPOINT --host H --port P --served-model-name NAME [OPTION ...] [--mode MODE]

A real process with a real child of its own (as vLLM has its engine), written after vLLM 0.32: /health, /v1/models, the
key in VLLM_API_KEY, chat completions with ``return_token_ids`` and ``logprobs``, streamed or not. Modes: ``ok``;
``dies`` at start; ``dies:N`` at the N-th request; ``deaf`` is never healthy, ``deaf:FILE`` while that file is there;
``stubborn`` minds no SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightningrun.models.provider import SAMPLED
from lightningrun.recipe.model import ModelConfig
from tests.servers.openai_endpoint import send


class VllmServer:
    def __init__(self, model: str, name: str, mode: str) -> None:
        self.model = model
        self.provider: Any = None
        self.name = name
        self.mode = mode
        self.calls = 0
        self.key = os.environ.get("VLLM_API_KEY", "")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").rstrip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = line.split(" ")[1]
        if path == "/health":
            await send(writer, 503 if self._is_deaf() else 200, {})
        elif self.key and headers.get("authorization") != f"Bearer {self.key}":
            await send(writer, 401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            await send(writer, 200, {"object": "list", "data": [{"id": self.name, "object": "model"}]})
        else:
            await self._chat(json.loads(body), writer)
        return True

    def _is_deaf(self) -> bool:
        mode, _, marker = self.mode.partition(":")
        return mode == "deaf" and (not marker or Path(marker).exists())

    async def _chat(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        if self.mode == f"dies:{self.calls}":
            print("RuntimeError: EngineCore encountered an issue", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if body["model"] != self.name:
            text = f"The model `{body['model']}` does not exist."
            await send(writer, 404, {"error": {"message": text, "type": "NotFoundError", "code": 404}})
            return
        if self.provider is None:
            from lightningrun.models.local.provider import LocalProvider  # loads torch

            config = ModelConfig(provider="local", name=self.model, device="cpu")
            self.provider = LocalProvider(config, {}, "policy")
        stream = body.pop("stream", False)
        body.pop("stream_options", None)
        with_ids = body.pop("return_token_ids", False)
        completion = await self.provider.complete(body, b"", 60.0)
        sampled = completion.pop(SAMPLED)
        if not stream:
            if with_ids:
                completion["prompt_token_ids"] = sampled["prompt_ids"]
                for choice, told in zip(completion["choices"], sampled["choices"], strict=True):
                    choice["token_ids"] = told["ids"]
            await send(writer, 200, completion)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks(completion, sampled if with_ids else None):
            writer.write(_framed(f"data: {json.dumps(chunk)}\n\n"))
        writer.write(_framed("data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()


def _framed(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def chunks(completion: dict[str, Any], sampled: dict[str, Any] | None) -> list[dict[str, Any]]:
    """As vLLM streams: the role with the prompt's ids first, two tokens a chunk, usage in one of its own."""
    top = {key: completion[key] for key in ("id", "created", "model")}
    top["object"] = "chat.completion.chunk"
    said = []
    first = [{"index": c["index"], "delta": {"role": "assistant", "content": ""}} for c in completion["choices"]]
    said.append({**top, "choices": first, **({"prompt_token_ids": sampled["prompt_ids"]} if sampled else {})})
    for place, choice in enumerate(completion["choices"]):
        text, entries = choice["message"]["content"] or "", (choice["logprobs"] or {}).get("content", [])
        ids = sampled["choices"][place]["ids"] if sampled else [0] * max(1, len(entries))
        for at in range(0, len(ids), 2):
            last = at + 2 >= len(ids)
            piece = text[at * 3 :] if last else text[at * 3 : at * 3 + 6]
            part: dict[str, Any] = {"index": choice["index"], "delta": {"content": piece}}
            part["finish_reason"] = choice["finish_reason"] if last else None
            part["logprobs"] = {"content": entries[at : at + 2]} if entries else None
            part["token_ids"] = ids[at : at + 2] if sampled else None
            said.append({**top, "choices": [part]})
    return [*said, {**top, "choices": [], "usage": completion["usage"]}]


def start_a_child() -> None:
    """In a session of its own, as an engine may be: only a walk of the tree finds it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("engine:", child.pid, flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    parser.add_argument("--mode", default="ok")
    options, others = parser.parse_known_args()
    print("arguments:", json.dumps(others), flush=True)
    if options.mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not (Path(options.model) / "config.json").is_file():
        sys.exit(f"OSError: {options.model} is not a local folder and is not a valid model identifier")
    start_a_child()
    if options.mode == "dies":
        sys.exit("ValueError: No available memory for the cache blocks")
    server = VllmServer(options.model, options.served_model_name, options.mode)
    async with await asyncio.start_server(server.serve, options.host, options.port, limit=1 << 26) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
