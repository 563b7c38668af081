"""Whether one of verl's trainers lives, and the processor time that its training took."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightningrun.errors import StageFailed
from lightningrun.stages.verl_process.process import VerlProcess


class Life:
    """Of one start of verl. ``spent_s``: what the training took before it, in processor seconds."""

    def __init__(
        self, process: VerlProcess, watchdog_s: float, spent_s: float, ours: Callable[[], float] = lambda: 0.0
    ) -> None:
        """``ours``: processor seconds of this process that are the training's too."""
        self._process = process
        self._watchdog_s = watchdog_s
        self._ours = ours
        self._before = self._spent = spent_s
        self._began = self._signed = time.monotonic()
        self._clock: float | None = None
        """Processor time when verl was ready: that to start it is not the training's."""

    def sign(self) -> None:
        """It has shown that it lives."""
        self._signed = time.monotonic()

    def became_ready(self) -> str:
        """What to tell of it, once; else nothing."""
        if self._clock is not None or not self._process.is_ready:
            return ""
        self._clock = self._now()
        self.sign()
        return f"verl's trainer is ready after {time.monotonic() - self._began:.0f} s"

    def spent_s(self) -> float:
        """Processor time of the training so far. Processes that have ended are counted no more, so it never falls."""
        self._spent = max(self._spent, self._before + self._now() - (self._clock or 0.0))
        return self._spent

    def _now(self) -> float:
        return self._process.cpu_s() + self._ours()

    def check(self) -> None:
        """Raises StageFailed if there was no sign of life for too long."""
        silent_s = time.monotonic() - self._signed
        if silent_s > self._watchdog_s:
            raise StageFailed(
                f"verl's trainer gave no sign of life for {silent_s:.0f} s (watchdog_s: {self._watchdog_s:g})",
                hint=f"what it said last is in {self._process.log}; `resume` goes on from its last checkpoint",
            )
