"""A scripted OpenAI-compatible endpoint: a real HTTP server on loopback that answers as told, and counts.

In process:    async with Endpoint("503*2", "ok") as endpoint: ... endpoint.base_url, endpoint.calls, endpoint.requests
In a process:  python tests/servers/openai_endpoint.py --port 0 --mode "503*2,ok" [--latency-ms 1]   prints its port

The script is a list of modes; each call takes the next, and the last one stays. Modes:

    ok           a completion: "echo: <last user message>", or what ``reply`` says: a text, or a dict with a message,
                 its finish_reason and what else a choice has
    tools        a completion that calls the first tool with {"x": 1}
    429[:SECONDS or DATE], 500, 503, 400, 401, 404, ...   that status, with a JSON error (429 with Retry-After)
    hang         nothing, ever            slow[:SECONDS]   ok, but later
    trickle      a body that comes one byte every 50 ms, for ever
    html         200 with HTML            empty            200 with {}
    null         200 with choices: null   broken           200 with half a JSON text
    drop         half a body, then the connection is cut
    refuse       the connection is cut before anything is answered
    echo_headers a completion whose text is the request's headers (keys included)
    no_usage     ok without usage
    error_chunk  (streaming) one chunk, then an error event; cut: one chunk, then the connection is cut

A request with ``input`` is one for embeddings: [length of the text, 0.5] for each.
GET /stats gives {"calls", "in_flight", "max_in_flight", "disconnected"}; POST /reset zeroes them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import Any


class Endpoint:
    def __init__(self, *script: str, latency_s: float = 0.0, reply: Any = None) -> None:
        self.script = [mode for item in (script or ("ok",)) for mode in expand(item)]
        self.latency_s = latency_s
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.keep = True
        self.reset()

    def reset(self) -> None:
        self.calls = self.in_flight = self.max_in_flight = self.disconnected = 0
        self.requests.clear()
        self.headers.clear()

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024, limit=1 << 26)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self.port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Endpoint:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").rstrip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = line.split(" ")[1]
        if not path.endswith(("/chat/completions", "/embeddings")):
            if path.startswith("/reset"):
                self.reset()
            names = ("calls", "in_flight", "max_in_flight", "disconnected")
            await send(writer, 200, {name: getattr(self, name) for name in names})
            return True
        mode = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            request = json.loads(body)
            if self.keep:
                self.requests.append(request)
                self.headers.append(headers)
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            return await self._answer(mode, request, headers, reader, writer)
        finally:
            self.in_flight -= 1

    async def _answer(
        self,
        mode: str,
        request: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        mode, _, value = mode.partition(":")
        if mode == "slow":
            await asyncio.sleep(float(value or 0.3))
        if mode.isdigit():
            extra = {"Retry-After": value} if value else {}
            error = {"message": f"scripted {mode}", "type": "scripted", "code": None}
            await send(writer, int(mode), {"error": error}, extra)
            return True
        if mode == "hang":
            await self._until_hung_up(reader)
            return False
        if mode == "refuse":
            return False
        if mode in ("trickle", "drop"):
            writer.write(head(200, 1000) + b'{"id": "x", "choices": ')
            while mode == "trickle":
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            await writer.drain()
            return False
        bad = {"html": b"<html>busy</html>", "empty": b"{}", "null": b'{"choices": null}', "broken": b'{"choices": [{'}
        if mode in bad:
            kind = "text/html" if mode == "html" else "application/json"
            writer.write(head(200, len(bad[mode]), {"Content-Type": kind}) + bad[mode])
            await writer.drain()
            return True
        if "input" in request:
            inputs = request["input"] if isinstance(request["input"], list) else [request["input"]]
            data = [
                {"object": "embedding", "index": index, "embedding": [float(len(text)), 0.5]}
                for index, text in enumerate(inputs)
            ]
            usage = {"prompt_tokens": 4, "total_tokens": 4}
            await send(writer, 200, {"object": "list", "data": data, "model": request["model"], "usage": usage})
            return True
        completion = self._completion(mode, request, headers)
        if request.get("stream"):
            return await self._stream(mode, completion, request, reader, writer)
        await send(writer, 200, completion)
        return True

    def _completion(self, mode: str, request: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        users = [m.get("content") for m in request.get("messages", []) if m.get("role") == "user"]
        text = f"echo: {users[-1] if users else ''}"
        if self.reply is not None:
            text = self.reply(request) if callable(self.reply) else self.reply
        if mode == "echo_headers":
            text = json.dumps(headers)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        said: dict[str, Any] = {"logprobs": None, "finish_reason": "stop"}
        if isinstance(text, dict) and "message" in text:
            said = {"logprobs": None, **text}
            message = said.pop("message")
        if mode == "tools":
            function = {"name": request["tools"][0]["function"]["name"], "arguments": '{"x": 1}'}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
            said["finish_reason"] = "tool_calls"
        choices = [{"index": i, "message": message, **said} for i in range(request.get("n") or 1)]
        completion = {
            "id": f"chatcmpl-{self.calls}",
            "object": "chat.completion",
            "created": 1700000000,
            "model": request.get("model"),
            "choices": choices,
        }
        if mode != "no_usage":
            completion["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return completion

    async def _stream(
        self,
        mode: str,
        completion: dict[str, Any],
        request: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Word by word, 20 ms apart in the mode ``slow_stream`` (as long as somebody listens)."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        hung_up = asyncio.ensure_future(self._until_hung_up(reader))
        try:
            for number, chunk in enumerate(chunks_of(completion, request)):
                writer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                await writer.drain()
                if mode == "slow_stream":
                    await asyncio.wait({hung_up}, timeout=0.02)
                if hung_up.done() or (mode == "cut" and number == 1):
                    return False
                if mode == "error_chunk" and number == 1:
                    writer.write(b'data: {"error": {"message": "scripted failure"}}\n\n')
                    return False
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
            return False
        except ConnectionError:
            await hung_up  # a write may notice before the read does
            raise
        finally:
            hung_up.cancel()

    async def _until_hung_up(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1)
        self.disconnected += 1


def chunks_of(completion: dict[str, Any], request: dict[str, Any]) -> list[dict[str, Any]]:
    base = {**completion, "object": "chat.completion.chunk"}
    usage = base.pop("usage", None)

    def chunk(index: int, delta: dict[str, Any], **ended: Any) -> dict[str, Any]:
        return {**base, "choices": [{"index": index, "delta": delta, "finish_reason": None, **ended}]}

    chunks = []
    for choice in completion["choices"]:
        index, message = choice["index"], choice["message"]
        chunks.append(chunk(index, {"role": "assistant", "content": ""}))
        for key in ("reasoning_content", "refusal"):
            if message.get(key):
                chunks.append(chunk(index, {key: message[key]}))
        content = message.get("content")
        for word in content.split(" ") if isinstance(content, str) else [content] * (content is not None):
            chunks.append(chunk(index, {"content": word + " " if isinstance(word, str) else word}))
        for number, call in enumerate(message.get("tool_calls") or []):
            function = call["function"]
            start = {**call, "index": number, "function": {"name": function["name"], "arguments": ""}}
            chunks.append(chunk(index, {"tool_calls": [start]}))
            for letter in function["arguments"]:
                chunks.append(chunk(index, {"tool_calls": [{"index": number, "function": {"arguments": letter}}]}))
        chunks.append(
            chunk(index, {}, **{key: value for key, value in choice.items() if key not in ("index", "message")})
        )
    if usage and (request.get("stream_options") or {}).get("include_usage"):
        chunks.append({**base, "choices": [], "usage": usage})
    return chunks


def expand(item: str) -> list[str]:
    """``"503*2,ok"`` -> ``["503", "503", "ok"]``. A Retry-After date has commas: give it as a list item of its own."""
    if "GMT" in item:
        return [item]
    modes = []
    for part in item.split(","):
        mode, _, times = part.partition("*")
        modes += [mode] * int(times or 1)
    return modes


def head(status: int, length: int, extra: dict[str, str] | None = None) -> bytes:
    fields = {"Content-Type": "application/json", "Content-Length": str(length), **(extra or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode()


async def send(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], extra: dict[str, str] | None = None
) -> None:
    data = json.dumps(body).encode()
    writer.write(head(status, len(data), extra) + data)
    await writer.drain()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    options = parser.parse_args()
    endpoint = Endpoint(options.mode, latency_s=options.latency_ms / 1000)
    endpoint.keep = False
    print(await endpoint.start(options.port), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
