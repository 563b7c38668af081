"""What the gateway adds to a call, beside the LiteLLM proxy on the same endpoint, in one run.

    python bench/gateway.py [--repeats 3] [--proxy VENV/bin/litellm]

Contestants take turns, so that a busy machine hits all of them. Each is a process of its own before an endpoint that
takes 1 ms (a third process); the client is a bare socket, which is the same for all and costs them little. What is
added is a contestant's quantile less that of the endpoint asked directly; the medians of the repeats are shown.

one        one client, one call after the other
64 paced   64 clients that together send --rate calls a second, at moments drawn once (as 64 agents do whose model
           takes most of a second). A call's time begins when it is due, so that waiting for a slow gateway counts
64 at once 64 clients, each with its next call as soon as the last is answered: how many calls/s a contestant serves.
           What a call takes here is 64 divided by that, whatever the contestant
stream     one client: from the request to the first byte of the first event

Exit 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from measuring import HERE, endpoint, served

CLIENTS = 64
DIRECT, OURS, PROXY = "endpoint", "gateway", "LiteLLM proxy"


@dataclass(frozen=True)
class Target:
    """Where a contestant listens, and what opens it."""

    port: int
    path: str
    token: str

    def request(self, number: int, stream: bool) -> bytes:
        message = {"role": "user", "content": f"BASE PROMPT. TASK t{number}"}
        body = json.dumps({"model": "policy", "messages": [message], "stream": stream}, separators=(",", ":")).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        return f"{head}authorization: Bearer {self.token}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


class Client:
    """One connection, kept open. ``call`` returns when the first byte of an answer was there, and when the last."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._target.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def call(self, number: int, stream: bool = False) -> tuple[float, float]:
        self._writer.write(self._target.request(number, stream))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"{self._target}: {head.decode('latin1')}{await self._reader.read(2000)!r}")
        first = 0.0
        if b"chunked" in head:
            while size := int(await self._reader.readline(), 16):
                await self._reader.readexactly(size + 2)
                first = first or time.perf_counter()
            await self._reader.readexactly(2)
        else:
            await self._reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        last = time.perf_counter()
        return first or last, last


async def alone(target: Target, calls: int, stream: bool) -> list[float]:
    """Seconds of each call of one client; of a stream, to its first byte."""
    taken = []
    async with Client(target) as client:
        for number in range(calls):
            began = time.perf_counter()
            first, last = await client.call(number, stream)
            taken.append((first if stream else last) - began)
    return taken


async def paced(target: Target, calls: int, rate: float) -> list[float]:
    """Seconds from the moment that each call was due."""
    drawn = random.Random(0)
    due = sorted(drawn.uniform(0, calls / rate) for _ in range(calls))
    began = time.perf_counter() + 0.1
    taken: list[float] = []

    async def client(own: list[float], first: int) -> None:
        async with Client(target) as connection:
            for number, moment in enumerate(own):
                await asyncio.sleep(began + moment - time.perf_counter())
                taken.append((await connection.call(first + number))[1] - began - moment)

    await asyncio.gather(*(client(due[index::CLIENTS], index * calls) for index in range(CLIENTS)))
    return taken


async def at_once(target: Target, calls: int) -> float:
    """Calls a second."""

    async def client(first: int) -> None:
        async with Client(target) as connection:
            for number in range(calls // CLIENTS):
                await connection.call(first + number)

    began = time.perf_counter()
    await asyncio.gather(*(client(index * calls) for index in range(CLIENTS)))
    return calls // CLIENTS * CLIENTS / (time.perf_counter() - began)


@contextlib.contextmanager
def gateway(base: str) -> Iterator[Target]:
    """Our gateway in a process of its own, as a run sets it up."""
    with served(Path(__file__), "--serve", f"{base}/v1") as target:
        yield Target(**json.loads(target))


async def serve(base_url: str) -> None:
    from lightningrun.gateway.server import Gateway
    from lightningrun.models.service import ModelService
    from lightningrun.recipe.model import ModelConfig

    with tempfile.TemporaryDirectory(prefix="lightningrun-bench-") as folder:
        config = ModelConfig(provider="openai", name="fake", base_url=base_url, concurrency=CLIENTS)
        service = ModelService({"policy": config}, Path(folder, "calls.jsonl"))
        made = Gateway(service)
        await made.start()
        made.bind("bench", service.session(stage="bench", owner="bench"))
        port, _, path = made.url("bench").removeprefix("http://127.0.0.1:").partition("/")
        print(json.dumps({"port": int(port), "path": f"/{path}/chat/completions", "token": made.token}), flush=True)
        await asyncio.Event().wait()


@contextlib.contextmanager
def proxy(executable: str, base: str) -> Iterator[Target]:
    """The LiteLLM proxy with one worker, without database, logging or callbacks."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="lightningrun-bench-") as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        params = {"model": "openai/fake", "api_base": f"{base}/v1", "api_key": "none"}
        config = {"model_list": [{"model_name": "policy", "litellm_params": params}]}
        Path(folder, "config.yaml").write_text(json.dumps(config))
        command = [
            executable,
            "--config",
            "config.yaml",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--telemetry",
            "False",
        ]
        key = "sk-" + secrets.token_hex(32)  # it does not start without one
        environment = {
            **os.environ,
            "LITELLM_MASTER_KEY": key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        with (
            open(Path(folder, "log"), "w") as log,
            subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log) as process,
        ):
            try:
                _until_up(f"http://127.0.0.1:{port}/health/liveliness", process, Path(folder, "log"))
                yield Target(port, "/v1/chat/completions", key)
            finally:
                process.kill()


def _until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"the proxy did not start:\n{log.read_text()[-3000:]}")


def quantile(seconds: list[float], q: float) -> float:
    """In milliseconds."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(q * len(seconds)))]


async def measure(name: str, target: Target, n: int, rate: float) -> dict[str, float]:
    """One turn of a contestant."""
    slow = name == PROXY
    await alone(target, 20, False)
    one = await alone(target, n // 4 if slow else n, False)
    spread = await paced(target, n, rate)
    streamed = await alone(target, n // 4, True)
    return {
        "one p50": quantile(one, 0.5),
        "one p99": quantile(one, 0.99),
        "64 paced p50": quantile(spread, 0.5),
        "64 paced p99": quantile(spread, 0.99),
        "stream p50": quantile(streamed, 0.5),
        "64 at once calls/s": await at_once(target, n if slow else 3 * n),
    }


def report(table: dict[str, dict[str, float]], with_proxy: bool) -> bool:
    """Print the table (milliseconds; calls a second) and the verdicts; True if every target is met."""
    columns = list(table[DIRECT])
    print(f"\n{'':<15}" + "".join(f"{column:>20}" for column in columns))
    for name, row in table.items():
        print(f"{name:<15}" + "".join(f"{row[column]:>20.2f}" for column in columns))
    for name in list(table)[1:]:
        added = {column: table[name][column] - table[DIRECT][column] for column in columns[:-1]}
        print(f"{name + ' adds':<15.15}" + "".join(f"{value:>20.2f}" for value in added.values()))
    print()
    ours, direct = table[OURS], table[DIRECT]
    bounds = {"one p50": 1.5, "one p99": 10, "64 paced p50": 1.5, "64 paced p99": 10, "stream p50": 2}
    verdicts = [(f"{name}: adds at most {most:g} ms", ours[name] - direct[name], most) for name, most in bounds.items()]
    if with_proxy:
        share = table[PROXY]["64 at once calls/s"] / ours["64 at once calls/s"]
        verdicts.append(("at least 4x the calls/s of the proxy: its share of ours is at most 0.25", share, 0.25))
    for text, value, most in verdicts:
        print(f"{'pass' if value <= most else 'FAIL'}  {text}, is {value:.2f}")
    return all(value <= most for _, value, most in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="calls of a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100, help="calls a second of the paced clients")
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--proxy", type=os.path.abspath, help="the litellm command of a venv with litellm[proxy]")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        return asyncio.run(serve(chosen.serve))
    turns: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(endpoint(chosen.latency_ms))
        targets = {DIRECT: Target(int(base.rpartition(":")[2]), "/v1/chat/completions", "none")}
        targets[OURS] = stack.enter_context(gateway(base))
        if chosen.proxy:
            targets[PROXY] = stack.enter_context(proxy(chosen.proxy, base))
        for number in range(chosen.repeats):
            for name, target in targets.items():
                for column, value in asyncio.run(measure(name, target, chosen.n, chosen.rate)).items():
                    turns[name][column].append(value)
                print(f"{number + 1}/{chosen.repeats} {name}, load {os.getloadavg()[0]:.1f}", flush=True)
    middle: Callable[[list[float]], float] = statistics.median
    table = {name: {column: middle(values) for column, values in row.items()} for name, row in turns.items()}
    met = report(table, bool(chosen.proxy))
    save(turns)
    raise SystemExit(0 if met else 1)


def save(turns: dict[str, dict[str, list[float]]]) -> None:
    """Keep the single turns, beside what was printed of them."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"gateway-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(turns, indent=1) + "\n")
    print(f"\nsingle turns: {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
