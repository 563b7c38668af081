"""``lightningrun sync``: complete the mirror of a run, as often as one likes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from lightningrun.errors import StageFailed
from lightningrun.recipe.model import TrackingConfig
from lightningrun.tracking.exporter import Exporter, one_line
from lightningrun.tracking.mirror import MirrorState, current_state
from lightningrun.tracking.store import MirrorLock, default_uri, environment
from lightningrun.tracking.summary import holder_alive


class MirrorFailed(StageFailed):
    """The tracking server did not take the run; nothing is lost, the journal has it all."""


def sync(run_dir: Path, uri: str | None = None, *, environ: Mapping[str, str] = os.environ) -> MirrorState:
    """Mirror what is missing into ``uri`` (default: where the run's own tracking goes) and return the state.

    Raises Locked while the run's own process mirrors it, MirrorFailed if the server does not take it.
    """
    run_dir = run_dir.resolve()
    running = holder_alive(run_dir / ".lock")
    recipe = yaml.safe_load((run_dir / "resolved.yaml").read_text("utf-8"))
    tracking = TrackingConfig.model_validate({"experiment": recipe["name"], **(recipe.get("tracking") or {})})
    target = uri or default_uri(run_dir.parent, tracking, environ)
    for name, value in environment(environ).items():
        os.environ.setdefault(name, value)
    lock = MirrorLock(run_dir, wait=not running)
    try:
        exporter = Exporter(run_dir, target, tracking.experiment, run_dir.parent)
        try:
            while exporter.pump():
                pass
            exporter.close(dead=not running)
            exporter.complete()
        except Exception as error:
            exporter.failed(error)
            raise MirrorFailed(
                f"MLflow at {exporter.state.uri}: {one_line(error)}", hint="try `sync` again later"
            ) from error
    finally:
        lock.release()
    return current_state(run_dir)
