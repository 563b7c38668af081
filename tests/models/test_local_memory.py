"""An engine that is replaced is let go, although what is loaded is otherwise left out of the search for garbage."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import pytest

pytest.importorskip("torch")

from lightningrun.models.local.provider import LocalProvider
from lightningrun.recipe.model import ModelConfig
from tests.models.local_checkpoints import saved


async def test_the_weights_of_an_engine_that_was_replaced_are_freed(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", seed=1), saved(tmp_path / "other", seed=2)
    provider = LocalProvider(ModelConfig(provider="local", name=str(one)), os.environ, "policy")
    body = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 4}
    await provider.complete(dict(body), b"", 60)
    first = weakref.ref(await provider.engine())
    provider.serve(other)
    await provider.complete(dict(body), b"", 60)
    assert first() is None
    await provider.aclose()
