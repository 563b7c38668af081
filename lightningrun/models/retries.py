"""Trying again: backoff with jitter inside one total deadline, as long as the provider asks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import TypeVar

from lightningrun.errors import ModelError

T = TypeVar("T")

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 20.0
_jitter = random.Random()
"""Its own generator: waits must not shift the random numbers of anything that decides a result."""


class Retries:
    """The attempts of one call. ``made`` counts them."""

    def __init__(self, timeout_s: float, deadline_s: float, retries: int) -> None:
        self._timeout_s = timeout_s
        self._end = time.monotonic() + deadline_s
        self._deadline_s = deadline_s
        self._most = retries + 1
        self.made = 0

    async def run(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """``await attempt(timeout_s)`` until it succeeds; raises its last ModelError, with the attempts in its text."""
        while True:
            left = self._end - time.monotonic()
            self.made += 1
            try:
                return await attempt(min(self._timeout_s, max(left, 0.001)))
            except ModelError as error:
                if not error.retryable:
                    raise
                wait = self._wait_s(error)
                if self.made >= self._most or wait >= self._end - time.monotonic():
                    raise self._gave_up(error, wait) from error
                await asyncio.sleep(wait)

    def _wait_s(self, error: ModelError) -> float:
        grown = min(_FIRST_WAIT_S * 2.0 ** (self.made - 1), _LONGEST_WAIT_S)
        asked = error.retry_after_s or 0.0
        return max(asked, grown) * (1.0 + 0.25 * _jitter.random()) if asked else grown * _jitter.uniform(0.5, 1.0)

    def _gave_up(self, error: ModelError, wait_s: float) -> ModelError:
        tries = f"{self.made} attempt{'s' if self.made > 1 else ''}"
        reason = f"gave up after {tries}"
        if self.made < self._most:
            reason += f", because {wait_s:.1f} s more would pass the deadline of {self._deadline_s:g} s"
        return ModelError(
            f"{error.message} ({reason})",
            kind=error.kind,
            status=error.status,
            retryable=True,
            retry_after_s=error.retry_after_s,
            where=error.where,
            hint=error.hint,
        )


def retry_after_s(value: str | None) -> float | None:
    """Seconds asked for by a ``Retry-After`` header: a number, or an HTTP date. None if absent or not understood."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
