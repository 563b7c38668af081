"""What was spent, and the budgets that stop it before it is overspent.

Ledgers form a chain: a stage's ledger books on the run's too. A call reserves its upper bound in the whole chain before
it is sent and settles to what it really cost, so that no number of concurrent calls can overshoot a limit together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lightningrun.errors import BudgetReached
from lightningrun.types import Usage

_CENT_DUST = 1e-9
"""Sums of floats that differ by less (USD) are equal."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits; None means none."""

    max_llm_calls: int | None = None
    max_cost_usd: float | None = None


@dataclass(slots=True)
class _Tally:
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass(slots=True)
class _Held:
    calls: int = 0
    usd: float = 0.0
    by_role: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Calls, tokens and dollars of one scope (the run, or a stage of it), by role."""

    def __init__(self, name: str, limits: Limits = Limits(), parent: Ledger | None = None) -> None:
        self.name = name
        self.limits = limits
        self.role_limits: Mapping[str, int] = {}
        self._parent = parent
        self._spent: dict[str, _Tally] = {}
        self._sum = _Tally()
        self._held = _Held()
        self._waiting: list[asyncio.Future[None]] = []

    def child(self, name: str, limits: Limits, roles: Mapping[str, int] | None = None) -> Ledger:
        """A ledger that books here as well; ``roles`` limits the calls of single roles."""
        ledger = Ledger(name, limits, self)
        ledger.role_limits = roles or {}
        return ledger

    def totals(self) -> dict[str, dict[str, float]]:
        """Role -> ``calls``, ``prompt_tokens``, ``completion_tokens``, ``usd``. Answers from the call log are free."""
        return {
            role: {
                "calls": tally.calls,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "usd": round(tally.usd, 9),
            }
            for role, tally in sorted(self._spent.items())
        }

    async def reserve(self, role: str, bound_usd: float = 0.0) -> Reservation:
        """Set one call and ``bound_usd`` aside in the whole chain. Raises BudgetReached if it cannot fit.

        Waits while it does not fit yet but may, once calls under way have settled below their bounds.
        """
        chain = list(self._chain())
        while sum(ledger._must_wait(role, bound_usd) for ledger in chain):  # each is asked: a later one may refuse
            settled = asyncio.get_running_loop().create_future()
            chain[-1]._waiting.append(settled)
            await settled
        for ledger in chain:
            ledger._hold(role, 1, bound_usd)
        return Reservation(chain, role, bound_usd)

    def restore(self, role: str, usage: Usage, usd: float) -> None:
        """Book a call of an earlier process, read back from the call log."""
        for ledger in self._chain():
            ledger._book(role, usage, usd)

    def _chain(self) -> Iterator[Ledger]:
        ledger: Ledger | None = self
        while ledger is not None:
            yield ledger
            ledger = ledger._parent

    def _must_wait(self, role: str, bound_usd: float) -> bool:
        most = self.limits.max_llm_calls
        if most is not None and self._sum.calls + self._held.calls >= most:
            raise BudgetReached(f"{self.name}: the budget of {most} LLM calls is spent", hint="raise max_llm_calls")
        of_role = self.role_limits.get(role)
        if of_role is not None and self._calls_of(role) + self._held.by_role.get(role, 0) >= of_role:
            raise BudgetReached(f"{self.name}: the budget of {of_role} calls of model {role!r} is spent")
        usd = self.limits.max_cost_usd
        if usd is None:
            return False
        left = usd - self._sum.usd + _CENT_DUST
        if bound_usd > left:
            raise BudgetReached(
                f"{self.name}: ${self._sum.usd:.4f} of the budget of ${usd:.4f} is spent, and the next call of model "
                f"{role!r} may cost ${bound_usd:.4f}",
                hint="raise max_cost_usd, or set max_tokens of that model lower",
            )
        return self._held.usd + bound_usd > left

    def _calls_of(self, role: str) -> int:
        tally = self._spent.get(role)
        return tally.calls if tally else 0

    def _hold(self, role: str, calls: int, usd: float) -> None:
        self._held.calls += calls
        self._held.usd += usd
        self._held.by_role[role] = self._held.by_role.get(role, 0) + calls

    def _book(self, role: str, usage: Usage, usd: float) -> None:
        for tally in (self._spent.setdefault(role, _Tally()), self._sum):
            tally.calls += 1
            tally.prompt_tokens += usage.prompt_tokens
            tally.completion_tokens += usage.completion_tokens
            tally.usd += usd

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Reservation:
    """What one call set aside. Settled or released exactly once; later calls of either do nothing."""

    def __init__(self, chain: list[Ledger], role: str, bound_usd: float) -> None:
        self._chain = chain
        self._role = role
        self._bound_usd = bound_usd

    def settle(self, usage: Usage, usd: float) -> None:
        """Book what the call really took."""
        chain = self._free()
        for ledger in chain:
            ledger._book(self._role, usage, usd)
        if chain:
            chain[-1]._wake()

    def release(self) -> None:
        """Give it all back: nothing was sent."""
        if chain := self._free():
            chain[-1]._wake()

    def _free(self) -> list[Ledger]:
        chain, self._chain = self._chain, []
        for ledger in chain:
            ledger._hold(self._role, -1, -self._bound_usd)
        return chain
