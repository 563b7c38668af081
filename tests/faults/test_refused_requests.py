"""A provider that refuses every request ends the stage: that is a wrong request, not a reward of 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.run.project import RECIPE, lightningrun, make_project, show

ENDPOINT = Path(__file__).parents[1] / "servers" / "openai_endpoint.py"


def test_a_400_for_every_request_is_not_a_measured_score(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, str(ENDPOINT), "--port", "0", "--mode", "400"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        simulated = 'policy: {provider: python, name: "adder.models:student", args: {delay_s: 0.0}}'
        assert simulated in RECIPE
        real = f'policy: {{provider: openai, name: m, base_url: "http://127.0.0.1:{port}/v1"}}'
        root = make_project(tmp_path / "p", recipe=RECIPE.replace(simulated, real))
        done = lightningrun(root, "recipe.yaml", "--until", "baseline")
    finally:
        server.kill()
        server.wait()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "answered no request of stage baseline" in done.stderr and "400" in done.stderr
    assert "reward" not in show(root)["stages"]["baseline"]["metrics"]
