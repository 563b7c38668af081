"""Prompts of a run in MLflow's registry: a text is one version there, whichever run or attempt brought it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.tracking import MlflowClient

from lightningrun.files import digest


class Registry:
    """Registers texts and finds them again by digest. ``ask`` makes a call that MLflow may refuse."""

    def __init__(self, client: MlflowClient, run: str, recipe: str, ask: Callable[..., Any]) -> None:
        self._client = client
        self._run = run
        self._recipe = recipe
        self._ask = ask
        self._sets: dict[str, Mapping[str, str]] = {}
        self._versions: dict[tuple[str, str], int | None] = {}

    def full_name(self, name: str) -> str:
        return re.sub(r"[^\w.-]", "_", f"{self._recipe}-{name}")

    def remember(self, prompts: Mapping[str, str]) -> None:
        """Learn of a set of prompts that rollouts may run with; rollouts name it by its digest."""
        self._sets[digest(dict(prompts))[:12]] = prompts

    def expect(self, name: str, text: str) -> None:
        """Learn that a text is registered, or is about to be."""
        self._versions.setdefault((name, text), None)

    def register(self, name: str, text: str, label: str, facts: Mapping[str, str]) -> int | None:
        """The version of this text, made if it is new in the registry; None if MLflow refuses it.

        ``facts`` become tags, on a version that is there already too: they tell of the run that had the text last.
        """
        found = self.version(name, text)
        tags = {"lightningrun.label": label, "lightningrun.run_id": self._run, **facts}
        if found is None:
            self._versions[(name, text)] = found = self._ask(self._new, name, text, label, tags)
        elif facts:
            for key, value in tags.items():
                self._ask(self._client.set_prompt_version_tag, self.full_name(name), str(found), key, value)
        return found

    def version(self, name: str, text: str) -> int | None:
        """The version of a text, None if it is not in the registry."""
        found = self._versions.get((name, text)) or self._ask(self._find, name, text)
        self._versions[(name, text)] = found
        return found

    def linked(self, prompts: str) -> list[dict[str, str]]:
        """Name and version of each registered prompt in the set of this digest, as traces are linked to them."""
        links = []
        for name, text in (self._sets.get(prompts) or {}).items():
            if (name, text) in self._versions:
                version = self.version(name, text)
                if version is not None:
                    links.append({"name": self.full_name(name), "version": str(version)})
        return links

    def _new(self, name: str, text: str, label: str, tags: Mapping[str, str]) -> int:
        tags = {"lightningrun.digest": digest(text), **tags}
        words = f"{label} prompt of {self._recipe}, run {self._run}"
        return int(self._client.register_prompt(self.full_name(name), text, words, tags).version)

    def _find(self, name: str, text: str) -> int | None:
        query = f"name = '{self.full_name(name)}' AND tag.`mlflow.prompt.is_prompt` = 'true'"
        query += f" AND tag.`lightningrun.digest` = '{digest(text)}'"
        found = self._client.search_model_versions(query, max_results=10)
        return min((int(version.version) for version in found), default=None)
