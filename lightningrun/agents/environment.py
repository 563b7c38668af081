"""The environment that agents and rewards get: an allow-list of the runner's, then ``agent.env``.

Provider keys never enter: a variable is passed on only if it is listed here, and never if its name looks like a secret.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

# fmt: off
_PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP",
    "PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "XDG_*", "LD_LIBRARY_PATH", "DYLD_*", "OMP_*", "OPENBLAS_*", "MKL_*",
    "NUMEXPR_*", "CUDA_*", "NVIDIA_*", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)
# fmt: on
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_DEFAULTS = {
    # Slots are many: one numeric thread each, which also keeps the fork server single-threaded.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def agent_environment(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """What an agent's process gets besides its endpoint. ``extra`` (``agent.env``) is passed whole and wins."""
    env = dict(_DEFAULTS)
    for name, value in environ.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in _PASSED) and not _SECRET.search(name):
            env[name] = value
    env.update(extra)
    # The gateway is on loopback: a proxy given in agent.env must not swallow it.
    hosts = [env.get("NO_PROXY") or env.get("no_proxy") or "", "127.0.0.1", "localhost"]
    env["NO_PROXY"] = env["no_proxy"] = ",".join(host for host in hosts if host)
    return env


def endpoint_environment(base_url: str, token: str, model: str) -> dict[str, str]:
    """The variables by which OpenAI's and Anthropic's clients find the gateway."""
    openai = {"OPENAI_BASE_URL": base_url, "OPENAI_API_BASE": base_url, "OPENAI_API_KEY": token, "OPENAI_MODEL": model}
    root = base_url.removesuffix("/v1")  # Anthropic's clients add it
    anthropic = {"ANTHROPIC_BASE_URL": root, "ANTHROPIC_API_KEY": token, "ANTHROPIC_MODEL": model}
    return {**openai, **anthropic}


def telemetry_environment(base_url: str, token: str) -> dict[str, str]:
    """The variables by which OpenTelemetry's exporters in an agent find the gateway."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": base_url.removesuffix("/v1"),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{base_url}/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Authorization=Bearer%20{token}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "500",  # ms: spans of an agent that is killed for its time are mostly there
    }
