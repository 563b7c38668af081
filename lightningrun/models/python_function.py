"""A chat model written as a Python function: ``fn(request) -> str or dict``, sync or async.

``request`` is the body of a chat-completions call. A string answered becomes the message's content; a dict must be a
chat completion, of which ``choices`` will do. For demonstrations, tests and home-made models: anything behind a
function is a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightningrun.errors import ModelError, UsageError
from lightningrun.models.chunks import split
from lightningrun.models.provider import Body, checked, tokens_of

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig


class PythonFunction:
    """Calls the function named by ``name``, with the recipe's ``args`` bound first. See ``Provider``."""

    secret = ""

    def __init__(self, config: ModelConfig, environ: Mapping[str, str], role: str) -> None:
        self._where = f"models.{role}"
        self._name = config.name
        function = _load(config.name, f"{self._where}.name")
        self._function = partial(function, **config.args)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async is asked here
        )
        self.fingerprint = {"args": config.args, "source": _source_digest(function)}
        self._threads = _Threads(f"model-{role}")

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        try:
            if self._is_async:
                answer = await asyncio.wait_for(self._function(body), timeout_s)
            else:
                answer = await asyncio.wait_for(self._threads.run(partial(self._function, body)), timeout_s)
        except asyncio.TimeoutError as error:
            raise ModelError(
                f"{self._name} gave no answer within {timeout_s:.3g} s",
                kind="timeout",
                retryable=True,
                where=self._where,
            ) from error
        except Exception as error:
            raise ModelError(_said(self._name, error), kind="python", where=self._where) from error
        if isinstance(answer, str):
            return _completion(body, {"role": "assistant", "content": answer})
        if not isinstance(answer, dict):
            raise ModelError(
                f"{self._name} answered with {type(answer).__name__}: a str or a chat completion as a dict is wanted",
                kind="python",
                where=self._where,
            )
        return {**_completion(body, checked(answer, self._where)["choices"][0]["message"]), **answer}

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        for chunk in split(await self.complete(body, b"", timeout_s)):
            yield chunk

    async def aclose(self) -> None:
        self._threads.stop()


class _Threads:
    """Threads for functions that block. Daemons: one that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """The result of ``function()`` in a free thread, a new one if none is free. A cancelled wait frees nothing."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._work.put(partial(_call, function, loop, partial(self._ended, future)))
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._loop, name=self._name, daemon=True).start()
        return await future

    def _ended(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _loop(self) -> None:
        while (job := self._work.get()) is not None:
            job()

    def stop(self) -> None:
        for _ in range(self._threads):
            self._work.put(None)
        self._threads = 0


def _call(
    function: Callable[[], Any],
    loop: asyncio.AbstractEventLoop,
    ended: Callable[[Any, BaseException | None], None],
) -> None:
    result: Any = None
    error: BaseException | None = None
    try:
        result = function()
    except Exception as raised:
        # a future cannot carry StopIteration
        error = RuntimeError(repr(raised)) if isinstance(raised, StopIteration) else raised
    except BaseException as raised:  # a model that calls sys.exit() must not end the run
        error = RuntimeError(repr(raised))
    try:
        loop.call_soon_threadsafe(ended, result, error)
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass


def _completion(body: Body, message: Body) -> Body:
    """A whole chat completion that says ``message``: clients want all of its fields."""
    asked = sum(tokens_of(str(message.get("content") or "")) for message in body.get("messages") or ())
    text = "".join(str(message[key]) for key in ("content", "tool_calls") if message.get(key))
    usage = {"prompt_tokens": asked, "completion_tokens": tokens_of(text)}
    return {
        "id": f"chatcmpl-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def _said(name: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{name} raised {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"


def _load(name: str, where: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise UsageError(
            f"{name!r} names no function", where=where, hint="write module:function or path/file.py:function"
        )
    try:
        found: Any = _module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UsageError(f"{name!r} cannot be loaded: {type(error).__name__}: {error}", where=where) from error
    if not callable(found):
        raise UsageError(f"{name!r} is not callable", where=where)
    return found  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)  # an entry point's script does not have the working directory there
        return importlib.import_module(name)
    path = Path(name).resolve()
    alias = f"_lightningrun_model_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _source_digest(function: Callable[..., Any]) -> str:
    """Digest of the file that the function is in: an edited model must not be answered for by its old answers."""
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(function))).read_bytes()).hexdigest()[:16]
    except (TypeError, OSError):
        return ""
