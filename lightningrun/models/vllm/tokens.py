"""What vLLM is asked for beside the answer, and what is taken out of it again: exact token ids and log-probabilities.

vLLM's own fields of chat completions (``return_token_ids``; 0.10.2 and newer): ``prompt_token_ids`` of the answer or of
a stream's first chunk, ``token_ids`` of a choice or piece by piece of a chunk's choices, the ending token included.
"""

from __future__ import annotations

from typing import Any

from lightningrun.models.provider import SAMPLED, Body


def asking(body: Body) -> Body:
    """``body`` with the request for ids and log-probabilities."""
    return {**body, "return_token_ids": True, "logprobs": True}


class Sampled:
    """Collects them from a completion or from the chunks of one, which lose what the agent did not ask for."""

    def __init__(self, body: Body, weights: str) -> None:
        """``body`` is the request as the agent made it; ``weights`` says which weights answer."""
        self._wanted = bool(body.get("logprobs")), bool(body.get("return_token_ids"))
        self._weights = weights
        self._prompt: list[int] | None = None
        self._choices: dict[int, dict[str, list[Any]]] = {}

    def take(self, part: Body) -> None:
        """Take what a completion or a chunk has; one that is the last gets all of it under ``SAMPLED``."""
        logprobs_wanted, ids_wanted = self._wanted
        prompt = part.get("prompt_token_ids") if ids_wanted else part.pop("prompt_token_ids", None)
        self._prompt = prompt or self._prompt
        for choice in part.get("choices") or ():
            found = self._choices.setdefault(choice.get("index") or 0, {"ids": [], "logprobs": []})
            found["ids"] += (choice.get("token_ids") if ids_wanted else choice.pop("token_ids", None)) or ()
            entries = (choice.get("logprobs") or {}).get("content") or ()
            found["logprobs"] += [entry["logprob"] for entry in entries]
            if not logprobs_wanted and "logprobs" in choice:
                choice["logprobs"] = None
        if part.get("usage") and (whole := self._whole()):
            part[SAMPLED] = whole

    def _whole(self) -> Body | None:
        """As ``provider: local`` gives it; None if the server told no ids, or not as many as log-probabilities."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        told = self._prompt and choices and all(c["ids"] and len(c["ids"]) == len(c["logprobs"]) for c in choices)
        return {"prompt_ids": self._prompt, "weights": self._weights, "choices": choices} if told else None
