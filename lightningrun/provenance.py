"""What a run was made with: commit, dirty patch, package versions. Written once, into ``lock.json``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "lightningrun", "omegaconf", "pydantic", "openai", "litellm", "mlflow", "aiohttp", "click", "torch", "verl", "vllm",
)  # fmt: skip


def describe(root: Path) -> dict[str, Any]:
    """``git`` (commit, dirty), ``python`` and ``packages`` (versions of those that matter, of those installed)."""
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {"git": git(root), "python": ".".join(map(str, sys.version_info[:3])), "packages": packages}


def git(root: Path) -> dict[str, str | bool]:
    """Commit and dirtiness of the checkout around ``root``; empty outside one or without git."""
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return {}
    return {
        "commit": commit.strip(),
        "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip()),
    }


def dirty_patch(root: Path, limit: int = 1 << 20) -> str:
    """``git diff HEAD`` of the checkout (empty when clean), cut at ``limit`` characters."""
    return _git(root, "diff", "HEAD")[:limit]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
