"""A slot: a forked process that imports the agent (or the reward function) once and answers jobs one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightningrun.agents import calling, proctree, wire

_FLUSH_S = 2.0
"""The longest that a rollout waits for its agent's OpenTelemetry to send its spans."""
RESERVED = ("task", "prompts", "llm", "seed", "args")


def live(sock: socket.socket, spawn: Mapping[str, Any], server: int) -> None:
    """Become the slot that ``spawn`` describes and serve until the socket ends. Runs right after the fork."""
    os.setsid()
    proctree.die_with_parent(server)
    proctree.adopt_orphans()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    elsewhere = any(name.startswith("OTEL_EXPORTER_OTLP") for name in os.environ)  # agent.env has another collector
    os.environ.update({k: v for k, v in spawn["env"].items() if not (elsewhere and k.startswith("OTEL_"))})
    if spawn["memory_mb"]:
        resource.setrlimit(resource.RLIMIT_AS, (spawn["memory_mb"] << 20,) * 2)
    try:
        slot = _Slot(spawn)
    except BaseException as error:
        sock.sendall(wire.frame({"error": calling.explain(error)}))
        return
    sock.sendall(wire.frame({"wants": sorted(slot.function.wants)}))
    while (job := wire.receive(sock)) is not None:
        sock.sendall(wire.frame_text(slot.answer(job)))


class _Slot:
    def __init__(self, spawn: Mapping[str, Any]) -> None:
        self.pid = os.getpid()
        self.home = os.getcwd()
        self.scratch = spawn["scratch"]
        self.args: dict[str, Any] = spawn["args"]
        self.llm: dict[str, Any] = spawn["llm"]
        self.encode = calling.encode if spawn["role"] == "agent" else calling.encode_reward
        self.loop: asyncio.AbstractEventLoop | None = None
        self.jobs = 0
        self.function = calling.Function(spawn["entrypoint"])
        self.own_children = set(proctree.children(self.pid))

    def answer(self, job: dict[str, Any]) -> str:
        """Do one job. Whatever the user's code does short of killing the process becomes an outcome."""
        started = time.perf_counter()
        output = "null"
        error = ""
        try:
            output = self.encode(self._run(job))
            kind = "ok"
        except calling.BadOutput as problem:
            kind, error = "bad_output", calling.explain(problem)
        except BaseException as problem:  # SystemExit and KeyboardInterrupt are the agent's doing, too
            kind, error = "raised", calling.explain(problem)
        duration = time.perf_counter() - started
        if os.getpid() != self.pid:
            os._exit(0)  # the agent forked and its child came back here
        _flush_spans()
        self._tidy()
        head = json.dumps({"kind": kind, "error": error, "duration_s": duration, "leftovers": self._leftovers()})
        return f'{head[:-1]}, "output": {output}}}'

    def _run(self, job: dict[str, Any]) -> Any:
        seed = job["seed"]
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed & 0xFFFFFFFF)
        result = self.function(available(job, self.args, self.llm, self._workdir))
        return self._await(result) if inspect.isawaitable(result) else result

    def _workdir(self) -> str:
        self.jobs += 1
        path = os.path.join(self.scratch, str(self.jobs))
        os.makedirs(path)
        return path

    def _await(self, awaitable: Any) -> Any:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        before = asyncio.all_tasks(self.loop)
        try:
            return self.loop.run_until_complete(_as_coroutine(awaitable))
        finally:
            # A task left running would send its calls in the name of the next rollout.
            left = asyncio.all_tasks(self.loop) - before
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left, timeout=1.0))

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            os.chdir(self.home)
        if self.jobs:
            shutil.rmtree(os.path.join(self.scratch, str(self.jobs)), ignore_errors=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # the agent closed or replaced it
                stream.flush()

    def _leftovers(self) -> int:
        """Processes that the job started and did not end; what the module started while importing is its own."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return 0
        if not proctree.LINUX:
            return 1
        return len(set(proctree.children(self.pid)) - self.own_children)


def _flush_spans() -> None:
    """Have OpenTelemetry, where the agent uses it, send what it has of this job before the url is another job's."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return
    flush = getattr(sys.modules["opentelemetry.trace"].get_tracer_provider(), "force_flush", None)
    if flush is not None:
        sender = threading.Thread(target=_quietly, args=(flush,), daemon=True)
        sender.start()
        sender.join(_FLUSH_S)


def _quietly(call: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        call()


def available(
    job: Mapping[str, Any], args: Mapping[str, Any], llm: Mapping[str, Any], workdir: Any
) -> Mapping[str, Any]:
    """Every name a function may ask for. Reserved names win over keys of ``args``, and those over fields of the row."""
    names = Lazy({**job["fields"], **args})
    names.update(job["reserved"], task=job["fields"], args=args, seed=job["seed"], prompts=job["prompts"])
    names["llm"] = calling.LLM({**llm, **job["llm"]})
    names.lazy = {calling.WORKDIR: workdir}
    return names


class Lazy(dict[str, Any]):
    """A dict in which some values are made when they are asked for by name; iteration leaves them out."""

    lazy: Mapping[str, Any] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.lazy

    def __missing__(self, name: str) -> Any:
        return self.lazy[name]()


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable
