"""An agent that is any program: ``command: [...]``, run once for each task.

It gets the task as one JSON text on standard input and in ``LIGHTNINGRUN_TASK``, the prompts in the JSON file that
``LIGHTNINGRUN_PROMPTS`` names, ``args`` in ``LIGHTNINGRUN_ARGS``, the seed in ``LIGHTNINGRUN_SEED``, and the endpoint
in ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``OPENAI_MODEL``. The last line of its standard output is the answer:
JSON if it parses, else text. This module runs inside a slot, which times it out and kills what it leaves behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from typing import IO, Any

ENTRYPOINT = "lightningrun.agents.command:run"
_MAX_STDOUT_BYTES = 5 << 20
_MAX_STDERR_BYTES = 2000
_MAX_VARIABLE_BYTES = 100_000
"""Linux takes at most 128 KiB in one variable; a larger task is on standard input only."""


class CommandFailed(Exception):
    """The program ended with a code other than 0, or printed nothing."""


def run(
    task: dict[str, Any],
    prompts: dict[str, str],
    seed: int,
    workdir: str,
    command: Sequence[str],
    user_args: dict[str, Any],
) -> Any:
    """Run the program on one task. Raises CommandFailed with the end of its standard error."""
    text = json.dumps(task)
    prompts_file = os.path.join(workdir, "prompts.json")
    with open(prompts_file, "w", encoding="utf-8") as stream:
        json.dump(prompts, stream)
    env = {
        **os.environ,
        "LIGHTNINGRUN_PROMPTS": prompts_file,
        "LIGHTNINGRUN_SEED": str(seed),
        "LIGHTNINGRUN_ARGS": json.dumps(user_args),
    }
    if len(text) < _MAX_VARIABLE_BYTES:
        env["LIGHTNINGRUN_TASK"] = text
    pipe = subprocess.PIPE
    with subprocess.Popen(list(command), stdin=pipe, stdout=pipe, stderr=pipe, env=env) as process:
        assert process.stdin and process.stdout and process.stderr
        errors = _Tail(process.stderr, _MAX_STDERR_BYTES)
        printed = _Tail(process.stdout, _MAX_STDOUT_BYTES)
        with contextlib.suppress(BrokenPipeError):  # it need not read its input
            process.stdin.write(text.encode())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()
        stdout, stderr = printed.end(), errors.end().strip()
    if code:
        raise CommandFailed(
            f"{command[0]} ended with code {code}" + (f"; the end of its stderr:\n{stderr}" if stderr else "")
        )
    lines = stdout.strip().splitlines()
    if not lines:
        raise CommandFailed(f"{command[0]} printed nothing" + (f"; the end of its stderr:\n{stderr}" if stderr else ""))
    try:
        return json.loads(lines[-1])
    except ValueError:
        return lines[-1]


class _Tail(threading.Thread):
    """Reads a pipe to its end and keeps the last bytes: whatever the program prints, memory stays bounded."""

    def __init__(self, pipe: IO[bytes], size: int) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._size = size
        self._kept = b""
        self.start()

    def run(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 1 << 16):
            self._kept = (self._kept + chunk)[-self._size :]

    def end(self) -> str:
        """What was kept. A grandchild that holds the pipe open is not waited for longer than a second."""
        self.join(1.0)
        return self._kept.decode("utf-8", "replace")
