"""``provider: vllm``: chat completions from a vLLM server, with the ids and log-probabilities that it sampled.

The server runs already (``base_url``), or is started for the role's checkpoint when the first stage needs it, again for
the checkpoint of a later stage, and once more if it dies. It listens on loopback behind a key of its own, knows no
sampling but what is asked for (``--generation-config vllm``) and tells log-probabilities at the sampling temperature
(``--logprobs-mode processed_logprobs``), as the embedded engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import yarl

from lightningrun.errors import LightningError, ModelError, UsageError
from lightningrun.models.local.folder import content_digest, find, is_output
from lightningrun.models.openai_http import OpenAIHttp
from lightningrun.models.provider import Body, dumps
from lightningrun.models.vllm.server import DEFAULT_COMMAND, NOT_SERVED, Server, free_port
from lightningrun.models.vllm.tokens import Sampled, asking
from lightningrun.types import Json

if TYPE_CHECKING:
    from lightningrun.recipe.model import ModelConfig, ServerConfig

_KEY = "VLLM_API_KEY"
_STARTS = 2
"""A server that died this often with one checkpoint is not started again."""


class VllmProvider:
    """See ``Provider``."""

    def __init__(self, config: ModelConfig, environ: Mapping[str, str], role: str) -> None:
        self._config = config
        self._environ = environ
        self._where = f"models.{role}"
        self._role = role
        self._logs: Path | None = None
        self._say: Callable[[str], None] = lambda text: None
        self._lock = asyncio.Lock()
        self._server: Server | None = None
        self._http: OpenAIHttp | None = None
        self._failed: LightningError | None = None
        self._starts = 0
        self._folder: Path | None = None
        self._weights = ""
        if config.base_url is not None:
            self._attached: OpenAIHttp | None = OpenAIHttp(config, environ, role)
            self.secret = self._attached.secret
        else:
            self._attached = None
            self.secret = secrets.token_urlsafe(24)
            self.serve(None)

    def attend(self, logs: Path, say: Callable[[str], None]) -> None:
        """Where logs lie, and whom to tell of progress."""
        self._logs, self._say = logs, say

    @property
    def fingerprint(self) -> Json:
        """The weights that answer now; of a server that runs elsewhere only where it is."""
        if self._attached is not None:
            return self._attached.fingerprint
        return {"weights": self._weights, "context": self._config.context, "dtype": self._config.dtype}

    def serve(self, folder: Path | None) -> None:
        """Answer from the checkpoint in ``folder`` from now on, None: from the recipe's own. The server is started anew
        for it by the next ``ready``. Raises UsageError if no checkpoint is there, or the server is not ours."""
        name = self._config.name
        if self._attached is not None:
            if folder is not None:
                raise UsageError(
                    "a server that runs elsewhere cannot be given the weights of an earlier stage",
                    where=f"{self._where}.base_url",
                    hint="leave base_url out: then a server is started for them",
                )
            return
        self._folder, weights = None, ""
        if folder is not None or not is_output(name):
            try:
                self._folder = find(name if folder is None else str(folder), f"{self._where}.name")
                weights = content_digest(self._folder)
            except UsageError:
                if folder is not None or Path(name).expanduser().exists():
                    raise
                weights = name  # a container may have it; otherwise the server will say that it has not
        if weights != self._weights:
            self._weights, self._failed, self._starts = weights, None, 0

    async def ready(self) -> OpenAIHttp:
        """The connection to a healthy server with the weights that are to answer. Raises ModelError, UsageError."""
        async with self._lock:
            if self._failed is not None:
                raise self._failed
            try:
                if self._attached is not None:
                    return await self._looked_at(self._attached)
                return await self._started()
            except LightningError as error:
                self._failed = error
                raise

    async def _started(self) -> OpenAIHttp:
        if self._server is not None and self._http is not None and self._server.serves == self._weights:
            if self._server.alive:
                return self._http
            if self._starts >= _STARTS:
                error = self._server.died()
                raise ModelError(error.message, kind=NOT_SERVED, where=error.where, hint=error.hint)
            self._say(f"{self._server.died().message}: it is started again")
        await self.rest()
        config, options = self._config, self._options
        port = options.port or free_port()
        if self._logs is None:
            self._logs = Path(tempfile.mkdtemp(prefix="lightningrun-vllm-"))
        log = self._logs / f"vllm-{self._role}.log"
        self._say(f"{self._where}: starting a server for {self._source} (log: {log})")
        self._server = Server(self._weights, port, log, self._where, self._say)
        self._starts += 1
        await self._server.start(self._command(port), {**self._environ, _KEY: self.secret}, options.start_timeout_s)
        reached = config.model_copy(update={"base_url": f"{self._server.origin}/v1", "api_key_env": _KEY})
        self._http = OpenAIHttp(reached, {_KEY: self.secret}, self._role)
        return self._http

    @property
    def _options(self) -> ServerConfig:
        from lightningrun.recipe.model import ServerConfig

        return self._config.server or ServerConfig()

    @property
    def _source(self) -> str:
        """What vLLM is told to load. Raises UsageError if no stage has made it yet."""
        if not self._weights:
            raise UsageError(
                f"{self._config.name} is not made yet",
                where=f"{self._where}.name",
                hint="stages that use this model come after the one that makes it",
            )
        return self._config.name if self._folder is None else str(self._folder)

    def _command(self, port: int) -> list[str]:
        config, options = self._config, self._options
        command = [*(options.command or DEFAULT_COMMAND), self._source, "--served-model-name", config.name]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", config.dtype]
        command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        if config.context is not None:
            command += ["--max-model-len", str(config.context)]
        return [*command, *options.args]

    async def _looked_at(self, http: OpenAIHttp) -> OpenAIHttp:
        """``http`` once its server is healthy and has the model; looked at before the first request only."""
        if self._http is None:
            base = str(self._config.base_url).rstrip("/")
            key = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
            limit = aiohttp.ClientTimeout(total=min(30.0, self._config.timeout_s))
            async with aiohttp.ClientSession(timeout=limit, headers=key) as session:
                await self._wait_for(session, base)
                await self._check_name(session, base)
            self._http = http
        return http

    async def _wait_for(self, session: aiohttp.ClientSession, base: str) -> None:
        """Until it says that it is healthy, for ``deadline_s``; other servers than vLLM have no ``/health``."""
        health = yarl.URL(base).origin() / "health"
        until, said = time.monotonic() + self._config.deadline_s, False
        while True:
            try:
                async with session.get(health) as response:
                    status = response.status
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                raise self._unreached(f"nothing answers at {base}: {str(error) or type(error).__name__}") from error
            if status < 500:
                return
            if time.monotonic() > until:
                raise self._unreached(f"the server at {base} is not healthy (HTTP {status})")
            if not said:
                self._say(f"{self._where}: waiting until the server at {base} is healthy")
                said = True
            await asyncio.sleep(1.0)

    def _unreached(self, message: str) -> ModelError:
        hint = "start it (`vllm serve ...`), mend base_url, or leave base_url out: then one is started"
        return ModelError(message, kind=NOT_SERVED, where=f"{self._where}.base_url", hint=hint)

    async def _check_name(self, session: aiohttp.ClientSession, base: str) -> None:
        names: list[str] = []
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError, TypeError):
            async with session.get(f"{base}/models") as response:
                if response.status == 200:
                    names = [str(model["id"]) for model in (await response.json())["data"]]
        if names and self._config.name not in names:
            raise ModelError(
                f"the server at {base} has no model {self._config.name!r}: it has {', '.join(names)}",
                kind="not_found",
                where=f"{self._where}.name",
                hint="name one of those, or start it with --served-model-name",
            )

    async def complete(self, body: Body, payload: bytes, timeout_s: float) -> Body:
        http = await self.ready()
        sampled, asked = Sampled(body, self._weights), asking(body)
        with self._errors():
            completion = await http.complete(asked, dumps(asked), timeout_s)
        sampled.take(completion)
        return completion

    async def stream(self, body: Body, timeout_s: float) -> AsyncGenerator[Body, None]:
        http = await self.ready()
        sampled = Sampled(body, self._weights)
        with self._errors():
            async with contextlib.aclosing(http.stream(asking(body), timeout_s)) as chunks:
                async for chunk in chunks:
                    sampled.take(chunk)
                    yield chunk

    @contextlib.contextmanager
    def _errors(self):  # type: ignore[no-untyped-def]
        """A connection that failed because our server died is said to be that."""
        try:
            yield
        except ModelError as error:
            if error.kind == "connection" and self._server is not None and not self._server.alive:
                raise self._server.died() from error
            raise

    async def rest(self) -> None:
        """End a server that was started: its memory is wanted by others. The next ``ready`` starts one again."""
        if self._http is not None and self._attached is None:
            await self._http.aclose()
            self._http = None
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def aclose(self) -> None:
        if self._attached is not None:
            await self._attached.aclose()
        await self.rest()
