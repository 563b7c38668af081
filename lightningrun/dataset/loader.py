"""Rows that a Python function yields, run in a process of its own.

The runner never imports the function's module, and what it prints, changes or leaks ends with its process. It sees the
whole environment of the runner, because data may lie behind a login. The child answers with one JSON value a line: a
list that holds a row, or the text of what is wrong with it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightningrun.dataset.files import json_lines
from lightningrun.dataset.plain import Note, plain_rows

_SAID_BYTES = 2000
_NOT_THEIRS = re.compile(rf"^<|site-packages|^{re.escape(os.path.dirname(os.path.abspath(__file__)))}|pkgutil\.py$")


class LoaderFailed(Exception):
    """The function cannot be had, raised, or died. The message is the end of what was said."""


def rows(
    function: str, args: Mapping[str, Any], note: Note, root: Path, environ: Mapping[str, str]
) -> Iterator[tuple[int, Any]]:
    """(number, row) of each row that ``function`` yields; closing the iterator ends it. Raises LoaderFailed."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()", function]
    with tempfile.TemporaryFile() as said:
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, cwd=root, env=dict(environ))
        with child:
            assert child.stdin and child.stdout
            try:
                child.stdin.write(json.dumps(dict(args)).encode())
                child.stdin.close()
                for number, answer in json_lines(child.stdout, note):
                    if isinstance(answer, list):
                        yield number, answer[0]
                    else:
                        note(number, str(answer))
            except BrokenPipeError:
                pass  # it died while starting: its exit code says so
            except BaseException:
                child.kill()  # enough rows, or the runner ends
                raise
        if child.returncode:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES))
            last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise LoaderFailed(last or f"it ended with code {child.returncode}")


def _answer(function: str) -> None:
    """What the child does: call the function with the arguments on standard input, and print its rows."""
    args = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints is not a row
    where, _, attribute = function.rpartition(":")
    if where.endswith(".py"):
        sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
        call = runpy.run_path(where)[attribute]
    else:
        call = pkgutil.resolve_name(function)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")

    for _, row in plain_rows(call(**args), lambda _, message: answer(message)):
        answer([row])
    answers.flush()


def _explained(error: BaseException) -> str:
    """An exception in one line, with the place in the user's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _NOT_THEIRS.search(f.filename) is None]
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{at}".split())


def main() -> None:
    """The child's whole life. Exits with 3 for an exception, its last line on standard error."""
    try:
        _answer(sys.argv[1])
    except BrokenPipeError:
        os._exit(0)  # enough rows were taken
    except BaseException as error:
        print(f"\n{_explained(error)}", file=sys.stderr, flush=True)
        os._exit(3)
