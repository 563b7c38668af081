"""A deterministic OpenAI-compatible endpoint that takes a fixed time for each call, and times what it served itself.

    python bench/endpoint.py [--latency-ms 1]     prints its port; GET /stats, POST /reset

The figures of every contestant are taken here, outside the contestant: first and last call, and how many.

An agent is right more often the more rules its prompt has; a coach that is asked for a new prompt adds one rule. So an
optimiser has something to find, and what it finds depends on its questions alone.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import time
from typing import Any

_PROMPT = re.compile(r"BASE PROMPT\.(?: RULE \d+\.)* TASK \{q\}")
_REWRITE = ("you improve the prompts of an ai agent", "revise the", "rewrite the prompt")
_CRITIQUE = ("critique", "textual gradient")
"""How the optimisers' own questions are told from an agent's: by words that no task has."""


def reply(text: str) -> str:
    """What the model says to all the messages of a request."""
    lower = text.lower()
    if any(words in lower for words in _REWRITE):
        found = _PROMPT.search(text)
        prompt = found[0] if found else "BASE PROMPT. TASK {q}"
        return prompt.replace("TASK", f"RULE {prompt.count('RULE') + 1}. TASK")
    if any(words in lower for words in _CRITIQUE):
        return "The prompt does not say how to answer. Give it one more rule."
    chance = min(0.95, 0.3 + 0.08 * text.count("RULE"))
    return "right" if hashlib.sha256(text.encode()).digest()[0] < 256 * chance else "wrong"


class Endpoint:
    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.reset()

    def reset(self) -> None:
        self.calls = 0
        self.first = self.last = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
                size = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
                body = await reader.readexactly(size)
                answer = json.dumps(said := await self.answer(head.split(" ", 2)[1], body)).encode()
                if b'"stream":true' in body.replace(b" ", b""):
                    writer.write(streamed(said))
                    continue
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
                )
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/stats":
            return {"calls": self.calls, "first": self.first, "last": self.last}
        if path == "/reset":
            self.reset()
        if not body or path == "/reset":
            return {}
        self.first = self.first or time.time()
        await asyncio.sleep(self.latency_s)
        request = json.loads(body)
        text = reply("\n".join(str(message.get("content")) for message in request["messages"]))
        self.calls += 1
        self.last = time.time()
        return {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": int(self.last),
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "logprobs": None,
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": 2, "total_tokens": len(body) // 4 + 2},
        }


def streamed(completion: dict[str, Any]) -> bytes:
    """The answer as a stream of its words, all sent at once."""
    (choice,) = completion["choices"]
    deltas: list[Any] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word + " "} for word in choice["message"]["content"].split(" ")]
    head = {**completion, "object": "chat.completion.chunk", "usage": None}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({**head, "choices": [], "usage": completion["usage"]})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    body = text.encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    endpoint = Endpoint(parser.parse_args().latency_ms / 1000)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
