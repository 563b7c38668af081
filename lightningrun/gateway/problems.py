"""What goes wrong with a request, as an HTTP status and an error that each protocol puts in its own shape."""

from __future__ import annotations

from lightningrun.errors import BudgetReached, LightningError, ModelError
from lightningrun.models.provider import Body, RefusedRequest


class Problem(Exception):
    """An answer that is no completion. ``error`` has OpenAI's keys: message, type, param, code."""

    def __init__(
        self, status: int, message: str, code: str | None, *, kind: str = "invalid_request_error", param: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error: Body = {"message": message, "type": kind, "param": param or None, "code": code}

    @classmethod
    def of(cls, error: LightningError) -> Problem:
        """What the client is told of an error behind the gateway."""
        if isinstance(error, RefusedRequest):
            problem = cls(error.status, str(error), None)
            problem.error.update(error.detail)  # the provider's own words
            return problem
        if isinstance(error, BudgetReached):
            return cls(429, str(error), "budget_reached", kind="budget_reached")
        if isinstance(error, ModelError):
            return cls(503, str(error), error.kind, kind="model_error")
        return cls(500, str(error), None, kind="server_error")


def wrong(param: str, want: str, code: str = "invalid_value") -> Problem:
    """A field that is not what the protocol says."""
    return Problem(400, f"{param} {want}", code, param=param)
