"""What a run was made with: commit, dirty patch, package versions. Written once, into ``lock.json``."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

_PACKAGES = (
    "lightningrun", "omegaconf", "pydantic", "openai", "litellm", "mlflow", "aiohttp", "click", "torch", "verl", "vllm",
)  # fmt: skip


def packages() -> dict[str, str]:
    """Versions of the packages that matter, of those installed."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


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
    """``git diff HEAD`` of the checkout, cut at ``limit`` characters."""
    return _git(root, "diff", "HEAD")[:limit]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
